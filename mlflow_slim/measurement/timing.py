"""Speed of several models against a baseline, interleaved in the same minutes, as paired ratios.

On a shared machine the same code, timed in two halves of an hour, differed by 1.4-1.7x; timed in turns,
by 1-2 %. So all arms take turns: a round runs one block of each arm in a fresh random order, and only
ratios within a round count. CPU time is kept beside wall time: others' work stretches the wall, hardly
the CPU time. A hidden copy of the baseline runs as an arm of its own: what it shows is the run's own error.

How the error of a verdict is held down:

- The run stops when its wall intervals are narrow enough, looked at six times at most, never because
  of what the ratio is. Width says nothing about the sign of an effect, so the looks cost no error.
- "faster" and "slower" need the whole interval beyond the practical margin. Equal arms get one of these
  words far less often than the interval misses 1.
- The copy is called off only when its whole interval, too, is beyond the margin: by plain chance one
  good run in twenty has a copy whose interval misses 1 by a hair, and must not be thrown away.

Nothing here knows models or devices: an arm is a callable, its ``synchronize`` waits for the device.
Sources: Bulej et al. 2020 (duet benchmarking), Abedi and Brecht 2017 (randomized interleaving).
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError
from .garbage import no_garbage_collection
from .stats import Interval, quantile_interval, ratio_interval

try:
    import resource
except ImportError:  # Windows: no count of context switches
    resource = None  # type: ignore[assignment]

__all__ = ["Arm", "Contention", "Speedup", "Timings", "compare", "contention", "interleave", "latency"]

Clock: TypeAlias = Callable[[], float]
Floats: TypeAlias = npt.NDArray[np.float64]
SpeedVerdict: TypeAlias = Literal["faster", "slower", "equivalent", "inconclusive"]

CONTROL = "(control)"
LOOKS = 6
FEWEST_ROUNDS = 5  # below, a trimmed interval stands on one or two degrees of freedom
MOST_CALLS = 100_000  # a block or warm-up never runs more, whatever a clock says
P99_CALLS = 1000
BUSY_SHARE = 0.9  # of the CPU seconds that an undisturbed block would use


@dataclass(frozen=True)
class Arm:
    """One thing to time.

    Attributes:
        name: What results are asked for by, unique in a run.
        call: The work, the same for all arms: one request, or one batch.
        synchronize: Returns once the device has finished; None for work that is done when ``call`` returns.
        copies: The same work by further copies, loaded on their own. Where a model lies in memory makes it faster or
            slower by a few percent for as long as it is loaded; copies that take turns show by how much.
    """

    name: str
    call: Callable[[], object]
    synchronize: Callable[[], object] | None = None
    copies: tuple[Callable[[], object], ...] = ()

    def copy(self, number: int) -> Arm:
        """The arm that runs one copy alone; 0 is ``call``, and after the last they begin again."""
        calls = (self.call, *self.copies)
        return replace(self, call=calls[number % len(calls)], copies=())


@dataclass(frozen=True)
class Timings:
    """The raw outcome of one interleaved run; everything else is computed from it.

    Attributes:
        arms: Names in the order given; the first is the baseline. Without the control.
        wall_s: Wall seconds a call by arm, ``(rounds,)``; the control's key is ``(control)``.
        cpu_s: CPU seconds a call of the whole process by arm, ``(rounds,)``.
        calls_wall_s: Wall seconds of every timed call by arm, ``(rounds, calls)``.
        switches: Involuntary context switches of the process during each block by arm, ``(rounds,)``; nan where
            the system doesn't count them.
        warmup_calls: Calls before the first round by arm.
        steady: By arm, whether the first copy's warm-up ended because times had settled, not because its time was up.
        on_device: Arms with a ``synchronize``: their CPU share says nothing.
        threads: Threads that each arm may compute on.
        min_rounds: Rounds that a verdict needs.
        stopped: Why the run ended: ``width``, ``rounds`` (the most allowed) or ``budget``.
        duration_s: Wall seconds of it all, warm-up included.
        load: One-minute load average before and after; empty where unknown.
        copies: How many copies of each arm took turns, round ``i`` with copy ``i % copies``.
    """

    arms: tuple[str, ...]
    wall_s: Mapping[str, Floats]
    cpu_s: Mapping[str, Floats]
    calls_wall_s: Mapping[str, Floats]
    switches: Mapping[str, Floats]
    warmup_calls: Mapping[str, int]
    steady: Mapping[str, bool]
    on_device: frozenset[str]
    threads: int
    min_rounds: int
    stopped: Literal["width", "rounds", "budget"]
    duration_s: float
    load: tuple[float, ...] = ()
    copies: int = 1

    @property
    def rounds(self) -> int:
        """Complete rounds; each has one block of every arm."""
        return len(self.wall_s[self.arms[0]])

    def against(self, baseline: str) -> Timings:
        """The same run with another arm as the baseline; the control belongs to the first baseline only.

        Raises:
            MeasurementError: There is no such arm.
        """
        _check_arm(self, baseline)
        if baseline == self.arms[0]:
            return self
        arms = (baseline, *(arm for arm in self.arms if arm != baseline))
        return replace(self, arms=arms, wall_s={arm: self.wall_s[arm] for arm in arms})

    def rows(self) -> list[dict[str, Any]]:
        """One row per round and arm, for a table that lets anyone recompute the figures."""
        return [
            {
                "round": i,
                "arm": name,
                "calls": self.calls_wall_s[name].shape[1],
                "wall_s_per_call": float(self.wall_s[name][i]),
                "cpu_s_per_call": float(self.cpu_s[name][i]),
                "involuntary_switches": None if math.isnan(self.switches[name][i]) else int(self.switches[name][i]),
            }
            for i in range(self.rounds)
            for name in self.wall_s
        ]


@dataclass(frozen=True)
class Contention:
    """Whether an arm had the processor to itself.

    Attributes:
        cpu_share: Median over blocks of CPU seconds / wall seconds; about 1 for one undisturbed thread.
        switches_per_s: Involuntary context switches per second of wall time; nan where unknown.
        contended: The share is under 0.9 of what an undisturbed block reaches.
        reason: One sentence.
    """

    cpu_share: float
    switches_per_s: float
    contended: bool
    reason: str


@dataclass(frozen=True)
class Speedup:
    """How much faster a candidate is than the baseline; > 1 is faster.

    Attributes:
        wall: Ratio of wall times, the headline. Not to be published when ``noisy``.
        cpu: Ratio of CPU times; None when the CPU clock is too coarse for the blocks.
        verdict: faster, slower, equivalent or inconclusive.
        rounds: Rounds behind it.
        contended: Others' work disturbed the run; ``cpu`` is then the steadier figure, show both.
        noisy: The baseline differs from its own copy, so the ratio means nothing and is to be withheld.
        reason: One sentence that says why this verdict.
        control: Ratio of the baseline to its copy; None when no copy ran.
    """

    wall: Interval
    cpu: Interval | None
    verdict: SpeedVerdict
    rounds: int
    contended: bool
    noisy: bool
    reason: str
    control: Interval | None


def interleave(
    arms: Sequence[Arm],
    *,
    budget_s: float,
    min_rounds: int = 40,
    max_rounds: int = 400,
    block_cpu_s: float = 0.02,
    target_half_width: float = 0.02,
    threads: int = 1,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
    control: bool | Arm = True,
) -> Timings:
    """Times all arms in turns until the wall ratios are known well enough, or the budget is spent.

    The process should do nothing else meanwhile: ``cpu_clock`` counts all its threads. The garbage
    collector is off during the run and left as it was found. Where every arm has copies, they take turns from round
    to round.

    Args:
        arms: Two or more, the baseline first; one alone may be timed for its latencies.
        budget_s: Wall seconds for it all; at most a quarter goes to warm-up, and as much again to that of the copies.
            One block can't be interrupted.
        min_rounds: Rounds that a verdict needs, and before which the width isn't looked at.
        max_rounds: The most rounds.
        block_cpu_s: CPU seconds that the calls of one block should take together.
        target_half_width: Relative half-width of the 95 % intervals of all wall ratios at which to stop.
        threads: Threads that every arm computes on; recorded, and used to judge contention.
        seed: Decides the order of the arms in each round.
        clock: Wall seconds.
        cpu_clock: CPU seconds of this process.
        control: Also time the baseline once more, for the run's own error. An arm of the baseline loaded anew does it
            best: one that shares the baseline's memory keeps that in the caches, and the baseline came out 3 % faster
            than a copy of its own.

    Raises:
        ValueError: An option is out of range, or two arms have one name.
        MeasurementError: The clock stands still, or the budget allows no round at all.
    """
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names) or CONTROL in names:
        raise ValueError(f"Arms need different names, none of them {CONTROL!r}, got {names}.")
    if not (budget_s > 0 and block_cpu_s > 0 and target_half_width > 0 and 2 <= min_rounds <= max_rounds):
        raise ValueError(
            "budget_s, block_cpu_s and target_half_width must be positive and 2 <= min_rounds <= max_rounds, got "
            f"{budget_s}, {block_cpu_s}, {target_half_width}, {min_rounds} and {max_rounds}."
        )
    baseline, copies = arms[0], min(1 + len(arm.copies) for arm in arms)
    twin = replace(control if isinstance(control, Arm) else baseline, name=CONTROL)
    running = [*arms, twin] if control else list(arms)
    load = _load_average()
    start = clock()
    warm: dict[str, tuple[int, bool]] = {}
    calls: dict[str, int] = {}
    blocks: dict[str, list[_Block]] = {arm.name: [] for arm in running}
    looks = {math.ceil(x - 1e-9) for x in np.geomspace(min_rounds, max_rounds, LOOKS)}
    order = random.Random(seed)
    stopped: Literal["width", "rounds", "budget"] = "rounds"
    with no_garbage_collection():
        cap = min(30.0, 0.25 * budget_s / len(arms))
        for arm in arms:
            made, steady, calls[arm.name] = _warm_up(arm.copy(0), cap, block_cpu_s, clock, cpu_clock)
            for i in range(1, copies):  # the code is warm by now, only their memory isn't
                made += _warm_up(arm.copy(i), cap / copies, block_cpu_s, clock, cpu_clock)[0]
            warm[arm.name] = (made, steady)
        if control:
            warm[CONTROL], calls[CONTROL] = warm[baseline.name], calls[baseline.name]
        if isinstance(control, Arm):
            made = sum(_warm_up(twin.copy(i), cap / copies, block_cpu_s, clock, cpu_clock)[0] for i in range(copies))
            warm[CONTROL] = (made, warm[baseline.name][1])
        begin = clock()
        for done in range(max_rounds):
            spent = clock() - begin
            if clock() - start + spent / max(done, 1) > budget_s:
                stopped = "budget"
                break
            for arm in order.sample(running, len(running)):
                turn = arm.copy(done % copies)
                blocks[arm.name].append(_run_block(turn, calls[arm.name], clock, cpu_clock))
            if done + 1 in looks and _half_width(blocks, baseline.name) <= target_half_width:
                stopped = "width"
                break
    if not blocks[baseline.name]:
        raise MeasurementError(
            f"The budget of {budget_s:g} s was spent on warming up {len(arms)} arms. "
            "Give more seconds or a smaller batch."
        )
    return Timings(
        arms=tuple(names),
        wall_s={name: np.array([b.wall_s / len(b.calls) for b in run]) for name, run in blocks.items()},
        cpu_s={name: np.array([b.cpu_s / len(b.calls) for b in run]) for name, run in blocks.items()},
        calls_wall_s={name: np.array([b.calls for b in run]) for name, run in blocks.items()},
        switches={name: np.array([b.switches for b in run]) for name, run in blocks.items()},
        warmup_calls={name: warm[name][0] for name in blocks},
        steady={name: warm[name][1] for name in blocks},
        on_device=frozenset(arm.name for arm in running if arm.synchronize),
        threads=threads,
        min_rounds=min_rounds,
        stopped=stopped,
        duration_s=clock() - start,
        load=(*load, *_load_average()),
        copies=copies,
    )


def compare(timings: Timings, candidate: str, *, margin: float = 0.02) -> Speedup:
    """The speed-up of one arm over the baseline, with a verdict.

    ``faster``: the 95 % interval lies above ``1 + margin``. ``slower``: below ``1 / (1 + margin)``.
    ``equivalent``: between the two. ``inconclusive``: anything else, fewer rounds than asked for, or a run
    whose baseline differs from its own copy.

    Args:
        timings: From `interleave`.
        candidate: Name of an arm.
        margin: The smallest relative difference that matters in practice, > 0.

    Raises:
        MeasurementError: There is no such arm, or there were fewer than 5 rounds.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}. Write 0.02 for 2 %.")
    base = timings.arms[0]
    _check_arm(timings, candidate)
    if candidate == base:
        raise MeasurementError(f"{base!r} is the baseline itself. Name one of: {', '.join(timings.arms[1:])}.")
    if timings.rounds < FEWEST_ROUNDS:
        raise MeasurementError(
            f"The budget ended after {timings.rounds} rounds in {timings.duration_s:.3g} s; "
            f"a ratio needs {FEWEST_ROUNDS}. Give more seconds or a smaller batch."
        )
    wall = _ratio(timings.wall_s, base, candidate, timings.copies)
    cpu = _ratio(timings.cpu_s, base, candidate, timings.copies)
    if wall is None:
        raise MeasurementError(f"The clock stood still in a block of {base!r} or {candidate!r}. Make blocks longer.")
    control = _ratio(timings.wall_s, base, CONTROL, timings.copies) if CONTROL in timings.wall_s else None
    low, high = 1 / (1 + margin), 1 + margin
    noisy = control is not None and (control.lo > high or control.hi < low)
    shares = [contention(timings, arm) for arm in (base, candidate)]
    torn = cpu is not None and _relative_half_width(wall) > 0.05 and _relative_half_width(cpu) < 0.02
    verdict: SpeedVerdict = "inconclusive"
    if noisy:
        assert control is not None
        reason = f"the baseline differs from its own copy by {control.format(3, unit='x')}, so this run can't tell"
    elif timings.rounds < (needed := _rounds_needed(timings)):
        reason = f"the budget ended after {timings.rounds} of at least {needed} rounds"
    elif wall.lo > high:
        verdict, reason = "faster", f"the whole interval is above {high:.3f}"
    elif wall.hi < low:
        verdict, reason = "slower", f"the whole interval is below {low:.3f}"
    elif low <= wall.lo and wall.hi <= high:
        verdict, reason = "equivalent", f"the whole interval is within {low:.3f} to {high:.3f}"
    else:
        ended = {"budget": ", and the budget ended", "rounds": ", after the most rounds allowed", "width": ""}
        reason = f"the interval reaches across {low if wall.lo < low else high:.3f}{ended[timings.stopped]}"
    return Speedup(wall, cpu, verdict, timings.rounds, torn or any(s.contended for s in shares), noisy, reason, control)


