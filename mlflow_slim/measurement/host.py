"""Which machine a figure comes from, whether it is quiet, and the one slot in which to measure.

`host` describes the machine, `load` says how busy others keep it, `quiet_wait` waits for calm and says if
it came, `measure_slot` lets one measurement run at a time. Judging figures that were taken in spite of
contention is left to the callers: a reading is returned, never hidden.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import MeasurementError

__all__ = ["Host", "Load", "Readiness", "host", "load", "measure_slot", "quiet_wait", "watch"]

_PACKAGES = ("mlflow", "torch", "transformers", "onnxruntime", "tokenizers", "codecarbon", "numpy")
# What decides which kernels run: vector width, int8 and bf16 dot products. The rest of the list is noise.
_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True)
class Host:
    """The machine a figure belongs to.

    Attributes:
        cpu: Model name as the system gives it.
        flags: Those CPU features that decide which kernels run, sorted; empty where they can't be read.
        cores: Logical cores this process may use (affinity and container quota considered), >= 1.
        memory_mib: Memory this process may use, MiB.
        gpus: GPU names, one a device.
        system: Operating system and machine type, such as ``Linux x86_64``.
        release: Release of the operating system.
        python: Python version.
        virtual: True under a hypervisor, False on bare metal, None when it can't be told.
        governor: CPU frequency governor; None when it can't be read.
        versions: Versions of the packages that matter to a figure, of those installed.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    memory_mib: int
    gpus: tuple[str, ...]
    system: str
    release: str
    python: str
    virtual: bool | None
    governor: str | None
    versions: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the hardware; equal for machines whose absolute figures may be compared.

        Versions, release, governor and the machine's name are not in it. Memory counts in whole GiB, since kernels
        report a few MiB more or less.
        """
        hardware = [self.cpu, self.flags, self.cores, round(self.memory_mib / 1024), sorted(self.gpus), self.system]
        text = json.dumps([*hardware, self.virtual])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all fields, with the fingerprint."""
        return {**asdict(self), "versions": dict(self.versions), "fingerprint": self.fingerprint}


@lru_cache(maxsize=1)
def host() -> Host:
    """The machine this process runs on, read once."""
    info = _read("/proc/cpuinfo")
    present = set(_cpuinfo(info, "flags", "Features").split())
    return Host(
        cpu=_cpu_model(info),
        flags=tuple(sorted(present.intersection(_FLAGS))),
        cores=_cores(),
        memory_mib=_memory_mib(),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.machine()}",
        release=platform.release(),
        python=platform.python_version(),
        virtual=_virtual(present),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        versions=_versions(),
    )


