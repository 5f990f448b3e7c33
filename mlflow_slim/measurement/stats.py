"""Estimates with intervals, and the tests that verdicts stand on. numpy and scipy only, no I/O.

Times are compared by the 20 % trimmed mean of paired log ratios with a trimmed t interval, because a
shared machine's timings have heavy right tails: on a busy guest this interval missed the truth in
4.4-5.8 % of the runs at every sample size, a percentile bootstrap of 20-40 rounds in 8-13 %.
Answers are compared on the same rows, so that only the rows on which two models differ carry noise.

Sources: Tukey and McLaughlin 1963 and Yuen 1974 (trimmed t); Woodruff 1952 (quantiles of clustered
samples); Bonett and Price 2012 (paired proportions); McNemar 1947; Efron and Tibshirani 1993
(bootstrap); Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from ..errors import MeasurementError

__all__ = [
    "ACCURACY",
    "EXACT_MATCH",
    "F1_MACRO",
    "F1_MICRO",
    "LABEL_METRICS",
    "MCC",
    "Interval",
    "RowMetric",
    "certifiable_loss",
    "holm",
    "least_half_width",
    "mcnemar_exact",
    "non_inferiority",
    "paired_bootstrap",
    "paired_difference",
    "quantile_interval",
    "ratio_difference",
    "ratio_interval",
    "resampled_difference",
    "smallest_margin",
    "trimmed_mean_interval",
]

Array: TypeAlias = npt.NDArray[Any]
QualityVerdict: TypeAlias = Literal["non-inferior", "worse", "not enough data"]


@dataclass(frozen=True)
class Interval:
    """An estimate with the range that the data leave open.

    Attributes:
        value: The estimate.
        lo: Lower end; nan when the sample is too small to give one.
        hi: Upper end; nan when the sample is too small to give one.
        n: Number of samples (rounds, calls or rows) behind it.
        confidence: Two-sided, 0-1. Each end alone is a one-sided bound at ``(1 + confidence) / 2``.
    """

    value: float
    lo: float
    hi: float
    n: int
    confidence: float

    def __str__(self) -> str:
        return self.format()

    def format(self, digits: int = 2, *, unit: str = "", sign: bool = False) -> str:
        """The interval as a person reads it; ``?`` stands for an end that the sample can't give.

        >>> Interval(1.93, 1.881, 1.984, 120, 0.95).format(unit="x")
        '1.93x [1.88, 1.98]'
        >>> Interval(12.4, 9.0, math.nan, 3, 0.95).format(1, unit=" ms")
        '12.4 ms [9.0, ?]'
        """
        plus = "+" if sign else ""

        def text(x: float) -> str:
            return "?" if math.isnan(x) else f"{x:{plus}.{digits}f}"

        return f"{text(self.value)}{unit} [{text(self.lo)}, {text(self.hi)}]"

    def no_narrower(self, half_width: float) -> Interval:
        """The same estimate with ends at least so far from it."""
        lo, hi = min(self.lo, self.value - half_width), max(self.hi, self.value + half_width)
        return Interval(self.value, lo, hi, self.n, self.confidence)

    def scaled(self, factor: float) -> Interval:
        """The same estimate in another unit; ``factor`` > 0."""
        return Interval(self.value * factor, self.lo * factor, self.hi * factor, self.n, self.confidence)


def trimmed_mean_interval(x: npt.ArrayLike, *, trim: float = 0.2, confidence: float = 0.95) -> Interval:
    """The mean of ``x`` without its ``trim`` smallest and largest parts, with its t interval.

    Args:
        x: ``(n,)`` independent samples.
        trim: Part cut from each side, in [0, 0.5).
        confidence: Two-sided, in (0, 1).

    Raises:
        MeasurementError: Fewer than two samples are left after trimming, or one is not finite.

    Source: Yuen 1974, Biometrika 61, with the winsorized variance.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim must be in [0, 0.5), got {trim}.")
    _check_confidence(confidence)
    samples = np.sort(_finite(x, "samples"))
    n = len(samples)
    middle = _trimmed(samples, trim)
    kept = len(middle)
    if kept < 2:
        raise MeasurementError(f"An interval needs 2 samples or more after trimming, got {kept} of {n}.")
    mean = float(middle.mean())
    winsorized = np.clip(samples, middle[0], middle[-1])
    spread = float(((winsorized - winsorized.mean()) ** 2).sum())
    half = float(special.stdtrit(kept - 1, 0.5 + confidence / 2)) * math.sqrt(spread / (kept * (kept - 1)))
    return Interval(mean, mean - half, mean + half, n, confidence)


