from __future__ import annotations

import json
import logging
import math
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_slim.errors import ConfigError, MeasurementError
from mlflow_slim.measurement import energy
from mlflow_slim.measurement.carbon import (
    JOULES_PER_KWH,
    NO_INTENSITY,
    CarbonIntensity,
    carbon_intensity,
    emissions,
    gco2e_per_1k_samples,
    joules_to_kwh,
    wh_per_1k_samples,
)
from mlflow_slim.measurement.energy import EnergyMeter, EnergyWindow, Provenance
from mlflow_slim.measurement.energy_comparison import compare_energy


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


class RAM:
    """Named as CodeCarbon's class: the meter tells parts by their class name."""

    def __init__(self, watts: float) -> None:
        self.watts = watts

    def total_power(self) -> Any:
        return SimpleNamespace(W=self.watts)


class CPU:
    def __init__(self, mode: str) -> None:
        self._mode, self._model, self._tdp, self._is_generic_tdp = mode, "Fake CPU", 65, False


@dataclass
class FakeTracker:
    """A power meter of constant watts on a fake clock, with CodeCarbon's face."""

    clock: FakeClock
    cpu_w: float
    ram_w: float
    mode: str = "intel_rapl"
    stall_s: float = 0.0
    broken: Callable[[Any], Any] = lambda data: data
    _conf: dict[str, Any] = field(default_factory=dict)

    def __call__(self, options: dict[str, Any]) -> FakeTracker:
        self._conf = {**options}
        self._hardware = [RAM(self.ram_w), CPU(self.mode)]
        return self

    def start_task(self, name: str) -> None:
        self.at = self.clock()

    def stop_task(self) -> Any:
        seconds = self.clock() - self.at + self.stall_s
        cpu, ram = self.cpu_w * seconds / 3.6e6, self.ram_w * seconds / 3.6e6
        return self.broken(SimpleNamespace(energy_consumed=cpu + ram, cpu_energy=cpu, gpu_energy=0.0, ram_energy=ram))

    def start(self) -> None:
        self.start_task("all")

    def stop(self) -> None:
        self.final_emissions_data = self.stop_task()


@dataclass
class Arm:
    name: str
    call: Callable[[], object]
    samples_per_call: int = 1


def fake_meter(clock: FakeClock, tracker: FakeTracker | None = None, **options: Any) -> EnergyMeter:
    tracker = tracker or FakeTracker(clock, cpu_w=90, ram_w=10)
    return EnergyMeter(tracking_mode="machine", make_tracker=tracker, clock=clock, cpu_clock=clock, **options)


def test_constant_power_times_time_is_the_energy() -> None:
    clock = FakeClock()
    with fake_meter(clock) as meter:
        window = meter.measure("work", lambda: clock.work(36))
    assert window.energy_kwh == pytest.approx(100 * 36 / 3.6e6)
    assert window.energy_j == pytest.approx(3600)
    assert window.power_w == pytest.approx(100)
    assert (window.cpu_kwh, window.ram_kwh, window.gpu_kwh) == pytest.approx((9e-4, 1e-4, 0))
    assert window.duration_s == window.cpu_s == 36


def test_a_long_window_measures_training_and_keeps_its_cost_when_training_fails() -> None:
    clock = FakeClock()
    with fake_meter(clock) as meter:
        with meter.long_window("train") as window:
            clock.work(3600)
        assert window.result.energy_kwh == pytest.approx(0.1)

        def diverge() -> None:
            clock.work(36)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), meter.long_window("train again") as failed:
            diverge()
        assert failed.result.energy_j == pytest.approx(3600)
        assert meter.measure("after", lambda: clock.work(1)).energy_j == pytest.approx(100)


def test_a_tracker_that_cannot_start_does_not_stop_the_training() -> None:
    clock = FakeClock()
    tracker = FakeTracker(clock, 90, 10)
    with fake_meter(clock, tracker) as meter:
        tracker.start = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        done = []
        with meter.long_window("train") as window:
            done.append("trained")
        assert done == ["trained"]
        with pytest.raises(MeasurementError, match=r"CodeCarbon failed in 'train'.*ZeroDivisionError"):
            _ = window.result


