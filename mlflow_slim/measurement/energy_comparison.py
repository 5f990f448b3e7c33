"""Whether a candidate takes less energy than the baseline: windows in turns, paired ratios, one verdict.

How a window's energy is obtained and graded is `energy`'s; here windows of all arms take turns in one process, and
only those of one round are compared, so that drift of the machine cancels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from ..errors import ConfigError, MeasurementError
from .carbon import wh_per_1k_samples
from .energy import EnergyMeter, EnergyWindow, Grade, Provenance

if TYPE_CHECKING:
    from .stats import Interval

__all__ = ["ArmEnergy", "EnergyArm", "EnergyComparison", "compare_energy"]

Verdict = Literal["baseline", "greener", "hungrier", "equivalent", "inconclusive"]


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