def _trimmed(ordered: Array, trim: float) -> Array:
    """What is left of sorted samples without the ``trim`` part at each end."""
    cut = int(trim * len(ordered))
    return ordered[cut : len(ordered) - cut]


def ratio_interval(
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    copies: int = 1,
    trim: float = 0.2,
    confidence: float = 0.95,
) -> Interval:
    """How many times smaller ``candidate`` is than ``baseline``: > 1 means that the candidate is faster.

    Args:
        baseline: ``(n,)`` positive costs, one per round.
        candidate: ``(n,)`` positive costs of the same rounds.
        copies: How many copies of each side took turns, round ``i`` with copy ``i % copies``. From 3 on the interval
            is Student's over the copies' own trimmed means, so that it holds for other copies too; it is never
            narrower than that over the rounds.
        trim: As in `trimmed_mean_interval`, which is applied to the log ratios.
        confidence: Two-sided, in (0, 1).

    Raises:
        MeasurementError: Costs are not positive, not finite, too few, or not paired.
    """
    a, b = _finite(baseline, "baseline costs"), _finite(candidate, "candidate costs")
    _check_paired(a, b)
    if (a <= 0).any() or (b <= 0).any():
        smallest = min(a.min(), b.min())
        raise MeasurementError(f"A ratio needs positive costs, got {smallest}. Make the measured blocks longer.")
    each = np.log(a) - np.log(b)
    logs = trimmed_mean_interval(each, trim=trim, confidence=confidence)
    if copies >= 3 and len(each) >= copies:
        means = [_trimmed(np.sort(each[first::copies]), trim).mean() for first in range(copies)]
        over_copies = trimmed_mean_interval(means, trim=0.0, confidence=confidence)
        reach = max(over_copies.hi - over_copies.value, logs.hi - logs.value)
        logs = Interval(over_copies.value, over_copies.value - reach, over_copies.value + reach, logs.n, confidence)
    return Interval(math.exp(logs.value), math.exp(logs.lo), math.exp(logs.hi), logs.n, confidence)


