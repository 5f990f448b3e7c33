"""Energy: how much, and how it was obtained. Whether a candidate takes less is `energy_comparison`'s.

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
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError, MeasurementError
from .carbon import JOULES_PER_KWH

__all__ = ["EnergyMeter", "EnergyWindow", "Grade", "OpenWindow", "Provenance"]

Grade = Literal["A", "B", "C", "D"]

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