def test_windows_do_not_nest_and_are_not_read_early() -> None:
    clock = FakeClock()
    with fake_meter(clock) as meter, meter.window("outer") as window:
        with pytest.raises(MeasurementError, match="'inner' can't start while 'outer' runs"), meter.window("inner"):
            pass
        with pytest.raises(MeasurementError, match="has not ended"):
            _ = window.result
        clock.work(1)
    assert window.result.energy_j == pytest.approx(100)
    with pytest.raises(MeasurementError, match="has not been started"):
        meter.measure("late", lambda: None)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda d: None, "gave no figures"),
        (lambda d: SimpleNamespace(**{**vars(d), "energy_consumed": 0.0}), "is not positive"),
        (lambda d: SimpleNamespace(**{**vars(d), "cpu_energy": -1e-6}), "is not positive"),
        (lambda d: SimpleNamespace(**{**vars(d), "energy_consumed": math.nan}), "is not positive"),
        (lambda d: SimpleNamespace(**{**vars(d), "energy_consumed": 2 * d.energy_consumed}), "is not the sum"),
        (lambda d: SimpleNamespace(**{k: v / 2 for k, v in vars(d).items()}), "stands for 5.00 s, its work took 10.00"),
        (lambda d: 1 / 0, "CodeCarbon failed in 'work'.*ZeroDivisionError"),
    ],
)
def test_figures_that_cannot_be_true_raise_when_asked_for_and_keep_the_work(
    broken: Callable[[Any], Any], message: str
) -> None:
    clock = FakeClock()
    tracker = FakeTracker(clock, 90, 10)
    with fake_meter(clock, tracker) as meter:
        tracker.broken = broken
        with meter.window("work") as window:
            clock.work(10)
        with pytest.raises(MeasurementError, match=message):
            _ = window.result


def test_a_stall_inside_codecarbon_is_noticed() -> None:
    clock = FakeClock()
    tracker = FakeTracker(clock, 90, 10)
    with fake_meter(clock, tracker) as meter:
        tracker.stall_s = 5.0
        with pytest.raises(MeasurementError, match=r"stands for 15\.00 s, its work took 10\.00 s"):
            meter.measure("work", lambda: clock.work(10))
        tracker.stall_s = 0.3
        assert meter.measure("work", lambda: clock.work(10)).duration_s == 10


def test_a_counter_window_long_enough_to_wrap_is_refused() -> None:
    clock = FakeClock()
    with (
        fake_meter(clock) as meter,
        pytest.raises(MeasurementError, match=r"took 61 s: counters may have wrapped\. Use long_window"),
    ):
        meter.measure("work", lambda: clock.work(61))


def test_an_option_that_codecarbon_did_not_take_stops_the_session() -> None:
    clock = FakeClock()
    tracker = FakeTracker(clock, 90, 10)

    def stubborn(options: dict[str, Any]) -> FakeTracker:
        return tracker({**options, "pue": 1.5})

    with (
        pytest.raises(MeasurementError, match=r"did not take the option pue=1\.0 but 1\.5"),
        EnergyMeter(make_tracker=stubborn, tracking_mode="process"),  # type: ignore[arg-type]
    ):
        pass


@pytest.mark.parametrize("watts", [0, -5, math.nan, math.inf])
def test_a_power_that_is_no_power_is_refused(watts: float) -> None:
    with pytest.raises(ConfigError, match="cpu_power_w must be a positive number of watts"):
        EnergyMeter(cpu_power_w=watts)


def _window(cpu: float = 0.0, gpu: float = 0.0, ram: float = 0.0) -> EnergyWindow:
    return EnergyWindow("w", 1.0, cpu + gpu + ram, cpu, gpu, ram, 1.0)


@pytest.mark.parametrize(
    ("cpu", "gpu", "window", "share", "grade"),
    [
        ("counter", None, _window(cpu=9, ram=1), 0.9, "A"),
        ("counter", None, _window(cpu=6, ram=4), 0.6, "B"),
        ("counter", None, _window(cpu=4, ram=6), 0.4, "C"),
        ("assumed", "counter", _window(cpu=1, gpu=8, ram=1), 0.8, "B"),
        ("assumed", "sampled", _window(cpu=1, gpu=8, ram=1), 0.0, "D"),
        ("modelled", None, _window(cpu=1, ram=1), 0.0, "C"),
        ("assumed", None, _window(cpu=1, ram=1), 0.0, "D"),
        ("unknown", None, _window(cpu=1, ram=1), 0.0, "D"),
    ],
)
def test_the_grade_follows_from_what_counters_saw(
    cpu: str, gpu: str | None, window: EnergyWindow, share: float, grade: str
) -> None:
    provenance = Provenance(cpu, gpu, "assumed", "process", "")
    assert provenance.measured_share([window, window]) == pytest.approx(share)
    assert provenance.grade([window, window]) == grade


