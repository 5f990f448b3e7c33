from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_slim.errors import MeasurementError
from mlflow_slim.measurement import host as host_module
from mlflow_slim.measurement.host import Host, Load, host, load, measure_slot, quiet_wait, watch

A_HOST = Host("EPYC", ("avx2",), 2, 24105, (), "Linux x86_64", "6.1", "3.11.7", True, None, {"numpy": "2.0"})
QUIET = Load(0.5, 0.01, 0.0, 0.0, 0.9, 0.3)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_this_host_is_described_and_fits_into_json() -> None:
    here = host()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.memory_mib > 100
    assert here.cpu
    assert here.versions["numpy"]
    assert json.loads(json.dumps(here.to_dict()))["fingerprint"] == here.fingerprint
    assert host() is here


def test_the_fingerprint_follows_hardware_and_not_software() -> None:
    same = dataclasses.replace(A_HOST, versions={}, release="7.0", python="3.13.0", memory_mib=24110, governor="x")
    assert same.fingerprint == A_HOST.fingerprint
    for change in ({"cpu": "Xeon"}, {"cores": 4}, {"flags": ()}, {"gpus": ("H200",)}, {"virtual": False}):
        assert dataclasses.replace(A_HOST, **change).fingerprint != A_HOST.fingerprint
    assert len(A_HOST.fingerprint) == 12


def test_reading_the_host_does_not_import_torch() -> None:
    code = "import sys; from mlflow_slim.measurement.host import host; host(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_container_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}
    monkeypatch.setattr(host_module, "_read", lambda path: files.get(str(path), ""))
    assert host_module._cores() == 1
    files["/sys/fs/cgroup/a/cpu.max"] = "max 100000\n"
    if hasattr(os, "sched_getaffinity"):
        assert host_module._cores() == len(os.sched_getaffinity(0))


def test_foreign_load_is_busy_time_minus_our_own() -> None:
    at = host_module._Counters
    # 2 s on 2 cores: 3 s busy, 1 s of it ours, 0.4 s stolen, somebody waited for 0.5 s
    readings = iter([at(0, 100, 50, 1, 7, 3.0, 0.2), at(2, 104, 53, 1.4, 8, 3.5, 0.3)])
    seen = load(2, sleep=lambda seconds: None, counters=lambda: next(readings))
    assert seen.foreign_share == pytest.approx(0.5)
    assert seen.steal_share == pytest.approx(0.1)
    assert seen.pressure == pytest.approx(0.25)
    assert seen.pressure_avg10 == 0.3


def test_a_real_reading_has_shares_between_0_and_1() -> None:
    seen = load(0.05)
    assert 0 <= seen.foreign_share <= 1
    assert 0 <= seen.steal_share <= 1


def test_waiting_ends_when_the_machine_becomes_quiet() -> None:
    clock = FakeClock()
    busy = dataclasses.replace(QUIET, foreign_share=0.6)
    readings = iter([busy, busy, QUIET])
    found = quiet_wait(120, read=lambda: next(readings), clock=clock, sleep=clock.sleep)
    assert found.quiet
    assert found.waited_s == pytest.approx(2.0)
    assert found.reason == ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"foreign_share": 0.6}, "other processes 60%"),
        ({"steal_share": 0.2}, "hypervisor"),
        ({"pressure": 0.5}, "wait"),
    ],
)
def test_waiting_gives_up_and_says_what_was_busy(change: dict[str, float], word: str) -> None:
    clock = FakeClock()
    busy = dataclasses.replace(QUIET, **change)
    found = quiet_wait(5, read=lambda: busy, clock=clock, sleep=clock.sleep)
    assert not found.quiet
    assert found.waited_s == pytest.approx(5)
    assert word in found.reason


def test_the_kernels_lagging_mean_does_not_hold_us_up() -> None:
    found = quiet_wait(5, read=lambda: QUIET, clock=FakeClock(), sleep=lambda seconds: None)
    assert QUIET.pressure_avg10 == 0.9
    assert found.quiet


def test_the_slot_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    clock = FakeClock()
    folder = tmp_path / "locks"
    with measure_slot(folder) as waited:
        assert waited < 60
        assert folder.stat().st_mode & 0o077 == 0 or os.name == "nt"
        again = measure_slot(folder, timeout_s=3, clock=clock, sleep=clock.sleep)
        with pytest.raises(MeasurementError, match=rf"still held after 3 s by .*{os.getpid()}"), again:
            pass
        assert clock.now >= 103
    with measure_slot(folder, timeout_s=0):
        pass


def test_the_slot_is_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from mlflow_slim.measurement.host import measure_slot\n"
        "with measure_slot(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline().strip() == "held"
        with pytest.raises(MeasurementError, match=str(child.pid)), measure_slot(tmp_path / "l", timeout_s=0):
            pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with measure_slot(tmp_path / "l", timeout_s=30):
        pass


@pytest.mark.skipif(os.name == "nt", reason="modes mean nothing there")
def test_a_lock_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(MeasurementError, match="Others can write to the lock folder"), measure_slot(shared):
        pass
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    with pytest.raises(MeasurementError, match="is a link"), measure_slot(tmp_path / "link"):
        pass


def test_a_watched_block_has_a_reading_only_once_it_has_ended() -> None:
    with watch() as seen:
        with pytest.raises(MeasurementError, match="not ended yet"):
            _ = seen.load
        sum(range(100_000))
    assert 0 <= seen.load.foreign_share <= 1
    assert seen.load.window_s > 0


@pytest.mark.parametrize(("foreign", "steal", "words"), [(0.0, 0.0, ""), (0.5, 0.0, "other"), (0.0, 0.2, "hypervisor")])
def test_a_disturbance_names_who_took_the_cpu(foreign: float, steal: float, words: str) -> None:
    seen = Load(1.0, foreign, steal, None, None, None).disturbance()
    assert (words in seen) if words else not seen