def quantile_interval(samples: npt.ArrayLike, q: float, confidence: float = 0.95) -> Interval:
    """The ``q`` quantile of samples with a distribution-free interval made of order statistics.

    A bound that no order statistic can give at this confidence (p99 of 50 samples has no upper one) is
    nan: the sample does not tell.

    Args:
        samples: ``(n,)`` independent samples, or ``(blocks, n)`` where the samples of a block may be
            alike (calls made one after the other): then the spread between blocks widens the interval,
            and it is never narrower than for independent samples.
        q: In (0, 1).
        confidence: Two-sided, in (0, 1).

    Raises:
        MeasurementError: No samples, or one is not finite.

    Source: order statistics by the binomial distribution; for blocks Woodruff 1952, JASA 47.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must be in (0, 1), got {q}.")
    _check_confidence(confidence)
    blocks = _finite(samples, "samples", dimensions=(1, 2))
    x = np.sort(blocks.ravel())
    n = len(x)
    value = float(np.quantile(x, q))
    tail = (1 - confidence) / 2
    below = special.bdtr(np.arange(n, dtype=np.float64), n, q)  # P(at most k of n samples lie below the quantile)
    position = (n - 1) * q  # of the estimate, between two samples; the ends must not lie inside of them
    lower = min(int((below <= tail).sum()) - 1, math.floor(position))
    upper = max(int((1 - below > tail).sum()), math.ceil(position))
    if blocks.ndim == 2 and len(blocks) > 1:
        share = (blocks <= value).mean(axis=1)
        error = float(share.std(ddof=1)) / math.sqrt(len(blocks))
        reach = float(special.stdtrit(len(blocks) - 1, 1 - tail)) * error
        lower = min(lower, math.floor((q - reach) * n) - 1)
        upper = max(upper, math.ceil((q + reach) * n))
    return Interval(
        value,
        float(x[lower]) if lower >= 0 else math.nan,
        float(x[upper]) if upper < n else math.nan,
        n,
        confidence,
    )


def paired_difference(
    baseline_correct: npt.ArrayLike, candidate_correct: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Accuracy of the candidate less accuracy of the baseline on the same rows.

    Simulated miss rate of a one-sided 5 % bound: 4-6 % from 872 rows on, up to 8 % when nearly all flips
    are losses (the textbook Wald interval: up to 9.7 %).

    Args:
        baseline_correct: ``(rows,)`` bool.
        candidate_correct: ``(rows,)`` bool, same rows.
        confidence: Two-sided, in (0, 1); 0.90 gives the two one-sided 95 % bounds of `non_inferiority`.

    Raises:
        MeasurementError: No rows, or not paired.

    Source: Bonett and Price 2012, J. Educ. Behav. Stat. 37 (one half-row added per cell pair).
    """
    _check_confidence(confidence)
    a, b = np.asarray(baseline_correct, dtype=bool), np.asarray(candidate_correct, dtype=bool)
    _check_paired(a, b)
    n = len(a)
    lost, won = int((a & ~b).sum()), int((~a & b).sum())
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = p_won - p_lost
    half = float(special.ndtri(0.5 + confidence / 2)) * math.sqrt((p_won + p_lost - middle**2) / (n + 2))
    return Interval((won - lost) / n, max(middle - half, -1.0), min(middle + half, 1.0), n, confidence)


def least_half_width(before: npt.ArrayLike, after: npt.ArrayLike, *, confidence: float) -> float:
    """Half-width below which an interval over rows can't be believed.

    Rows on which both models agree show no spread at all, however few they are; the interval of a share stays open.

    Args:
        before: ``(rows,)`` bool: which the baseline has wholly right.
        after: Likewise the candidate, same rows.
        confidence: Two-sided, in (0, 1).
    """
    bound = paired_difference(before, after, confidence=confidence)
    return (bound.hi - bound.lo) / 2


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value that rows lost (``b``) and rows won (``c``) are equally likely; 1 with no such rows.

    It answers "is there a difference"; a large value is no proof of equality.

    >>> round(mcnemar_exact(0, 6), 5)
    0.03125
    """
    if b < 0 or c < 0:
        raise ValueError(f"Counts must be 0 or more, got {b} and {c}.")
    return min(1.0, 2 * float(special.bdtr(float(min(b, c)), b + c, 0.5))) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being read together, in their order (family-wise error, Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_margin(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest loss of accuracy (0-1) that ``n`` rows can rule out for a candidate as good as the baseline.

    Args:
        n: Rows of the test set, >= 1.
        discordance: Share of rows where exactly one of the two models is right, 0-1.
        power: Chance of a "non-inferior" verdict when the true difference is 0.
        alpha: One-sided error of that verdict.

    >>> round(smallest_margin(3090, 0.05), 3)
    0.01
    """
    if n < 1 or not 0 <= discordance <= 1:
        raise ValueError(f"n must be >= 1 and discordance in [0, 1], got {n} and {discordance}.")
    z = float(special.ndtri(1 - alpha) + special.ndtri(power))
    return min(1.0, z * math.sqrt((discordance * n + 2) / (n + 2) / (n + 2)))


