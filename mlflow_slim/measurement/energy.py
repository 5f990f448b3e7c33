"""Energy: how much, how it was obtained, and whether a candidate takes less than the baseline.

Energy comes from CodeCarbon's offline tracker; no network is used. What CodeCarbon swallows is checked here: an error
inside it gives no data or zero energy, and a stray configuration file can change its options, so every option is
passed, read back, and every window must account for its own wall time. Each component carries a label that says
whether a counter was read or a model filled in, and the grade sums it up: A and B are mostly counters, C is a model of
a known processor, D is an assumption. Intervals cover the noise of repeats, never the bias of a model.

Energy is kept apart from carbon intensity and PUE (`carbon`), so that those can be changed afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import ConfigError, MeasurementError
from .carbon import (
    JOULES_PER_KWH,
    NO_INTENSITY,
    CarbonIntensity,
    carbon_intensity,
    emissions,
    gco2e_per_1k_samples,
    joules_to_kwh,
    wh_per_1k_samples,
)

if TYPE_CHECKING:
    from .stats import Interval

__all__ = [
    "NO_INTENSITY",
    "ArmEnergy",
    "CarbonIntensity",
    "EnergyArm",
    "EnergyComparison",
    "EnergyMeter",
    "EnergyWindow",
    "OpenWindow",
    "Provenance",
    "carbon_intensity",
    "compare_energy",
    "emissions",
    "gco2e_per_1k_samples",
    "joules_to_kwh",
    "wh_per_1k_samples",
]

Grade = Literal["A", "B", "C", "D"]
Verdict = Literal["baseline", "greener", "hungrier", "equivalent", "inconclusive"]

# A RAPL counter wraps after 65 to 262 kJ and CodeCarbon corrects one wrap a reading; tasks are read at their ends only.
_LONGEST_COUNTER_TASK_S = 60.0
_LONG_READING_S = 5.0
_WALL_TOLERANCE = 0.05


@dataclass(frozen=True)
class EnergyWindow:
    """Energy of one stretch of work.

    Attributes:
        name: What was running.
        duration_s: Wall time, seconds.
        energy_kwh: All components, kWh, without the building's overhead (PUE 1).
        cpu_kwh: CPU part, kWh.
        gpu_kwh: GPU part, kWh.
        ram_kwh: Memory part, kWh.
        cpu_s: CPU seconds that this process used, all threads, children not included.
    """

    name: str
    duration_s: float
    energy_kwh: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    cpu_s: float

    @property
    def energy_j(self) -> float:
        return self.energy_kwh * JOULES_PER_KWH

    @property
    def power_w(self) -> float:
        return self.energy_j / self.duration_s


@dataclass(frozen=True)
class Provenance:
    """How each component's energy is obtained.

    ``counter``: an energy counter of the hardware. ``sampled``: power readings over time. ``modelled``: a model of a
    processor that was recognised on bare metal. ``user``: a power the user gave. ``assumed``: anything weaker.

    Attributes:
        cpu: Label of the CPU.
        gpu: Label of the GPUs; None without one.
        ram: Label of the memory.
        tracking_mode: ``machine`` or ``process``, as CodeCarbon calls it.
        detail: The model behind it in words.
    """

    cpu: str
    gpu: str | None
    ram: str
    tracking_mode: str
    detail: str

    def measured_share(self, windows: Sequence[EnergyWindow]) -> float:
        """Energy that counters saw over all energy, 0 to 1."""
        total = sum(w.energy_kwh for w in windows)
        counted = sum(
            (w.cpu_kwh if self.cpu == "counter" else 0.0)
            + (w.gpu_kwh if self.gpu == "counter" else 0.0)
            + (w.ram_kwh if self.ram == "counter" else 0.0)
            for w in windows
        )
        return min(1.0, counted / total) if total > 0 else 0.0

    def grade(self, windows: Sequence[EnergyWindow]) -> Grade:
        """A from 0.9 measured share, B from 0.5; below, C when the CPU is modelled or better, else D."""
        share = self.measured_share(windows)
        if share >= 0.9:
            return "A"
        if share >= 0.5:
            return "B"
        return "C" if self.cpu in ("counter", "sampled", "modelled", "user") else "D"


class OpenWindow:
    """Handed out while a window runs; its figures are there once the block has ended."""

    def __init__(self, name: str) -> None:
        """Starts without figures."""
        self.name = name
        self._outcome: EnergyWindow | MeasurementError | None = None

    @property
    def result(self) -> EnergyWindow:
        """The figures.

        Raises:
            MeasurementError: The window still runs, or its energy could not be obtained. Asking raises, not the end of
                the block, so that the work done inside is never lost to a failed measurement.
        """
        if self._outcome is None:
            raise MeasurementError(f"The energy window {self.name!r} has not ended. Ask after its block.")
        if isinstance(self._outcome, MeasurementError):
            raise self._outcome
        return self._outcome


class EnergyMeter:
    """A measuring session: one warm tracker for short windows, and a tracker of its own for each long one.

    Args:
        tracking_mode: ``machine``, ``process``, or None to take ``machine`` where the CPU has a counter and
            ``process`` where its power is modelled (so that neighbours' load isn't billed to us).
        cpu_power_w: Largest power of the CPU in place of CodeCarbon's table, watts; replaces counters too.
        ram_power_w: Power of the memory in place of CodeCarbon's guess, watts.
        make_tracker: Builds a tracker from its options; replaced in tests.
        clock: Wall seconds; replaced in tests.
        cpu_clock: CPU seconds of this process; replaced in tests.

    Example::

        with EnergyMeter() as meter:
            with meter.window("student") as window:
                work()
            print(window.result.energy_j, meter.provenance.grade([window.result]))
    """

    def __init__(
        self,
        *,
        tracking_mode: Literal["machine", "process"] | None = None,
        cpu_power_w: float | None = None,
        ram_power_w: float | None = None,
        make_tracker: Callable[[Mapping[str, Any]], Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Checks the options; nothing starts before the session is entered."""
        for name, watts in (("cpu_power_w", cpu_power_w), ("ram_power_w", ram_power_w)):
            if watts is not None and not (math.isfinite(watts) and watts > 0):
                raise ConfigError(f"{name} must be a positive number of watts, got {watts!r}.")
        self._mode = tracking_mode
        self._cpu_power_w, self._ram_power_w = cpu_power_w, ram_power_w
        self._make_tracker = make_tracker or _codecarbon_tracker
        self._clock, self._cpu_clock = clock, cpu_clock
        self._tracker: Any = None
        self._provenance: Provenance | None = None
        self._busy: str | None = None
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> EnergyMeter:
        """Starts the tracker and warms it: its first start takes seconds that belong to no window."""
        with self._quiet:
            self._quiet.enter_context(_silenced())
            if self._mode is None:
                self._mode = "machine" if self._cpu_power_w is None and _cpu_has_counter() else "process"
            self._tracker = self._new_tracker(1.0)
            try:
                self._tracker.start_task("warm-up")
                self._tracker.stop_task()
            except Exception as error:
                with contextlib.suppress(Exception):
                    self._tracker.stop()
                self._tracker = None
                raise MeasurementError(
                    f"CodeCarbon could not be started: {error!r}. No energy was measured."
                ) from error
            self._provenance = _provenance(self._tracker, self._mode, self._cpu_power_w, self._ram_power_w)
            self._quiet = self._quiet.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the tracker and gives CodeCarbon's logger back as it was."""
        tracker, self._tracker = self._tracker, None
        with self._quiet, contextlib.suppress(Exception):
            tracker.stop()

    @property
    def provenance(self) -> Provenance:
        """How the energy of this session is obtained."""
        if self._provenance is None:
            raise MeasurementError("The energy session has not been started. Use: with EnergyMeter() as meter.")
        return self._provenance

    @property
    def has_counter(self) -> bool:
        return "counter" in (self.provenance.cpu, self.provenance.gpu)

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[OpenWindow]:
        """Measures its block; made for 1 s to 60 s. Windows follow each other and don't nest."""

        def start() -> tuple[Any, Callable[[], Any]]:
            self._tracker.start_task(f"{name}-{time.monotonic_ns()}")
            return self._tracker, self._tracker.stop_task

        with self._timed(name, start, is_task=True) as window:
            yield window

    @contextlib.contextmanager
    def long_window(self, name: str) -> Iterator[OpenWindow]:
        """Measures its block, however long, with a reading every few seconds: training, teacher labelling."""

        def start() -> tuple[Any, Callable[[], Any]]:
            tracker = self._new_tracker(_LONG_READING_S)
            tracker.start()

            def stop() -> Any:
                tracker.stop()
                return getattr(tracker, "final_emissions_data", None)

            return tracker, stop

        with self._timed(name, start, is_task=False) as window:
            yield window

    def measure(self, name: str, work: Callable[[], object]) -> EnergyWindow:
        """Energy of one call of ``work``."""
        with self.window(name) as window:
            work()
        return window.result

    def idle_power_w(self, seconds: float = 10.0, *, sleep: Callable[[float], None] = time.sleep) -> float:
        """Power of the machine while this process sleeps, watts; of use with counters only."""
        return self.measure("idle", lambda: sleep(seconds)).power_w

    def _new_tracker(self, reading_s: float) -> Any:
        options = {
            **_FIXED_OPTIONS,
            "measure_power_secs": reading_s,
            "tracking_mode": self._mode,
            "force_cpu_power": self._cpu_power_w,
            "force_ram_power": self._ram_power_w,
        }
        tracker = self._make_tracker(options)
        used = getattr(tracker, "_conf", None)
        if not isinstance(used, dict) or "tracking_mode" not in used:
            raise MeasurementError(
                "CodeCarbon could not be set up. Check .codecarbon.config in the home and the working folder, and "
                "the environment variables that start with CODECARBON_."
            )
        # None is left out: CodeCarbon then fills in what it found, such as the visible GPUs.
        changed = [k for k, v in options.items() if v is not None and k in used and used[k] != v]
        if changed:
            raise MeasurementError(
                f"CodeCarbon did not take the option {changed[0]}={options[changed[0]]!r} but {used[changed[0]]!r}. "
                "Its figures would not be ours; check the installed version of codecarbon."
            )
        return tracker

    @contextlib.contextmanager
    def _timed(
        self, name: str, start: Callable[[], tuple[Any, Callable[[], Any]]], *, is_task: bool
    ) -> Iterator[OpenWindow]:
        """A window whose tracker may fail to start or to stop: the block runs all the same."""
        if self._tracker is None:
            raise MeasurementError("The energy session has not been started. Use: with EnergyMeter() as meter.")
        if self._busy is not None:
            raise MeasurementError(
                f"The energy window {name!r} can't start while {self._busy!r} runs: they don't nest."
            )
        self._busy, window = name, OpenWindow(name)
        tracker, stop, ram_w = None, None, None
        failure: Exception | None = None
        try:
            tracker, stop = start()
            ram_w = _ram_power_w(tracker)
            _synchronize()
        except Exception as error:
            failure = error
        cpu_start, wall_start = self._cpu_clock(), self._clock()
        try:
            yield window
        finally:
            with contextlib.suppress(Exception):  # a failed kernel already raises from the block itself
                _synchronize()
            wall_s, cpu_s = self._clock() - wall_start, self._cpu_clock() - cpu_start
            try:
                data = stop() if stop is not None else None
                if failure is not None:
                    raise failure
                limits = [watts for watts in (ram_w, _ram_power_w(tracker)) if watts]
                if is_task and self.has_counter and wall_s > _LONGEST_COUNTER_TASK_S:
                    raise MeasurementError(
                        f"The energy window {name!r} took {wall_s:.0f} s: counters may have wrapped. "
                        "Use long_window above 60 s."
                    )
                # The memory a training takes comes and goes between its ends, and CodeCarbon's guess with it.
                window._outcome = _checked(name, data, wall_s, cpu_s, limits, upper=is_task)
            except MeasurementError as error:
                window._outcome = error
            except Exception as error:  # CodeCarbon's own faults must not end the work that was measured
                window._outcome = MeasurementError(f"CodeCarbon failed in {name!r}: {error!r}.")
            finally:
                self._busy = None