def _read(path: str | Path) -> str:
    """Text of a small system file; empty where it doesn't exist or isn't ours to read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a system tool prints; empty when it is absent, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpuinfo(text: str, *keys: str) -> str:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return ""


def _cpu_model(info: str) -> str:
    named = _cpuinfo(info, "model name", "Model", "Hardware")
    if not named and sys.platform == "darwin":
        named = _output("sysctl", "-n", "machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine() or "unknown"


def _cgroup_files(name: str, legacy: str) -> Iterator[str]:
    """Texts of a control file for our group and its parents: the tightest limit on the way counts."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        root, file = ("/sys/fs/cgroup", name) if not controllers else (f"/sys/fs/cgroup/{controllers}", legacy)
        # A container often sees its own group as the root while the path still names the host's.
        for folder in (group, *map(str, Path(group).parents)):
            text = _read(f"{root}{folder}/{file}")
            if text:
                yield text


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores: int = len(affinity(0)) if affinity else os.cpu_count() or 1
    for text in _cgroup_files("cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.strip().partition(" ")
        if quota.isdigit():
            # The legacy file holds the quota alone; its period is 100 ms unless somebody changed it.
            cores = min(cores, max(1, math.floor(int(quota) / int(period or 100_000))))
    return max(1, cores)


def _memory_mib() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    for text in _cgroup_files("memory.max", "memory.limit_in_bytes"):
        if text.strip().isdigit():
            total = min(total, int(text))
    return total // 2**20


def _gpus() -> tuple[str, ...]:
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if listed:
        return tuple(line.strip() for line in listed.splitlines() if line.strip())
    torch = sys.modules.get("torch")  # never imported for this: it costs seconds and memory
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _virtual(flags: set[str]) -> bool | None:
    if "hypervisor" in flags:
        return True
    if sys.platform == "darwin":
        answer = _output("sysctl", "-n", "kern.hv_vmm_present")
        return answer == "1" if answer else None
    if platform.machine().lower() in ("x86_64", "amd64") and flags:
        return False
    if Path("/proc/device-tree/hypervisor").exists():
        return True
    maker = (_read("/sys/class/dmi/id/sys_vendor") + _read("/sys/class/dmi/id/product_name")).lower()
    if any(word in maker for word in ("qemu", "kvm", "vmware", "virtual", "xen", "amazon ec2", "google compute")):
        return True
    return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclass(frozen=True)
class Load:
    """How busy the machine was over a short window, while this process slept.

    Attributes:
        window_s: Length of the window, seconds.
        foreign_share: CPU time taken by other processes over all CPU time there was, 0 to 1.
        steal_share: CPU time the hypervisor took away over all CPU time, 0 to 1; 0 where it isn't told.
        pressure: Share of the window in which some task waited for a CPU, 0 to 1; None without PSI.
        pressure_avg10: The kernel's own figure over the last 10 s, 0 to 1; it lags. None without PSI.
        load_average: Runnable tasks, mean of the last minute; None where it isn't told.
    """

    window_s: float
    foreign_share: float
    steal_share: float
    pressure: float | None
    pressure_avg10: float | None
    load_average: float | None

    def disturbance(self, *, max_foreign: float = 0.10, max_steal: float = 0.05) -> str:
        """Who took more of the CPU than is allowed, for people; empty when nobody did."""
        shares = (("other processes", self.foreign_share, max_foreign), ("the hypervisor", self.steal_share, max_steal))
        return ", ".join(f"{who} {share:.0%} (limit {limit:.0%})" for who, share, limit in shares if share > limit)


@dataclass
class Watch:
    """What `watch` is filling in; ``load`` is there once the block has ended."""

    _load: Load | None = None

    @property
    def load(self) -> Load:
        """How busy others kept the machine during the block."""
        if self._load is None:
            raise MeasurementError("The watched block has not ended yet. Ask after it.")
        return self._load


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Watches how busy others keep the machine while its block runs; costs two readings."""
    seen = Watch()
    before = _counters()
    yield seen
    seen._load = _difference(before, _counters())


@dataclass(frozen=True)
class _Counters:
    """Cumulative seconds since boot (``own_s``: since the start of this process tree)."""

    at_s: float
    total_s: float
    busy_s: float
    steal_s: float
    own_s: float
    stalled_s: float | None
    avg10: float | None


def _counters() -> _Counters:
    import psutil

    times = psutil.cpu_times()
    # Linux counts guest time in user time as well; steal belongs to nobody here.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    steal = getattr(times, "steal", 0.0)
    busy = total - times.idle - getattr(times, "iowait", 0.0) - steal
    own = 0.0
    process = psutil.Process()
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            used = member.cpu_times()
            own += used.user + used.system
            # Children that have ended count with their parent; psutil knows them on POSIX systems only.
            own += getattr(used, "children_user", 0.0) + getattr(used, "children_system", 0.0)
    stalled, avg10 = _pressure(_read("/proc/pressure/cpu"))
    return _Counters(time.perf_counter(), total, busy, steal, own, stalled, avg10)


def _pressure(text: str) -> tuple[float | None, float | None]:
    """Cumulative stalled seconds and the 10 s share from ``/proc/pressure/cpu``.

    >>> _pressure("some avg10=12.50 avg60=1.66 avg300=1.20 total=15682854")
    (15.682854, 0.125)
    """
    words = dict(word.split("=", 1) for word in text.partition("\n")[0].split() if "=" in word)
    if "total" not in words or "avg10" not in words:
        return None, None
    return int(words["total"]) / 1e6, float(words["avg10"]) / 100


def load(
    window_s: float = 0.5,
    *,
    sleep: Callable[[float], None] = time.sleep,
    counters: Callable[[], Any] = _counters,
) -> Load:
    """How busy others keep the machine, watched for ``window_s`` seconds.

    Args:
        window_s: How long to watch, > 0. Below 0.2 the kernel's 10 ms ticks show.
        sleep: Waits; replaced in tests.
        counters: Reads the cumulative counters; replaced in tests.
    """
    before = counters()
    sleep(window_s)
    return _difference(before, counters())


def _difference(before: _Counters, after: _Counters) -> Load:
    elapsed = max(after.at_s - before.at_s, 1e-9)
    capacity = max(after.total_s - before.total_s, 1e-9)
    foreign = (after.busy_s - before.busy_s) - max(0.0, after.own_s - before.own_s)
    stalled = None
    if before.stalled_s is not None and after.stalled_s is not None:
        stalled = _share((after.stalled_s - before.stalled_s) / elapsed)
    return Load(
        window_s=elapsed,
        foreign_share=_share(foreign / capacity),
        steal_share=_share((after.steal_s - before.steal_s) / capacity),
        pressure=stalled,
        pressure_avg10=after.avg10,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


@dataclass(frozen=True)
class Readiness:
    """What `quiet_wait` found.

    Attributes:
        quiet: True when every threshold was met.
        waited_s: How long it took, seconds.
        load: The last reading.
        reason: Which thresholds were exceeded at the end; empty when quiet.
    """

    quiet: bool
    waited_s: float
    load: Load
    reason: str


def quiet_wait(
    timeout_s: float = 120.0,
    *,
    max_foreign: float = 0.10,
    max_pressure: float = 0.05,
    max_steal: float = 0.05,
    read: Callable[[], Load] = load,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Readiness:
    """Waits until nobody else keeps the CPUs busy, or gives up; either way says what was seen.

    The pressure is that of the reading's own window, not the kernel's 10 s mean: that mean still shows our own
    training half a minute after it ended.

    Args:
        timeout_s: Gives up after this long; 0 reads once.
        max_foreign: Largest share of CPU time that others may take, 0 to 1.
        max_pressure: Largest share of time in which a task may have waited for a CPU, 0 to 1.
        max_steal: Largest share that the hypervisor may take, 0 to 1.
        read: Takes one reading; replaced in tests.
        clock: Seconds; replaced in tests.
        sleep: Waits; replaced in tests.
    """
    start = clock()
    while True:
        now = read()
        limits = {"other processes": (now.foreign_share, max_foreign), "the hypervisor": (now.steal_share, max_steal)}
        if now.pressure is not None:
            limits["tasks waiting for a CPU"] = (now.pressure, max_pressure)
        over = [f"{who} {share:.0%} (limit {limit:.0%})" for who, (share, limit) in limits.items() if share > limit]
        waited = clock() - start
        if not over or waited >= timeout_s:
            return Readiness(not over, waited, now, ", ".join(over))
        sleep(min(1.0, max(0.0, timeout_s - waited)))


@contextlib.contextmanager
def measure_slot(
    lock_dir: Path | None = None,
    *,
    timeout_s: float = 600.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[float]:
    """Holds the one slot of this machine in which to measure; gives the seconds waited for it.

    The kernel frees the slot when its holder dies, however it dies. The slot is per user: runs of other users are
    seen by `load`.

    Args:
        lock_dir: Where the lock lives, made with mode 0700 when missing; default: a folder of ours in the temp folder.
        timeout_s: How long to wait for whoever measures now.
        clock: Seconds; replaced in tests.
        sleep: Waits; replaced in tests.

    Raises:
        MeasurementError: The slot stayed taken, or others can write to the folder.
    """
    import filelock

    folder = _private_folder(lock_dir)
    holder = folder / "slim-measure.json"
    lock = filelock.FileLock(str(folder / "slim-measure.lock"), mode=0o600)
    start = clock()
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            if clock() - start >= timeout_s:
                who = _read(holder).strip() or "an unknown process"
                raise MeasurementError(
                    f"The measure slot {folder / 'slim-measure.lock'} was still held after {timeout_s:g} s by {who}. "
                    "Wait for it, end it, or give a longer timeout: two measurements at once would spoil both."
                ) from None
            sleep(0.2)
    waited = clock() - start
    try:
        holder.write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
        yield waited
    finally:
        lock.release()


def _private_folder(chosen: Path | None) -> Path:
    """The lock's folder, ours alone: in a shared temp folder anybody could have made it first."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    folder = chosen or Path(tempfile.gettempdir()) / f"mlflow_slim-{user}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise MeasurementError(f"The lock folder {folder} can't be used: {error}. Give another one.") from error
    if not stat.S_ISDIR(found.st_mode):
        raise MeasurementError(f"The lock folder {folder} is a link or a file. Remove it or give another one.")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise MeasurementError(
            f"Others can write to the lock folder {folder} (mode {stat.S_IMODE(found.st_mode):o}, "
            f"owner {found.st_uid}). Remove it, run chmod 700 on it, or give another one."
        )
    return folder