def test_a_guest_is_assumed_even_where_the_model_string_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow_slim.measurement.host as host_module

    tracker = SimpleNamespace(_hardware=[CPU("cpu_load")])
    monkeypatch.setattr(host_module, "host", lambda: SimpleNamespace(virtual=True))
    assert energy._cpu_label(tracker, None)[0] == "assumed"
    assert energy._cpu_label(tracker, 40.0)[0] == "assumed"
    monkeypatch.setattr(host_module, "host", lambda: SimpleNamespace(virtual=False))
    assert energy._cpu_label(tracker, 40.0)[0] == "user"
    assert energy._cpu_label(tracker, None)[0] == "assumed"  # "Fake CPU" is in no table
    tracker._hardware[0]._model = "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz"
    assert energy._cpu_label(tracker, None)[0] == "modelled"


def _compare(clock: FakeClock, tracker: FakeTracker | None = None, ratio: float = 2.0, **options: Any) -> Any:
    noise = iter([1 + 0.004 * ((7 * i) % 5 - 2) for i in range(100000)])
    base = Arm("baseline", lambda: clock.work(0.5 * next(noise)), 10)
    student = Arm("student", lambda: clock.work(0.5 / ratio * next(noise)), 10)
    with fake_meter(clock, tracker) as meter:
        return compare_energy([base, student], meter=meter, clock=clock, sleep=clock.work, **options)


def test_half_the_time_at_equal_power_is_half_the_energy() -> None:
    done = _compare(FakeClock(), warmup_s=0)
    student = done.arms["student"]
    # 100 W x 0.5 s / 10 inputs = 5 J an input = 1.389 Wh per 1,000
    assert done.arms["baseline"].wh_per_1k_samples.value == pytest.approx(5 * 1000 / 3600, rel=0.01)
    assert student.wh_per_1k_samples.value == pytest.approx(2.5 * 1000 / 3600, rel=0.01)
    assert student.saving.value == pytest.approx(2.0, rel=0.01)
    assert student.saving.lo <= student.saving.value <= student.saving.hi
    assert student.cpu_time_saving.value == pytest.approx(2.0, rel=0.01)
    assert not student.disagrees
    assert (student.verdict, done.grade, done.rounds, done.discarded) == ("greener", "A", 5, 0)
    assert done.claim("student") == "student takes 50% less energy"
    parts = student.cpu_wh_per_1k_samples + student.ram_wh_per_1k_samples + student.gpu_wh_per_1k_samples
    assert parts == pytest.approx(student.wh_per_1k_samples.value, rel=0.01)


def test_an_arm_against_itself_is_equivalent_and_a_slower_one_hungrier() -> None:
    assert _compare(FakeClock(), ratio=1.0).arms["student"].verdict == "equivalent"
    worse = _compare(FakeClock(), ratio=0.5)
    assert worse.arms["student"].verdict == "hungrier"
    assert worse.claim("student") == "student takes 100% more energy"


def test_net_energy_leaves_the_idle_machine_out() -> None:
    # the fake draws 100 W always, so nothing is left when idle power is taken off
    done = _compare(FakeClock())
    assert done.idle_power_w == pytest.approx(100)
    assert done.arms["student"].net_wh_per_1k_samples.value == pytest.approx(0, abs=1e-9)


def test_windows_take_turns_a_b_b_a_and_hold_enough_inputs() -> None:
    clock = FakeClock()
    order: list[str] = []
    arms = [Arm(n, lambda n=n: (order.append(n), clock.work(1.0)), 10) for n in "ab"]  # type: ignore[misc]
    with fake_meter(clock) as meter:
        done = compare_energy(arms, meter=meter, clock=clock, sleep=clock.work, warmup_s=0)
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(runs) == "ababab"  # a, b b, a a, b b, a a, b
    assert all(n >= 200 for n in done.arms["a"].samples)  # counters need 200 inputs a window
    assert all(w.duration_s >= 10 for w in done.arms["a"].windows)


