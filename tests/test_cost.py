from __future__ import annotations

import math

import pytest

from mlflow_slim.errors import ConfigError
from mlflow_slim.measurement.cost import (
    UTILISATION,
    break_even,
    energy_break_even,
    money_break_even,
    saving_per_sample,
    usd_per_1m_samples,
)
from mlflow_slim.measurement.stats import Interval


def test_a_machine_that_works_always_costs_its_price_over_its_samples() -> None:
    # 3.60 an hour, 1,000 samples a second: 3.6 million samples an hour, so a million costs 1.00
    assert usd_per_1m_samples(3.6, 1000, utilisation=1.0) == pytest.approx(1.0)
    assert usd_per_1m_samples(3.6, 1000) == pytest.approx(1.0 / UTILISATION)
    assert usd_per_1m_samples(0.0, 1000) == 0.0


def test_twice_the_throughput_is_half_the_cost_and_ends_change_places() -> None:
    cost = usd_per_1m_samples(0.1, Interval(40, 20, 80, 100, 0.95), utilisation=0.5)
    assert cost.value == pytest.approx(1.3889, rel=1e-4)
    assert cost.lo == pytest.approx(cost.value / 2)
    assert cost.hi == pytest.approx(cost.value * 2)
    assert (cost.n, cost.confidence) == (100, 0.95)
    assert math.isnan(usd_per_1m_samples(0.1, Interval(40, math.nan, 80, 3, 0.95)).hi)


@pytest.mark.parametrize(
    ("arguments", "utilisation", "message"),
    [
        ((-1, 40), 0.5, "price_per_hour must be 0 or more, got -1"),
        ((math.inf, 40), 0.5, "price_per_hour"),
        ((1, 0), 0.5, "samples_per_s must be above 0, got 0"),
        ((1, math.nan), 0.5, "samples_per_s"),
        ((1, 40), 0, r"utilisation must be in \(0, 1\], got 0"),
        ((1, 40), 50, r"Write 0\.5 for 50 %"),
    ],
)
def test_figures_out_of_range_are_refused(arguments: tuple[float, float], utilisation: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        usd_per_1m_samples(*arguments, utilisation=utilisation)


def test_energy_comes_back_after_what_was_spent_over_what_a_sample_saves() -> None:
    # 0.05 kWh = 180,000 J; 0.6 - 0.25 J a sample: 514,286 samples
    found = energy_break_even(0.05, [0.58, 0.59, 0.6, 0.61, 0.62], [0.25] * 5)
    assert found.samples is not None
    assert found.samples.value == pytest.approx(514_286, rel=0.01)
    assert found.samples.lo < found.samples.value < found.samples.hi
    assert found.reason == ""
    days = found.days(10_000)
    assert days is not None
    assert days.value == pytest.approx(51.4, rel=0.01)
    assert days.lo < days.value < days.hi


def test_a_larger_saving_comes_back_sooner_and_the_ends_change_places() -> None:
    found = break_even(100.0, Interval(2.0, 1.0, 4.0, 5, 0.95)).samples
    assert found is not None
    assert (found.value, found.lo, found.hi) == (50.0, 25.0, 100.0)
    free = break_even(0.0, Interval(2.0, 1.0, 4.0, 5, 0.95)).samples
    assert free is not None and free.value == 0


@pytest.mark.parametrize("low", [0.0, -0.1, math.nan])
def test_it_never_comes_back_when_there_may_be_no_saving(low: float) -> None:
    found = break_even(100.0, Interval(2.0, low, 4.0, 5, 0.95))
    assert found.samples is None
    assert found.reason.startswith("never")
    assert found.days(10.0) is None


def test_a_hungrier_candidate_never_pays_back() -> None:
    assert energy_break_even(0.05, [0.25] * 5, [0.6] * 5).samples is None


def test_savings_are_taken_within_rounds() -> None:
    # the machine drifts by a factor of 3, the difference doesn't
    saving = saving_per_sample([1.0, 2.0, 3.0, 2.0, 1.0], [0.5, 1.5, 2.5, 1.5, 0.5])
    assert saving.value == pytest.approx(0.5)
    assert saving.hi - saving.lo == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="zip"):
        saving_per_sample([1.0, 2.0], [1.0])


def test_money_comes_back_by_the_difference_of_two_costs() -> None:
    found = money_break_even(1.0, Interval(4.0, 3.5, 4.5, 9, 0.95), Interval(2.0, 1.5, 2.5, 9, 0.95))
    assert found.samples is not None
    assert found.samples.value == pytest.approx(500_000)
    assert found.samples.hi == pytest.approx(1_000_000)  # 3.5 - 2.5 a million
    assert found.samples.lo == pytest.approx(1e6 / 3)
    overlapping = money_break_even(1.0, Interval(4.0, 2.0, 6.0, 9, 0.95), Interval(2.0, 1.0, 3.0, 9, 0.95))
    assert overlapping.samples is None


def test_a_rate_or_an_investment_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples_per_day must be above 0, got 0"):
        break_even(1.0, Interval(1, 1, 1, 5, 0.95)).days(0)
    with pytest.raises(ConfigError, match="invested must be 0 or more, got nan"):
        break_even(math.nan, Interval(1, 1, 1, 5, 0.95))