# Every option of CodeCarbon 3.x that can be given in a file or the environment, so that none of them counts. An empty
# token keeps a forgotten one from being used; intensity 0 keeps CodeCarbon from choosing one: `carbon` does that.
_FIXED_OPTIONS: Mapping[str, Any] = {
    "project_name": "mlflow_slim",
    "api_call_interval": -1,
    "api_endpoint": "",
    "api_key": "",
    "output_dir": tempfile.gettempdir(),  # nothing is written, but it must exist
    "output_file": "emissions.csv",
    "output_methods": [],
    "logging_logger": None,
    "prometheus_url": "",
    "output_handlers": [],
    "gpu_ids": None,
    "emissions_endpoint": None,
    "experiment_id": "",
    "experiment_name": "mlflow_slim",
    "electricitymaps_api_token": "",
    "log_level": logging.CRITICAL,
    "on_csv_write": "append",
    "logger_preamble": "",
    "pue": 1.0,
    "wue": 0.0,
    "force_carbon_intensity_g_co2e_kwh": 0.0,
    "force_mode_cpu_load": False,
    "allow_multiple_runs": True,
    "rapl_include_dram": False,
    "rapl_prefer_psys": False,
    "metadata": None,
    "country_iso_code": None,
    "country_2letter_iso_code": None,
    "region": None,
    "cloud_provider": None,
    "cloud_region": None,
}