def test_at_grade_d_the_claim_speaks_of_cpu_time() -> None:
    clock = FakeClock()
    done = _compare(clock, FakeTracker(clock, 8, 10, mode="cpu_load"))  # a CPU that is in no table
    assert done.grade == "D"
    assert done.claim("student") == "student takes 50% less CPU time (energy estimated)"
    assert done.idle_power_w is None
    assert done.margin == 0.10
    assert done.seconds_per_window == 3.0


def test_a_cpu_time_ratio_that_disagrees_is_flagged() -> None:
    clock, cpu = FakeClock(), FakeClock(0)

    def burn(wall: float, cpu_s: float) -> None:
        clock.work(wall)
        cpu.work(cpu_s)

    arms = [Arm("a", lambda: burn(1.0, 1.0)), Arm("b", lambda: burn(0.5, 1.0))]
    tracker = FakeTracker(clock, 90, 10, mode="cpu_load")
    with EnergyMeter(tracking_mode="process", make_tracker=tracker, clock=clock, cpu_clock=cpu) as meter:  # type: ignore[arg-type]
        done = compare_energy(arms, meter=meter, clock=clock)
    assert done.arms["b"].saving is not None and done.arms["b"].saving.value == pytest.approx(2)
    assert done.arms["b"].cpu_time_saving is not None and done.arms["b"].cpu_time_saving.value == pytest.approx(1)
    assert done.arms["b"].disagrees


def test_a_window_that_cannot_be_true_costs_its_round_and_is_counted() -> None:
    clock = FakeClock()
    tracker = FakeTracker(clock, 90, 10)
    asked = iter(range(10**6))
    tracker.broken = lambda d: None if next(asked) in (3, 7) else d
    done = _compare(clock, tracker)
    assert done.rounds == 5
    assert done.discarded >= 2
    tracker = FakeTracker(clock, 90, 10)
    count = iter(range(10**6))
    tracker.broken = lambda d: d if next(count) < 2 else None
    with pytest.raises(MeasurementError, match="gave no figures"):
        _compare(clock, tracker)


def test_a_budget_shortens_windows_and_a_hopeless_one_is_refused() -> None:
    clock = FakeClock()
    done = _compare(clock, FakeTracker(clock, 90, 10, mode="cpu_load"), budget_s=20)
    assert done.seconds_per_window == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="budget_s=5 is too little: 2 arms x 5 windows need at least 10 s"):
        _compare(clock, FakeTracker(clock, 90, 10, mode="cpu_load"), budget_s=5)
    with pytest.raises(ConfigError, match=r"seconds_per_window must be at least 1, got 0\.1"):
        _compare(clock, seconds_per_window=0.1)
    with pytest.raises(ConfigError, match="windows must be at least 5, got 2"):
        _compare(clock, windows=2)


def test_calls_too_long_for_the_budget_leave_the_verdict_open() -> None:
    clock = FakeClock()
    arms = [Arm("a", lambda: clock.work(30.0)), Arm("b", lambda: clock.work(10.0))]
    with fake_meter(clock, FakeTracker(clock, 8, 10, mode="cpu_load")) as meter:
        done = compare_energy(arms, meter=meter, clock=clock, budget_s=12)
    assert done.rounds == 3
    assert done.arms["b"].verdict == "inconclusive"
    assert done.reason == "only 3 of 5 windows fitted into 12 s"
    assert done.claim("b") == "energy of b: inconclusive"


def test_units_make_the_round_trip() -> None:
    assert joules_to_kwh(JOULES_PER_KWH) == 1.0
    intensity = CarbonIntensity(500.0, "test")
    joules = 7.2
    per_1k = wh_per_1k_samples(joules)
    assert per_1k == pytest.approx(2.0)
    # 1,000 inputs at once must give the same grams as the figure per 1,000
    assert emissions(joules_to_kwh(1000 * joules), intensity) * 1000 == pytest.approx(
        gco2e_per_1k_samples(per_1k, intensity)
    )
    assert gco2e_per_1k_samples(per_1k, intensity) == pytest.approx(1.0)
    assert emissions(2.0, intensity, pue=1.5) == pytest.approx(1.5)
    with pytest.raises(ConfigError, match="pue must be at least 1"):
        emissions(1.0, intensity, pue=0.5)


