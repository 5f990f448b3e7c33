"""Interleaved timing on a fake clock: who is called slower, who never is, and when the run ends."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mlflow_slim.errors import MeasurementError
from mlflow_slim.measurement.stats import ratio_interval
from mlflow_slim.measurement.timing import CONTROL, Arm, compare, contention, interleave, latency


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """A run begins with a garbage collection; over everything that other tests imported it takes most of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


class Machine:
    """A clock that advances only through work, with neighbours who steal from the wall and little of the CPU."""

    def __init__(self, seed, wall_noise=0.05, cpu_noise=0.02, stolen=0.0, drift=0.0, threads=1):
        self.rng = np.random.default_rng(seed)
        self.wall, self.cpu, self.calls = 0.0, 0.0, 0
        self.wall_noise, self.cpu_noise = wall_noise, cpu_noise
        self.stolen, self.drift, self.threads = stolen, drift, threads

    def arm(self, name, cost=0.004, synchronize=None):
        def call():
            self.calls += 1
            slow = math.exp(self.drift * self.wall)
            cpu = cost * slow * math.exp(self.rng.normal(0, self.cpu_noise))
            self.cpu += cpu
            self.wall += cpu * math.exp(abs(self.rng.normal(0, self.wall_noise))) / self.threads / (1 - self.stolen)

        return Arm(name, call, synchronize)

    def run(self, *arms, **options):
        options = {"budget_s": 60, "clock": lambda: self.wall, "cpu_clock": lambda: self.cpu, **options}
        return interleave(arms, **options)


def speedup(seed, cost, noise=0.05, **options):
    machine = Machine(seed, wall_noise=noise)
    timings = machine.run(machine.arm("base"), machine.arm("new", cost), seed=seed, **options)
    return compare(timings, "new")


def test_an_arm_five_percent_slower_is_called_slower():
    verdicts = [speedup(seed, 0.0042).verdict for seed in range(40)]
    assert verdicts.count("slower") >= 38


def test_an_arm_five_percent_faster_is_called_faster():
    verdicts = [speedup(seed, 0.004 / 1.05).verdict for seed in range(40)]
    assert verdicts.count("faster") >= 38


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_a_copy_of_the_baseline_is_never_called_faster_or_slower(noise):
    outcomes = [speedup(seed, 0.004, noise) for seed in range(40)]
    assert {o.verdict for o in outcomes} <= {"equivalent", "inconclusive"}
    assert sum(o.wall.lo <= 1 <= o.wall.hi for o in outcomes) >= 35
    assert not any(o.noisy for o in outcomes)


def test_a_quiet_machine_finds_a_copy_equivalent():
    outcome = speedup(0, 0.004, noise=0.02)
    assert outcome.verdict == "equivalent"
    assert not outcome.contended
    assert outcome.control is not None and outcome.control.lo <= 1 <= outcome.control.hi


def test_the_ratio_is_right_whatever_the_machine_drifts():
    machine = Machine(0, wall_noise=0.02, drift=0.1)  # costs grow tenfold within 23 s
    timings = machine.run(machine.arm("base"), machine.arm("new", 0.002), target_half_width=0.004, budget_s=25)
    outcome = compare(timings, "new")
    assert timings.wall_s["base"][-1] > 3 * timings.wall_s["base"][0]
    assert outcome.wall.value == pytest.approx(2.0, rel=0.01)
    assert outcome.verdict == "faster"


def test_intervals_hold_the_true_ratio_about_as_often_as_they_say():
    held = [(o := speedup(seed, 0.002, noise=0.2)).wall.lo <= 2 <= o.wall.hi for seed in range(60)]
    assert sum(held) >= 52


def test_a_run_stops_as_soon_as_a_look_finds_the_interval_narrow():
    machine = Machine(0, wall_noise=0.001, cpu_noise=0.001)
    timings = machine.run(machine.arm("base"), machine.arm("new"))
    assert (timings.stopped, timings.rounds) == ("width", 40)
    machine = Machine(0, wall_noise=0.8)
    timings = machine.run(machine.arm("base"), machine.arm("new"), max_rounds=60, target_half_width=1e-4)
    assert (timings.stopped, timings.rounds) == ("rounds", 60)


def test_when_the_budget_ends_the_verdict_is_inconclusive_never_equal():
    machine = Machine(0, wall_noise=0.0, cpu_noise=0.0)
    timings = machine.run(machine.arm("base"), machine.arm("same"), budget_s=1.5)
    outcome = compare(timings, "same")
    assert timings.stopped == "budget"
    assert machine.wall < 1.7
    assert 5 <= timings.rounds < 40
    assert outcome.wall.lo == pytest.approx(1) and outcome.wall.hi == pytest.approx(1)
    assert outcome.verdict == "inconclusive"
    assert f"after {timings.rounds} of at least 40 rounds" in outcome.reason