def _codecarbon_tracker(options: Mapping[str, Any]) -> Any:
    import inspect

    from codecarbon import OfflineEmissionsTracker
    from codecarbon.emissions_tracker import BaseEmissionsTracker

    # Options came and went between the minor versions we accept; one that isn't known can't be configured either.
    known = {*inspect.signature(OfflineEmissionsTracker.__init__).parameters}
    known |= {*inspect.signature(BaseEmissionsTracker.__init__).parameters}
    given: dict[str, Any] = {k: (list(v) if isinstance(v, list) else v) for k, v in options.items() if k in known}
    return OfflineEmissionsTracker(**given)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """CodeCarbon's logger at CRITICAL, before it is constructed, and as it was afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import codecarbon  # noqa: F401 - sets its level while it is imported
    logger = logging.getLogger("codecarbon")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers = handlers


def _cpu_has_counter() -> bool:
    """True where CodeCarbon will read an energy counter of the CPU."""
    if sys.platform.startswith("linux"):
        from codecarbon.core.cpu import is_rapl_available

        return bool(is_rapl_available())
    if sys.platform == "win32":
        with contextlib.suppress(ImportError):  # versions before the Windows meter
            from codecarbon.core.windows_emi import is_emi_available

            return bool(is_emi_available())
    return False


def _synchronize() -> None:
    """Waits for the GPU, so that its work falls into the window that started it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _parts(tracker: Any, kind: str) -> list[Any]:
    return [part for part in getattr(tracker, "_hardware", None) or [] if type(part).__name__ == kind]