def test_without_a_region_there_is_no_intensity_and_no_default() -> None:
    assert carbon_intensity() is None
    assert carbon_intensity(region="") is None
    assert "no region" in NO_INTENSITY


def test_a_country_gives_the_packaged_figure_with_its_source_and_year() -> None:
    france = carbon_intensity("fra")
    assert france is not None
    assert france.value_gco2e_per_kwh == pytest.approx(56.039)
    assert france.year == 2023
    assert "CodeCarbon" in france.source and "France" in france.source
    given = carbon_intensity(value_gco2e_per_kwh=123, source="my utility", year=2025)
    assert given == CarbonIntensity(123, "my utility", 2025)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("FRX",), "Unknown region 'FRX'. Did you mean '"),
        (("france",), "Unknown region 'france'. Did you mean 'FRA'?"),
        (("CAF",), "no figure for region 'CAF'"),
        (("FRA", 100.0), "both given"),
        ((None, -1.0), "must be a number of gCO2e per kWh, >= 0, got -1.0"),
        ((None, math.nan), "got nan"),
        ((None, "12"), "got '12'"),
    ],
)
def test_a_wrong_intensity_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        carbon_intensity(*arguments)
    assert message in str(caught.value)


# --- The real CodeCarbon ---------------------------------------------------------------------------------------------

SESSION = """
import json, sys, time
from mlflow_slim.measurement.energy import EnergyMeter
def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end: pass
with EnergyMeter(cpu_power_w=40, ram_power_w=10) as meter:
    w = meter.measure("spin", lambda: spin(1.0))
    with meter.long_window("train") as train:
        spin(1.0)
    t = train.result
    p = meter.provenance
print(json.dumps([w.energy_j, w.cpu_kwh * 3.6e6, w.ram_kwh * 3.6e6, w.duration_s, t.ram_kwh * 3.6e6, t.duration_s,
                  p.tracking_mode, p.grade([w]), w.cpu_s]))
"""


def _session(home: Path, cwd: Path, **variables: str) -> list[Any]:
    import os

    keep = {k: v for k, v in os.environ.items() if not k.lower().startswith("codecarbon_")}
    root = str(Path(energy.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        cwd=cwd,
        env={**keep, "HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": root, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # CodeCarbon is silent
    result: list[Any] = json.loads(done.stdout)
    return result


def test_stray_files_and_variables_do_not_change_the_energy(tmp_path: Path) -> None:
    import psutil

    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    stray = "[codecarbon]\npue=1.5\ntracking_mode=machine\nforce_ram_power=999\noutput_methods=csv\nlog_level=info\n"
    (tmp_path / "home" / ".codecarbon.config").write_text(stray)
    (tmp_path / "cwd" / ".codecarbon.config").write_text(stray + "save_to_api=true\nexperiment_id=x\napi_key=y\n")
    found = _session(tmp_path / "home", tmp_path / "cwd", CODECARBON_PUE="3", CODECARBON_FORCE_CPU_POWER="1")
    total_j, cpu_j, ram_j, seconds, train_ram_j, train_seconds, mode, _, cpu_s = found
    assert ram_j == pytest.approx(10 * seconds, rel=0.05)
    assert train_ram_j == pytest.approx(10 * train_seconds, rel=0.05)
    assert cpu_j == pytest.approx(40 * cpu_s / psutil.cpu_count(), rel=0.15)  # 10 ms ticks and the start's own work
    assert total_j == pytest.approx(cpu_j + ram_j)
    assert mode == "process"
    assert sorted(p.name for p in (tmp_path / "cwd").iterdir()) == [".codecarbon.config"]


def test_a_malformed_configuration_file_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".codecarbon.config").write_text("pue = 1.5 with no section\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MeasurementError, match=r"\.codecarbon\.config"), EnergyMeter(tracking_mode="process"):
        pass


def test_a_session_needs_no_network_and_gives_the_logger_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with EnergyMeter(tracking_mode="process"):
        pass
    logger = logging.getLogger("codecarbon")
    logger.setLevel(logging.INFO)
    with EnergyMeter(tracking_mode="process") as meter:
        assert logger.level == logging.CRITICAL
        assert meter.provenance.cpu in ("counter", "sampled", "modelled", "assumed")
        assert meter.provenance.ram in ("assumed", "sampled")
    assert logger.level == logging.INFO