def test_a_budget_without_rounds_says_what_to_change():
    machine = Machine(0)
    with pytest.raises(MeasurementError, match=r"budget of 1 s was spent on warming up 2 arms"):
        machine.run(machine.arm("base", 3.0), machine.arm("new", 3.0), budget_s=1)
    machine = Machine(0)
    timings = machine.run(machine.arm("base", 1.0), machine.arm("new", 1.0), budget_s=10)
    with pytest.raises(MeasurementError, match="a ratio needs 5"):
        compare(timings, "new")


def test_a_baseline_that_differs_from_its_copy_withholds_the_ratio():
    machine = Machine(0)
    timings = machine.run(machine.arm("base"), machine.arm("new", 0.002))
    biased = {**timings.wall_s, CONTROL: timings.wall_s[CONTROL] * 1.1}
    outcome = compare(replace(timings, wall_s=biased), "new")
    assert outcome.noisy
    assert outcome.verdict == "inconclusive"
    assert "differs from its own copy" in outcome.reason


def test_stolen_time_is_flagged_and_an_undisturbed_run_is_not():
    for stolen, flagged in ((0.0, False), (0.4, True)):
        machine = Machine(0, stolen=stolen, wall_noise=0.02)
        timings = machine.run(machine.arm("base"), machine.arm("new", 0.002))
        assert contention(timings, "base").contended is flagged
        outcome = compare(timings, "new")
        assert outcome.contended is flagged
        assert outcome.verdict == "faster"  # pairs cancel what hits both


def test_two_threads_are_called_contended_only_below_one_cpu():
    machine = Machine(0, threads=1.8, wall_noise=0.02)
    timings = machine.run(machine.arm("base"), machine.arm("new"), threads=2)
    assert contention(timings, "base").cpu_share == pytest.approx(1.8, rel=0.05)
    for factor, flagged in ((1.0, False), (0.6, False), (0.45, True)):
        changed = replace(timings, cpu_s={"base": timings.cpu_s["base"] * factor})
        assert contention(changed, "base").contended is flagged


def test_another_arm_can_be_the_baseline_of_the_same_run():
    machine = Machine(0)
    timings = machine.run(machine.arm("a", 0.004), machine.arm("b", 0.004), machine.arm("c", 0.002))
    outcome = compare(timings.against("b"), "c")
    assert outcome.control is None
    assert outcome.wall.value == pytest.approx(2.0, rel=0.1)
    assert timings.against("a") is timings


def test_a_wide_wall_with_a_narrow_cpu_interval_is_contended():
    machine = Machine(0, wall_noise=0.02)
    timings = machine.run(machine.arm("base"), machine.arm("new", 0.002))
    shaken = timings.wall_s["new"] * np.exp(np.random.default_rng(0).normal(0, 0.4, timings.rounds))
    outcome = compare(replace(timings, wall_s={**timings.wall_s, "new": np.minimum(shaken, 0.0022)}), "new")
    assert outcome.cpu is not None
    assert outcome.contended


def test_an_arm_on_a_device_is_synchronized_and_not_judged_by_its_cpu_share():
    machine = Machine(0, wall_noise=0.02)
    waits = []

    def wait():
        waits.append(1)
        machine.wall += 0.01

    timings = machine.run(machine.arm("base"), machine.arm("new", synchronize=wait))
    assert latency(timings, "new")["p50"].value > 13.5
    assert len(waits) >= timings.calls_wall_s["new"].size
    assert not contention(timings, "new").contended


def test_every_round_has_every_arm_once_and_orders_differ():
    machine = Machine(0)
    order = []

    def spy(name):
        inner = machine.arm(name, 0.03)

        def call():
            order.append(name)
            inner.call()

        return Arm(name, call)

    timings = machine.run(spy("a"), spy("b"), spy("c"), control=False, budget_s=20, max_rounds=50)
    rounds = np.array(order[-3 * timings.rounds :]).reshape(-1, 3)
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds.tolist())
    assert len({tuple(r) for r in rounds.tolist()}) == 6


def test_blocks_are_long_enough_and_their_first_call_is_not_timed():
    machine = Machine(0, wall_noise=0.0, cpu_noise=0.0)
    timings = machine.run(machine.arm("base", 0.003), control=False, max_rounds=40)
    assert timings.calls_wall_s["base"].shape == (40, 7)
    assert machine.calls == timings.warmup_calls["base"] + 40 * 8
    assert timings.wall_s["base"] == pytest.approx(0.003)


def test_warm_up_goes_on_until_times_settle():
    machine = Machine(0, wall_noise=0.0, cpu_noise=0.0)
    count = [0]

    def call():
        count[0] += 1
        machine.wall += 0.004 + 0.2 * math.exp(-count[0] / 30)
        machine.cpu += 0.004

    timings = machine.run(Arm("base", call), budget_s=400)
    assert timings.steady["base"]
    assert timings.warmup_calls["base"] >= 150
    assert timings.wall_s["base"][0] < 0.0055