def ratio_difference(
    before: npt.ArrayLike, after: npt.ArrayLike, weights: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Candidate less baseline of a figure that is one sum over rows divided by another, such as a mean over tokens.

    Rows are the sample: tokens of one row aren't independent. The interval is the ratio estimator's (Cochran 1977,
    Sampling Techniques, 6.4: the spread of what each row deviates from its share), with Student's t.

    Args:
        before: ``(rows,)`` sums of the baseline.
        after: ``(rows,)`` sums of the candidate, same rows.
        weights: ``(rows,)`` what the figure is per, >= 0, such as tokens.
        confidence: Two-sided, in (0, 1).

    Raises:
        MeasurementError: Fewer than two rows, not paired, or all weights are 0.

    >>> found = ratio_difference([-2.0, -4.0, -3.0], [-2.2, -4.4, -3.3], [2, 4, 3])
    >>> round(found.value, 3), round(found.lo, 3)
    (-0.1, -0.1)
    """
    _check_confidence(confidence)
    a, b, w = (
        _finite(values, what) for values, what in ((before, "baseline"), (after, "candidate"), (weights, "rows"))
    )
    _check_paired(a, b)
    _check_paired(a, w)
    n, total = len(a), float(w.sum())
    if n < 2 or total <= 0:
        raise MeasurementError(f"An interval needs two rows that count, got {n} with {total:g} in all. Add test rows.")
    gain = b - a
    value = float(gain.sum()) / total
    error = math.sqrt(float(((gain - value * w) ** 2).sum()) * n / (n - 1)) / total
    reach = float(special.stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Interval(value, value - reach, value + reach, n, confidence)


def resampled_difference(
    before: tuple[npt.ArrayLike, npt.ArrayLike],
    after: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Candidate less baseline of a figure that is one sum over rows divided by another, where both depend on the model.

    That is F1 of things found: twice the right ones over those found and those there. Both are resampled together, by
    rows, with a percentile interval.

    Args:
        before: ``(rows,)`` sums of the baseline and what they are divided by.
        after: Likewise of the candidate, same rows.
        seed: Equal seeds give equal intervals.
        resamples: Number of resamples.
        confidence: Two-sided, in (0, 1).

    Raises:
        MeasurementError: No rows, not paired, or nothing to divide by in more than a tenth of the resamples.

    >>> found = resampled_difference(([2.0, 2.0], [2.0, 2.0]), ([2.0, 2.0], [2.0, 2.0]), seed=0)
    >>> (found.value, found.lo, found.hi)
    (0.0, 0.0, 0.0)
    """
    _check_confidence(confidence)
    terms = np.stack([_finite(part, "rows") for part in (*before, *after)], axis=1)
    n = len(terms)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples + 1, 4))
    sums[0] = terms.sum(axis=0)
    for i in range(1, resamples + 1):
        sums[i] = np.bincount(rng.integers(n, size=n), minlength=n) @ terms
    with np.errstate(divide="ignore", invalid="ignore"):
        outcome = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    usable = outcome[1:][np.isfinite(outcome[1:])]
    if len(usable) < 0.9 * resamples or not math.isfinite(outcome[0]):
        raise MeasurementError(
            f"There is nothing to count in {resamples - len(usable)} of {resamples} resamples of {n} rows. Use more."
        )
    lo, hi = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(outcome[0]), float(lo), float(hi), n, confidence)


def certifiable_loss(difference: Interval, *, power: float = 0.8) -> float:
    """The smallest loss that an interval as wide as this one rules out with chance ``power`` when nothing is lost.

    In units of the metric, whichever it is; `smallest_margin` knows about accuracy alone.

    >>> round(certifiable_loss(Interval(0.0, -0.0066, 0.0066, 3090, 0.90)), 3)
    0.01
    """
    z = float(special.ndtri(0.5 + difference.confidence / 2))
    return (difference.hi - difference.lo) / 2 * (1 + float(special.ndtri(power)) / z)