def _ram_power_w(tracker: Any) -> float | None:
    """Power that the memory model bills now; None where memory is measured or the tracker doesn't say."""
    parts = _parts(tracker, "RAM")
    try:
        return float(parts[0].total_power().W) if parts else None
    except Exception:
        return None


def _checked(
    name: str, data: Any, wall_s: float, cpu_s: float, ram_limits_w: Sequence[float], *, upper: bool
) -> EnergyWindow:
    """The figures of a window, if they can be its figures.

    The memory model bills a constant power, so its energy tells how many seconds CodeCarbon thinks have passed: a stall
    of its own, a lost reading or a reading too many shows there.
    """
    if data is None:
        raise MeasurementError(f"CodeCarbon gave no figures for {name!r}: an error inside it was swallowed.")
    cpu, gpu, ram = (float(getattr(data, f"{part}_energy")) for part in ("cpu", "gpu", "ram"))
    total = float(data.energy_consumed)
    if not all(math.isfinite(x) and x >= 0 for x in (cpu, gpu, ram, total)) or total <= 0 or wall_s <= 0:
        raise MeasurementError(f"Energy of {name!r} is not positive: {total} kWh (cpu {cpu}, gpu {gpu}, ram {ram}).")
    if not math.isclose(cpu + gpu + ram, total, rel_tol=0.01):
        raise MeasurementError(f"Energy of {name!r}, {total} kWh, is not the sum of cpu {cpu}, gpu {gpu}, ram {ram}.")
    if ram_limits_w:
        least, most = ram * JOULES_PER_KWH / max(ram_limits_w), ram * JOULES_PER_KWH / min(ram_limits_w)
        if (upper and least > wall_s * (1 + _WALL_TOLERANCE)) or most < wall_s * (1 - _WALL_TOLERANCE):
            raise MeasurementError(
                f"Energy of {name!r} stands for {least:.2f} s, its work took {wall_s:.2f} s. "
                "Use longer windows, or a quieter machine."
            )
    return EnergyWindow(name, wall_s, total, cpu, gpu, ram, cpu_s)


