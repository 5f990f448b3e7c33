"""Money and pay-back: arithmetic over figures that other modules measured, with their intervals carried through.

Prices, utilisation and request rates are the user's; nothing is looked up. The pay-back counts all that optimizing
took, in the same unit as the saving, and answers "never" unless even the lower end of the saving is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from ..errors import ConfigError
from .carbon import JOULES_PER_KWH

if TYPE_CHECKING:
    from .stats import Interval

__all__ = [
    "UTILISATION",
    "BreakEven",
    "break_even",
    "energy_break_even",
    "money_break_even",
    "saving_per_sample",
    "usd_per_1m_samples",
]

UTILISATION = 0.5
"""Share of the hours paid for in which a server works, unless the user says another; log it with every cost."""


@overload
def usd_per_1m_samples(price_per_hour: float, samples_per_s: float, *, utilisation: float = ...) -> float: ...
@overload
def usd_per_1m_samples(price_per_hour: float, samples_per_s: Interval, *, utilisation: float = ...) -> Interval: ...
def usd_per_1m_samples(
    price_per_hour: float, samples_per_s: float | Interval, *, utilisation: float = UTILISATION
) -> float | Interval:
    """Price of a million samples, in the currency of ``price_per_hour``.

    Args:
        price_per_hour: What the machine costs an hour, >= 0.
        samples_per_s: Throughput; an interval gives an interval, whose low end comes from the high throughput.
        utilisation: Share of the paid hours in which the machine works, in (0, 1].

    Raises:
        ConfigError: A figure is out of its range.

    >>> round(usd_per_1m_samples(0.10, 40, utilisation=0.5), 2)
    1.39
    """
    if not (math.isfinite(price_per_hour) and price_per_hour >= 0):
        raise ConfigError(f"price_per_hour must be 0 or more, got {price_per_hour!r}.")
    if not 0 < utilisation <= 1:
        raise ConfigError(f"utilisation must be in (0, 1], got {utilisation!r}. Write 0.5 for 50 %.")
    if not isinstance(samples_per_s, (int, float)):
        rate = samples_per_s
        value, hi, lo = (
            math.nan if math.isnan(x) else usd_per_1m_samples(price_per_hour, x, utilisation=utilisation)
            for x in (rate.value, rate.lo, rate.hi)
        )
        return type(rate)(value, lo, hi, rate.n, rate.confidence)
    if not (math.isfinite(samples_per_s) and samples_per_s > 0):
        raise ConfigError(f"samples_per_s must be above 0, got {samples_per_s!r}.")
    return price_per_hour / (samples_per_s * 3600 * utilisation) * 1e6


@dataclass(frozen=True)
class BreakEven:
    """When what was spent on optimizing has come back.

    Attributes:
        samples: Samples to serve until then, with their interval; None when it may never come back.
        reason: Why there is no figure; empty when there is one.
    """

    samples: Interval | None
    reason: str = ""

    def days(self, samples_per_day: float) -> Interval | None:
        """Days until then at the user's request rate; None when it may never come back.

        Raises:
            ConfigError: The rate is not positive.
        """
        if not (math.isfinite(samples_per_day) and samples_per_day > 0):
            raise ConfigError(f"samples_per_day must be above 0, got {samples_per_day!r}.")
        return self.samples.scaled(1 / samples_per_day) if self.samples else None


def break_even(invested: float, saving: Interval) -> BreakEven:
    """Samples to serve until the saving has repaid ``invested``; both in one unit, whichever.

    Args:
        invested: What optimizing took, >= 0: training, teacher labelling and failed trials included.
        saving: What one sample saves, with its interval; > 0 is a saving.
    """
    if not (math.isfinite(invested) and invested >= 0):
        raise ConfigError(f"invested must be 0 or more, got {invested!r}.")
    if not saving.lo > 0:
        end = "unknown" if math.isnan(saving.lo) else f"{saving.lo:.3g}"
        return BreakEven(None, f"never: the lower end of the saving per sample is {end}, so there may be no saving")
    samples = type(saving)(
        invested / saving.value, invested / saving.hi, invested / saving.lo, saving.n, saving.confidence
    )
    return BreakEven(samples)


def saving_per_sample(baseline: Sequence[float], candidate: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """What a sample saves, from figures of the same rounds: trimmed mean of the differences with its t interval.

    Args:
        baseline: One figure per sample for each round, such as joules.
        candidate: The same of the candidate, in the same rounds.
        confidence: Of the interval.
    """
    from .stats import trimmed_mean_interval

    return trimmed_mean_interval([b - c for b, c in zip(baseline, candidate, strict=True)], confidence=confidence)


def energy_break_even(
    energy_kwh: float, baseline_j: Sequence[float], candidate_j: Sequence[float], *, confidence: float = 0.95
) -> BreakEven:
    """When the energy of optimizing has come back, from joules per sample of the same rounds.

    >>> energy_break_even(0.05, [0.6] * 5, [0.25] * 5).samples.format(0)
    '514286 [514286, 514286]'
    """
    saving = saving_per_sample(baseline_j, candidate_j, confidence=confidence)
    return break_even(energy_kwh * JOULES_PER_KWH, saving)


def money_break_even(invested_usd: float, baseline_usd_per_1m: Interval, candidate_usd_per_1m: Interval) -> BreakEven:
    """When the money spent on optimizing has come back.

    The two costs are not paired, so the saving's ends are taken from their far ends: wider than needed, never narrower.
    """
    b, c = baseline_usd_per_1m, candidate_usd_per_1m
    saving = type(b)(b.value - c.value, b.lo - c.hi, b.hi - c.lo, min(b.n, c.n), min(b.confidence, c.confidence))
    return break_even(invested_usd, saving.scaled(1e-6))