def _rounds_needed(timings: Timings) -> int:
    """Rounds that a verdict needs. The interval over copies has their number as its degrees of freedom, whatever the
    rounds, so that two with each copy are enough for it.
    """
    return min(timings.min_rounds, 2 * timings.copies) if timings.copies > 1 else timings.min_rounds


def contention(timings: Timings, arm: str) -> Contention:
    """Whether others' work took the processor from ``arm``, by the CPU time that its blocks got.

    An undisturbed block uses at least one CPU second a second, so a median share under 0.9 is a fact at
    any number of threads. More can't be said of several threads: how much of their time small models
    use varies from block to block on an idle machine, too. Whoever runs the session should watch the
    machine's other work as well (`host.watch`). Arms that wait for a device are not judged.

    Raises:
        MeasurementError: There is no such arm.
    """
    _check_arm(timings, arm)
    shares = timings.cpu_s[arm] / timings.wall_s[arm]
    share = float(np.median(shares))
    seconds = float(timings.calls_wall_s[arm].sum())
    switches = float(timings.switches[arm].sum()) / seconds if seconds > 0 else math.nan
    if arm in timings.on_device:
        return Contention(share, switches, False, "the arm waits for a device, so its CPU share says nothing")
    contended = share < BUSY_SHARE
    reason = f"blocks used {share:.2f} CPU seconds a second, undisturbed ones use 1.00 or more"
    return Contention(share, switches, contended, reason)