def _provenance(tracker: Any, mode: str, cpu_power_w: float | None, ram_power_w: float | None) -> Provenance:
    try:
        cpu, detail = _cpu_label(tracker, cpu_power_w)
    except Exception as error:  # private parts of CodeCarbon, free to change
        cpu, detail = "unknown", f"CPU method unknown ({error!r})"
    gpu = None
    for part in _parts(tracker, "GPU"):
        try:
            devices = part.devices.devices
            counted = all(d._has_counter and not d._use_power_fallback for d in devices)
            gpu = None if not devices else "counter" if counted else "sampled"
        except Exception:
            gpu = "unknown"
    if any(part.chip_part == "GPU" for part in _parts(tracker, "AppleSiliconChip")):
        gpu = "sampled"
    sampled_ram = any(part.chip_part == "RAM" for part in _parts(tracker, "Raspberry"))
    ram = "sampled" if sampled_ram else "user" if ram_power_w is not None else "assumed"
    watts = _ram_power_w(tracker)
    return Provenance(cpu, gpu, ram, mode, detail + (f"; memory {watts:g} W" if watts else ""))


def _cpu_label(tracker: Any, forced_w: float | None) -> tuple[str, str]:
    if _parts(tracker, "AppleSiliconChip") or any(p.chip_part == "CPU" for p in _parts(tracker, "Raspberry")):
        return "sampled", "CPU power sampled"
    part = _parts(tracker, "CPU")[0]
    mode, watts = str(part._mode), f"{part._tdp} W for {part._model}"
    if mode in ("intel_rapl", "windows_emi"):
        return "counter", f"CPU energy counter ({mode})"
    if mode == "intel_power_gadget":
        return "sampled", "CPU power sampled (Intel Power Gadget)"
    detail = f"CPU {mode}, {watts}"
    from .host import host

    if host().virtual is not False:
        # A guest's share of its socket is not known, whatever the model string matches.
        return "assumed", f"{detail}, under a hypervisor" if host().virtual else f"{detail}, hypervisor unknown"
    if forced_w is not None:
        return "user", f"{detail}, given by the user"
    from codecarbon.core.cpu import TDP

    registry: Any = TDP
    if part._is_generic_tdp or registry()._get_cpu_power_from_registry(part._model) is None:
        return "assumed", f"{detail}, not in CodeCarbon's table"
    return "modelled", detail