def test_latencies_come_in_milliseconds_and_p99_only_with_a_thousand_calls():
    machine = Machine(0, wall_noise=0.05)
    timings = machine.run(machine.arm("base", 0.001), control=False, max_rounds=40)
    assert set(latency(timings, "base")) == {"p50", "p90"}
    timings = machine.run(machine.arm("base", 0.001), control=False, max_rounds=60)
    figures = latency(timings, "base")
    assert figures["p99"].n >= 1000
    assert 1.0 < figures["p50"].value < figures["p90"].value < figures["p99"].value < 1.5
    assert figures["p50"].lo < figures["p50"].value < figures["p50"].hi


def test_garbage_collection_is_off_within_and_as_before_afterwards():
    machine = Machine(0)
    seen = set()
    inner = machine.arm("base").call

    def call():
        seen.add(gc.isenabled())
        inner()

    machine.run(Arm("base", call), budget_s=5)
    assert seen == {False}
    assert gc.isenabled()

    def broken():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        machine.run(Arm("base", broken))
    assert gc.isenabled()


def test_equal_seeds_give_equal_orders_and_rows_hold_every_block():
    runs = []
    for _ in range(2):
        machine = Machine(3)
        runs.append(machine.run(machine.arm("base"), machine.arm("new"), seed=5, budget_s=5))
    assert np.array_equal(runs[0].wall_s["new"], runs[1].wall_s["new"])
    rows = runs[0].rows()
    assert len(rows) == 3 * runs[0].rounds
    assert rows[0]["wall_s_per_call"] == runs[0].wall_s["base"][0]


def test_arms_with_one_name_and_options_out_of_range_are_refused():
    machine = Machine(0)
    with pytest.raises(ValueError, match="different names"):
        machine.run(machine.arm("a"), machine.arm("a"))
    with pytest.raises(ValueError, match="must be positive"):
        machine.run(machine.arm("a"), machine.arm("b"), budget_s=0)
    timings = machine.run(machine.arm("a"), machine.arm("b"), budget_s=5)
    with pytest.raises(MeasurementError, match=r"no arm 'c'\. Known: a, b"):
        compare(timings, "c")
    with pytest.raises(MeasurementError, match="is the baseline itself"):
        compare(timings, "a")


def test_a_clock_that_stands_still_is_refused():
    with pytest.raises(MeasurementError, match="stood still"):
        interleave([Arm("a", lambda: None)], budget_s=1, clock=lambda: 0.0, cpu_clock=lambda: 0.0)


def test_a_coarse_cpu_clock_costs_the_cpu_ratio_only():
    machine = Machine(0, wall_noise=0.02)
    timings = machine.run(machine.arm("a"), machine.arm("b", 0.002), cpu_clock=lambda: 0.0)
    outcome = compare(timings, "b")
    assert outcome.cpu is None
    assert outcome.wall.value == pytest.approx(2, rel=0.02)


def test_the_real_clocks_work():
    timings = interleave(
        [Arm("a", lambda: sum(range(2000))), Arm("b", lambda: sum(range(20000)))],
        budget_s=40,  # far more than needed: a busy machine must not fail this
        min_rounds=5,
        max_rounds=8,
        block_cpu_s=0.002,
    )
    outcome = compare(timings, "b")
    assert outcome.wall.value < 0.5


def test_copies_take_turns_and_the_control_has_its_own() -> None:
    seen: list[str] = []

    def calls(name: str) -> list[Callable[[], object]]:
        def one(copy: int) -> Callable[[], object]:
            def call() -> None:
                seen.append(f"{name}{copy}")
                sum(range(2000))

            return call

        return [one(copy) for copy in range(3)]

    arms = [Arm(name, first, copies=tuple(rest)) for name in "ab" for first, *rest in [calls(name)]]
    first, *rest = calls("control")
    own = Arm("a", first, copies=tuple(rest))
    timings = interleave(arms, budget_s=20, min_rounds=6, max_rounds=6, block_cpu_s=1e-9, control=own)
    assert timings.copies == 3 and timings.rounds == 6
    rounds = [seen[-18:][3 * i : 3 * i + 3] for i in range(6)]
    for number, found in enumerate(rounds):
        copy = number % 3
        assert sorted(found) == sorted([f"a{copy}", f"b{copy}", f"control{copy}"])


def test_copies_that_differ_widen_the_interval_and_keep_the_verdict_honest() -> None:
    rng = np.random.default_rng(0)
    rounds, copies = 200, 5
    placement = np.array([0.03, -0.02, 0.01, 0.04, -0.01])  # one copy is faster than another for as long as it lives
    candidate = np.exp(rng.normal(0, 0.02, rounds) + placement[np.arange(rounds) % copies])
    baseline = np.exp(rng.normal(0, 0.02, rounds))
    blind, aware = ratio_interval(baseline, candidate), ratio_interval(baseline, candidate, copies=copies)
    assert not blind.lo <= 1 <= blind.hi
    assert aware.lo <= 1 <= aware.hi