def latency(timings: Timings, arm: str, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Latency of single calls in milliseconds: ``p50``, ``p90``, and with 1,000 calls or more ``p99``.

    Calls of one block are not independent, so the spread between blocks widens the intervals. They hold for
    the conditions of this run; how the machine changes from hour to hour is not in them.

    Raises:
        MeasurementError: There is no such arm.
    """
    _check_arm(timings, arm)
    calls_ms = timings.calls_wall_s[arm] * 1e3
    wanted = {"p50": 0.5, "p90": 0.9} | ({"p99": 0.99} if calls_ms.size >= P99_CALLS else {})
    return {name: quantile_interval(calls_ms, q, confidence) for name, q in wanted.items()}


@dataclass(frozen=True)
class _Block:
    wall_s: float
    cpu_s: float
    calls: Floats
    switches: float


def _timed_call(arm: Arm, clock: Clock) -> float:
    begin = clock()
    arm.call()
    if arm.synchronize:
        arm.synchronize()
    return clock() - begin


def _run_block(arm: Arm, calls: int, clock: Clock, cpu_clock: Clock) -> _Block:
    # The arm before left the caches full of its own weights. The baseline follows its copy more often than
    # a candidate does, so a cold first call would count against the candidate: it is made, and not timed.
    # A call as long as a whole block hardly notices, and would cost the budget twice.
    if calls > 1:
        arm.call()
    if arm.synchronize:
        arm.synchronize()
    switches, cpu, wall = _involuntary_switches(), cpu_clock(), clock()
    times = [_timed_call(arm, clock) for _ in range(calls)]
    wall, cpu, switches = clock() - wall, cpu_clock() - cpu, _involuntary_switches() - switches
    return _Block(wall, cpu, np.array(times), switches)


def _warm_up(arm: Arm, cap_s: float, block_cpu_s: float, clock: Clock, cpu_clock: Clock) -> tuple[int, bool, int]:
    """Calls made, whether they became steady, and how many make a block."""
    times: list[float] = []
    cpu: list[float] = []
    start = clock()
    steady = False
    while len(times) < MOST_CALLS and not steady:
        before = cpu_clock()
        times.append(_timed_call(arm, clock))
        cpu.append(cpu_clock() - before)
        spent = clock() - start
        if spent > cap_s:
            break
        # Medians of 10 are looked at every 10th call, or a fast arm would spend its warm-up on them.
        if spent >= 1.0 and len(times) >= 20 and len(times) % 10 == 0:
            last, before_last = np.median(times[-10:]), np.median(times[-20:-10])
            steady = bool(abs(last - before_last) <= 0.05 * before_last)
    wall_s, cpu_s = float(np.median(times[-20:])), float(np.median(cpu[-20:]))
    if wall_s <= 0:
        # A call below the resolution of the clock: the mean tells more than the median.
        wall_s = sum(times) / len(times)
        if wall_s <= 0:
            raise MeasurementError(
                f"The clock stood still over {len(times)} calls of {arm.name!r}. Let a call do more."
            )
    # A device arm may use next to no CPU time: its blocks are bounded by the wall instead.
    by_wall = 10 * block_cpu_s / wall_s
    by_cpu = block_cpu_s / cpu_s if cpu_s > 0 else block_cpu_s / wall_s
    return len(times), steady, max(1, min(math.ceil(min(by_cpu, by_wall)), MOST_CALLS))


def _ratio(costs: Mapping[str, Floats], base: str, candidate: str, copies: int = 1) -> Interval | None:
    if (costs[base] <= 0).any() or (costs[candidate] <= 0).any():
        return None
    return ratio_interval(costs[base], costs[candidate], copies=copies)


def _relative_half_width(interval: Interval) -> float:
    return (math.log(interval.hi) - math.log(interval.lo)) / 2


def _half_width(blocks: Mapping[str, list[_Block]], base: str) -> float:
    """The widest of the wall ratios, as a relative half-width; infinite while one can't be computed.

    Over rounds only: more of them can't make the part that is between copies any smaller.
    """
    wall = {name: np.array([b.wall_s / len(b.calls) for b in run]) for name, run in blocks.items()}
    ratios = [_ratio(wall, base, name) for name in wall if name != base]
    return max((_relative_half_width(r) if r else math.inf for r in ratios), default=math.inf)


def _check_arm(timings: Timings, name: str) -> None:
    if name not in timings.wall_s:
        raise MeasurementError(f"There is no arm {name!r}. Known: {', '.join(timings.wall_s)}.")


def _involuntary_switches() -> float:
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw) if resource else math.nan


def _load_average() -> tuple[float, ...]:
    try:
        return (os.getloadavg()[0],)
    except (AttributeError, OSError):
        return ()