class EnergyArm(Protocol):
    """What `compare_energy` needs to know about one contestant."""

    @property
    def name(self) -> str:
        """Name of the point."""
        ...

    @property
    def call(self) -> Callable[[], object]:
        """Processes ``samples_per_call`` inputs and returns when they are done."""
        ...

    @property
    def samples_per_call(self) -> int:
        """Inputs that one call processes, >= 1."""
        ...


@dataclass(frozen=True)
class ArmEnergy:
    """What one contestant takes.

    Attributes:
        name: Name of the point.
        windows: The measured windows, in their order.
        samples: Inputs processed in each window.
        wh_per_1k_samples: Gross energy, Wh per 1,000 inputs; the interval covers repeat noise only.
        net_wh_per_1k_samples: The same less the idle machine; None without counters.
        cpu_wh_per_1k_samples: CPU part of the mean.
        gpu_wh_per_1k_samples: GPU part of the mean.
        ram_wh_per_1k_samples: Memory part of the mean.
        saving: Baseline's energy over ours, > 1 means that we take less; None for the baseline.
        cpu_time_saving: Baseline's CPU seconds over ours; None for the baseline, or where GPUs do the work.
        disagrees: True when the two differ by more than 15 %: one of them is misled.
        verdict: What the interval of ``saving`` says.
    """

    name: str
    windows: tuple[EnergyWindow, ...]
    samples: tuple[int, ...]
    wh_per_1k_samples: Interval
    net_wh_per_1k_samples: Interval | None
    cpu_wh_per_1k_samples: float
    gpu_wh_per_1k_samples: float
    ram_wh_per_1k_samples: float
    saving: Interval | None = None
    cpu_time_saving: Interval | None = None
    disagrees: bool = False
    verdict: Verdict = "baseline"

    @property
    def joules_per_sample(self) -> tuple[float, ...]:
        """The raw figures, one a window."""
        return tuple(w.energy_j / n for w, n in zip(self.windows, self.samples, strict=True))


@dataclass(frozen=True)
class EnergyComparison:
    """What all contestants take, measured in turns.

    Attributes:
        arms: By name, the baseline first.
        provenance: How the energy was obtained.
        grade: A to D, see `Provenance.grade`.
        measured_share: Energy that counters saw over all energy, 0 to 1.
        margin: Practical margin of the verdicts, a share.
        rounds: Windows of each arm.
        discarded: Windows thrown away because CodeCarbon's figures could not be theirs.
        idle_power_w: Power of the idle machine; None without counters.
        seconds_per_window: Length asked for.
        reason: Why the verdicts are inconclusive although windows were measured; empty otherwise.
    """

    arms: Mapping[str, ArmEnergy]
    provenance: Provenance
    grade: Grade
    measured_share: float
    margin: float
    rounds: int
    discarded: int
    idle_power_w: float | None
    seconds_per_window: float
    reason: str = ""

    def claim(self, name: str) -> str:
        """The strongest sentence that may be said about an arm: assumed energy never becomes a percentage of energy."""
        arm = self.arms[name]
        if arm.saving is None:
            return f"{name} is the baseline"
        if arm.verdict == "inconclusive":
            return f"energy of {name}: inconclusive"
        if arm.verdict == "equivalent":
            estimated = " (energy estimated)" if self.grade == "D" else ""
            return f"{name} takes as much energy as the baseline, within {self.margin:.0%}{estimated}"
        saving, what = arm.saving, "energy" if self.grade != "D" else "CPU time (energy estimated)"
        if self.grade == "D":
            if arm.cpu_time_saving is None:
                return f"energy of {name}: {arm.verdict} by an assumed power"
            saving = arm.cpu_time_saving
        change = 1 / saving.value - 1
        return f"{name} takes {abs(change):.0%} {'less' if change < 0 else 'more'} {what}"


@dataclass
class _Tally:
    windows: list[EnergyWindow] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def per_sample(self, figure: Callable[[EnergyWindow], float]) -> list[float]:
        return [figure(w) / n for w, n in zip(self.windows, self.samples, strict=True)]