def non_inferiority(difference: Interval, margin: float) -> QualityVerdict:
    """What the interval of candidate less baseline says about losing more than ``margin``.

    The ends are read as one-sided bounds, so an interval of confidence 0.90 tests at 5 %.

    Args:
        difference: Higher is better; turn the sign of a loss before.
        margin: The largest loss that is acceptable, > 0, in units of the metric.

    Returns:
        ``non-inferior`` when the lower end is above ``-margin``, ``worse`` when the upper end is below it,
        else ``not enough data``.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}. Write 0.01 for one point.")
    if difference.lo > -margin:
        return "non-inferior"
    return "worse" if difference.hi < -margin else "not enough data"


@dataclass(frozen=True)
class RowMetric:
    """A metric that depends on the rows only through a sum over them, so that resampling is one matrix product.

    Attributes:
        name: Name in the schema.
        per_row: ``(predictions, references, classes) -> (rows, terms)``.
        finish: ``(..., terms)`` sums to ``(...)`` values.
    """

    name: str
    per_row: Callable[[Array, Array, int], Array]
    finish: Callable[[Array], Array]

    def __call__(self, predictions: npt.ArrayLike, references: npt.ArrayLike) -> float:
        """The metric of label ids ``(rows,)``, or of zeros and ones ``(rows, labels)``."""
        p, r = np.asarray(predictions), np.asarray(references)
        return float(self.finish(self.per_row(p, r, _classes(p, r)).sum(axis=0)))


def _classes(*labels: Array) -> int:
    lowest = min(a.min() for a in labels)
    if lowest < 0:
        raise MeasurementError(f"Label ids start at 0, got {lowest}.")
    return labels[0].shape[1] if labels[0].ndim == 2 else 1 + int(max(a.max() for a in labels))


def _hits(p: Array, r: Array, classes: int) -> Array:  # noqa: ARG001 - one shape for all
    hit = (p == r) if p.ndim == 1 else (p == r).all(axis=1)
    return np.stack([hit, np.ones_like(hit)], axis=1).astype(np.float64)


def _counts(p: Array, r: Array, classes: int) -> Array:
    """Per class: right, predicted, and present; ``(rows, 3 * classes)``."""
    if p.ndim == 1:
        p, r = np.eye(classes)[p], np.eye(classes)[r]
    return np.concatenate([p * r, p, r], axis=1).astype(np.float64)


def _f1_macro(sums: Array) -> Array:
    hit, predicted, present = np.split(sums, 3, axis=-1)
    f1 = 2 * hit / np.maximum(predicted + present, 1)
    return np.asarray((f1 * (present > 0)).sum(axis=-1) / np.maximum((present > 0).sum(axis=-1), 1))


def _f1_micro(sums: Array) -> Array:
    hit, predicted, present = (part.sum(axis=-1) for part in np.split(sums, 3, axis=-1))
    return np.asarray(2 * hit / np.maximum(predicted + present, 1))


def _mcc(sums: Array) -> Array:
    hit, predicted, present = np.split(sums, 3, axis=-1)
    n = present.sum(axis=-1)
    top = hit.sum(axis=-1) * n - (predicted * present).sum(axis=-1)
    bottom = np.sqrt((n**2 - (predicted**2).sum(axis=-1)) * (n**2 - (present**2).sum(axis=-1)))
    return np.asarray(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0))


ACCURACY = RowMetric("accuracy", _hits, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))
EXACT_MATCH = RowMetric("exact_match", _hits, ACCURACY.finish)
F1_MACRO = RowMetric("f1_macro", _counts, _f1_macro)
F1_MICRO = RowMetric("f1_micro", _counts, _f1_micro)
MCC = RowMetric("mcc", _counts, _mcc)
LABEL_METRICS: dict[str, RowMetric] = {m.name: m for m in (ACCURACY, EXACT_MATCH, F1_MACRO, F1_MICRO, MCC)}
"""Metrics of predicted labels by schema name. Macro F1 is the mean over classes present in the references."""


def paired_bootstrap(
    metric: RowMetric | Callable[[Array, Array], float],
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    references: npt.ArrayLike,
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
    relative: bool = False,
) -> Interval:
    """Metric of the candidate less metric of the baseline, with its percentile bootstrap interval.

    Both are scored on the same resampled rows, so what they share cancels.

    Args:
        metric: A `RowMetric` (fast), or ``(predictions, references) -> float``, called twice a resample.
        baseline: ``(rows, ...)`` answers, label ids for a `RowMetric` of single labels.
        candidate: ``(rows, ...)`` answers to the same rows.
        references: ``(rows, ...)``.
        seed: Equal seeds give equal intervals.
        resamples: Number of resamples.
        confidence: Two-sided, in (0, 1).
        groups: ``(rows,)`` what belongs together (a document), resampled as a whole.
        relative: The ratio candidate / baseline in place of the difference.

    Raises:
        MeasurementError: No rows, not paired, or the metric is undefined on more than a tenth of the resamples.
    """
    _check_confidence(confidence)
    a, b, r = np.asarray(baseline), np.asarray(candidate), np.asarray(references)
    _check_paired(a, b)
    _check_paired(a, r)
    n = len(r)
    unit = np.arange(n) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    if len(unit) != n:
        raise MeasurementError(f"groups has {len(unit)} values for {n} rows.")
    units = 1 + int(unit.max())
    rng = np.random.default_rng(seed)
    if isinstance(metric, RowMetric):
        # Rows with the same answers are interchangeable: many rows, few distinct cells, fast resamples.
        if groups is None:
            table, cell_of = np.unique(np.column_stack([a, b, r]), axis=0, return_inverse=True)
            width = table.shape[1] // 3
            a, b, r = (part.squeeze(1) if a.ndim == 1 else part for part in np.split(table, [width, 2 * width], axis=1))
        classes = _classes(a, b, r)
        terms = np.concatenate([metric.per_row(a, r, classes), metric.per_row(b, r, classes)], axis=1)
        if groups is None:
            cells, cell_of = terms, cell_of.ravel()
        else:
            cells, cell_of = np.zeros((units, terms.shape[1])), np.arange(units)
            np.add.at(cells, unit, terms)
        every = np.empty((resamples + 1, cells.shape[1]))
        for i in range(resamples + 1):
            drawn = cell_of if i == 0 else cell_of[rng.integers(units, size=units)]
            every[i] = np.bincount(drawn, minlength=len(cells)) @ cells
        scores = [metric.finish(half) for half in np.split(every, 2, axis=1)]
    else:
        members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
        rows = [np.arange(n)]
        rows += [np.concatenate([members[u] for u in rng.integers(units, size=units)]) for _ in range(resamples)]
        scores = [np.array([float(metric(x[i], r[i])) for i in rows]) for x in (a, b)]
    with np.errstate(divide="ignore", invalid="ignore"):
        outcome = scores[1] / scores[0] if relative else scores[1] - scores[0]
    usable = outcome[1:][np.isfinite(outcome[1:])]
    if len(usable) < 0.9 * resamples or not math.isfinite(outcome[0]):
        raise MeasurementError(
            f"The metric is undefined on {resamples - len(usable)} of {resamples} resamples of {n} rows. Use more rows."
        )
    lo, hi = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(outcome[0]), float(lo), float(hi), n, confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}. Write 0.95 for 95 %.")


def _check_paired(a: Array, b: Array) -> None:
    if len(a) != len(b):
        raise MeasurementError(f"Samples must be paired, got {len(a)} and {len(b)}.")
    if len(a) == 0:
        raise MeasurementError("There are no samples to compare.")


def _finite(x: npt.ArrayLike, what: str, dimensions: tuple[int, ...] = (1,)) -> npt.NDArray[np.float64]:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim not in dimensions or array.size == 0:
        raise MeasurementError(f"Expected {what} in one non-empty array, got the shape {array.shape}.")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise MeasurementError(f"{bad} of {array.size} {what} are not finite.")
    return array