def compare_energy(
    arms: Sequence[EnergyArm],
    *,
    meter: EnergyMeter,
    windows: int = 5,
    seconds_per_window: float | None = None,
    budget_s: float | None = None,
    margin: float | None = None,
    warmup_s: float = 1.0,
    confidence: float = 0.95,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyComparison:
    """Energy per input of every arm, from windows that take turns (A B, B A, A B, ...), and who takes less.

    All arms run in this process, over the same inputs and with the same threads; that is the caller's part. Windows of
    one round are compared with each other, so that drift of the machine cancels.

    Args:
        arms: The baseline first, then the candidates.
        meter: A running session.
        windows: Windows of each arm, >= 5.
        seconds_per_window: Least length of a window, >= 1; default 10 with counters, else 3.
        budget_s: Shortens windows, down to 1 s, to fit into this many seconds.
        margin: Share below which a difference doesn't matter; default 0.05, or 0.10 at grade C and D.
        warmup_s: Each arm runs this long before the first window.
        confidence: Of the intervals, in (0, 1).
        clock: Wall seconds; replaced in tests.
        sleep: Waits while the idle machine is measured; replaced in tests.

    Raises:
        ConfigError: An option is out of its range, or the budget can't hold the windows.
        MeasurementError: CodeCarbon's figures could not be trusted, again and again.

    Source: pairing as in Bulej et al. 2020 (duet benchmarking), arXiv:2001.05811.
    """
    from .stats import ratio_interval, trimmed_mean_interval

    least = _check_plan(arms, windows, seconds_per_window, budget_s, meter.has_counter)
    idle_w = meter.idle_power_w(min(10.0, least), sleep=sleep) if meter.has_counter else None
    for arm in arms:
        start = clock()
        while clock() - start < warmup_s:
            arm.call()
    tallies, discarded = _take_turns(arms, meter, windows, least, budget_s, clock)

    every = [w for tally in tallies for w in tally.windows]
    grade, rounds = meter.provenance.grade(every), len(tallies[0].windows)
    allowed = margin if margin is not None else (0.05 if grade in "AB" else 0.10)
    reason = "" if rounds >= windows else f"only {rounds} of {windows} windows fitted into {budget_s:g} s"

    base = tallies[0].per_sample(lambda w: w.energy_j)
    base_cpu = tallies[0].per_sample(lambda w: w.cpu_s)
    done: dict[str, ArmEnergy] = {}
    for arm, tally in zip(arms, tallies, strict=True):
        joules, cpu_s = tally.per_sample(lambda w: w.energy_j), tally.per_sample(lambda w: w.cpu_s)
        saving = cpu_saving = net = None
        verdict: Verdict = "baseline"
        if arm is not arms[0]:
            saving = ratio_interval(base, joules, confidence=confidence)
            if min(*base_cpu, *cpu_s) > 0 and not any(w.gpu_kwh for w in every):
                cpu_saving = ratio_interval(base_cpu, cpu_s, confidence=confidence)
            verdict = "inconclusive" if reason else _verdict(saving, allowed)
        if idle_w is not None:
            above = tally.per_sample(lambda w: w.energy_j - idle_w * w.duration_s)
            net = trimmed_mean_interval(above, confidence=confidence).scaled(wh_per_1k_samples(1.0))
        n = sum(tally.samples)
        done[arm.name] = ArmEnergy(
            name=arm.name,
            windows=tuple(tally.windows),
            samples=tuple(tally.samples),
            wh_per_1k_samples=trimmed_mean_interval(joules, confidence=confidence).scaled(wh_per_1k_samples(1.0)),
            net_wh_per_1k_samples=net,
            cpu_wh_per_1k_samples=sum(w.cpu_kwh for w in tally.windows) / n * 1e6,
            gpu_wh_per_1k_samples=sum(w.gpu_kwh for w in tally.windows) / n * 1e6,
            ram_wh_per_1k_samples=sum(w.ram_kwh for w in tally.windows) / n * 1e6,
            saving=saving,
            cpu_time_saving=cpu_saving,
            disagrees=bool(saving and cpu_saving and abs(math.log(saving.value / cpu_saving.value)) > math.log(1.15)),
            verdict=verdict,
        )
    return EnergyComparison(
        arms=done,
        provenance=meter.provenance,
        grade=grade,
        measured_share=meter.provenance.measured_share(every),
        margin=allowed,
        rounds=rounds,
        discarded=discarded,
        idle_power_w=idle_w,
        seconds_per_window=least,
        reason=reason,
    )


def _check_plan(
    arms: Sequence[EnergyArm], windows: int, asked_s: float | None, budget_s: float | None, counters: bool
) -> float:
    """Least length of a window, seconds."""
    names = [arm.name for arm in arms]
    if len(names) < 1 or len(set(names)) < len(names):
        raise ConfigError(f"arms must be one or more with different names, got {names}.")
    for arm in arms:
        if arm.samples_per_call < 1:
            raise ConfigError(f"samples_per_call of {arm.name!r} must be at least 1, got {arm.samples_per_call}.")
    if windows < 5:
        raise ConfigError(f"windows must be at least 5, got {windows}: fewer give no usable interval.")
    least = asked_s if asked_s is not None else (10.0 if counters else 3.0)
    if least < 1.0:
        raise ConfigError(f"seconds_per_window must be at least 1, got {least:g}: shorter windows read wrongly.")
    if budget_s is None:
        return least
    # A GPU's counter moves every 100 ms, so 3 s still have 30 steps in them.
    needed = len(arms) * windows * min(least, 3.0 if counters else 1.0)
    if budget_s < needed:
        raise ConfigError(
            f"budget_s={budget_s:g} is too little: {len(arms)} arms x {windows} windows need at least {needed:g} s."
        )
    return min(least, budget_s / (len(arms) * windows))


def _take_turns(
    arms: Sequence[EnergyArm],
    meter: EnergyMeter,
    rounds: int,
    least_s: float,
    budget_s: float | None,
    clock: Callable[[], float],
) -> tuple[list[_Tally], int]:
    """The windows of every arm, complete rounds only, and how many had to be thrown away."""
    tallies = [_Tally() for _ in arms]
    start, discarded, failures = clock(), 0, 0
    # Counters need enough inputs as well as time; a model doesn't care.
    least_samples = 200 if meter.has_counter else 1
    longest_s = max(least_s, 50.0)
    done = 0
    while done < rounds:
        order = range(len(arms)) if done % 2 == 0 else range(len(arms) - 1, -1, -1)
        taken: dict[int, tuple[EnergyWindow, int]] = {}
        try:
            for i in order:
                calls = 0
                with meter.window(arms[i].name) as window:
                    begun = clock()
                    while True:
                        arms[i].call()
                        calls += 1
                        elapsed, samples = clock() - begun, calls * arms[i].samples_per_call
                        if elapsed >= longest_s or (elapsed >= least_s and samples >= least_samples):
                            break
                taken[i] = (window.result, calls * arms[i].samples_per_call)
        except MeasurementError:
            # The whole round goes: its windows are paired. On a crowded machine a stall weighs less in longer windows.
            discarded, failures, least_s = (
                discarded + len(taken) + 1,
                failures + 1,
                max(least_s, min(10.0, 1.5 * least_s)),
            )
            if failures >= 5:
                raise
            continue
        failures, done = 0, done + 1
        for i, (result, samples) in taken.items():
            tallies[i].windows.append(result)
            tallies[i].samples.append(samples)
        # 1.25: windows run over by up to one call, and a verdict is worth a few seconds more.
        if budget_s is not None and done >= 3 and done < rounds and clock() - start > 1.25 * budget_s:
            break
    return tallies, discarded


def _verdict(saving: Interval, margin: float) -> Verdict:
    most = 1 + margin
    if saving.lo > most:
        return "greener"
    if saving.hi < 1 / most:
        return "hungrier"
    return "equivalent" if saving.lo >= 1 / most and saving.hi <= most else "inconclusive"
