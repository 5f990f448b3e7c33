"""Which points are worth keeping: dominance that respects intervals, hypervolume against the baseline, the knee.

Works on figures alone and imports numpy only; reading them from MLflow is left to others. Measured figures have
intervals, so the answer is three sets and not two. A point is dominated only when another is better beyond the
intervals (interval dominance, Mlakar et al. 2014); it is surely on the front when every other point is beaten by it
beyond the intervals somewhere; else it is possibly on the front, and `Placed.p_front` says how likely that is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import ConfigError

__all__ = ["Candidate", "Figure", "Objective", "Placed", "find_knee", "hypervolume", "place"]

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Figure:
    """A figure with the ends of its 95 % interval; without them it counts as exact.

    Raises:
        ConfigError: The figure or an end isn't finite, or the figure is outside of its interval.
    """

    value: float
    lo: float | None = None
    hi: float | None = None

    def __post_init__(self) -> None:
        """Checks the order."""
        if not all(map(math.isfinite, (self.value, *self.ends))) or not self.ends[0] <= self.value <= self.ends[1]:
            raise ConfigError(f"A figure must be finite and lie in its interval, got {self.value} in {self.ends}.")

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high end."""
        return (self.value if self.lo is None else self.lo, self.value if self.hi is None else self.hi)


@dataclass(frozen=True)
class Objective:
    """What is wanted of one figure.

    Attributes:
        metric: Name in the schema, such as ``latency/p50_ms``.
        higher_is_better: The direction.
        tolerance: The difference that doesn't matter, >= 0: a share of the other point's figure, or with
            ``absolute`` in the figure's own unit.
        absolute: See ``tolerance``.
    """

    metric: str
    higher_is_better: bool
    tolerance: float = 0.0
    absolute: bool = False

    def __post_init__(self) -> None:
        """Checks the tolerance."""
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"The tolerance of {self.metric} must be at least 0, got {self.tolerance}.")


@dataclass(frozen=True)
class Candidate:
    """A point to be placed.

    Attributes:
        name: Unique among the candidates.
        figures: By metric; must hold every objective's.
    """

    name: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Placed:
    """Where a candidate stands.

    Attributes:
        name: The candidate's.
        front: ``sure``, ``possible`` or ``dominated``.
        dominated_by: Names of those on the front that dominate it, in the candidates' order; when only others
            dominate it, those.
        p_front: Share of resamples, 0 to 1, in which no point of the front (sure or possible) is at least as good
            everywhere and better somewhere.
    """

    name: str
    front: Literal["sure", "possible", "dominated"]
    dominated_by: tuple[str, ...]
    p_front: float

    @property
    def on_front(self) -> bool:
        """Surely or possibly."""
        return self.front != "dominated"


def place(
    candidates: Sequence[Candidate], objectives: Sequence[Objective], *, resamples: int = 400, seed: int = 0
) -> list[Placed]:
    """Places every candidate, in their order.

    ``a`` dominates ``b`` when no figure of ``a`` is worse than ``b``'s by more than the tolerance, one is better by
    more than the tolerance with the whole of its interval, and what it wins weighs more than what it loses. For
    ``p_front`` every figure is drawn from the normal distribution of its interval, independently of the others.

    Args:
        candidates: Points that may be compared.
        objectives: At least one.
        resamples: Draws for ``p_front``, >= 1.
        seed: Of the draws.

    Raises:
        ConfigError: Names repeat, there is no objective, or a figure is missing.
    """
    _check(candidates, objectives)
    if not candidates:
        return []
    middle, low, high, slack = _oriented(candidates, objectives)
    worth = _worth(middle, slack)
    beaten_by = []
    sure = []
    for b in range(len(candidates)):  # row by row: all pairs at once would fill the memory of 10,000 runs
        at = slice(b, b + 1)
        no_worse = np.all(middle >= middle[:, at] - slack[:, at], axis=0)
        better = np.any((low > high[:, at]) & (middle > middle[:, at] + slack[:, at]), axis=0)
        beaten_by.append(np.flatnonzero(no_worse & better & (worth > worth[b])))
        beats = np.any((low[:, at] > high) & (middle[:, at] > middle + slack), axis=0)
        sure.append(bool(beats.sum() == len(candidates) - 1))  # nobody beats itself
    kept = np.array([not len(by) for by in beaten_by])
    chances = _chances(middle, low, high, kept, resamples, np.random.default_rng(seed))
    return [
        Placed(
            candidate.name,
            "dominated" if len(by) else "sure" if is_sure else "possible",
            tuple(candidates[int(a)].name for a in (by[kept[by]] if kept[by].any() else by)),
            float(chance),
        )
        for candidate, by, is_sure, chance in zip(candidates, beaten_by, sure, chances, strict=True)
    ]


def _check(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> None:
    faults = [] if objectives else ["A frontier needs at least one objective."]
    names = Counter(candidate.name for candidate in candidates)
    faults += [f"Two candidates are named {name!r}." for name, times in names.items() if times > 1]
    faults += [
        f"{candidate.name!r} has no figure {objective.metric!r}. Leave it out, or measure it."
        for candidate in candidates
        for objective in objectives
        if objective.metric not in candidate.figures
    ]
    if faults:
        raise ConfigError(faults)


def _oriented(
    candidates: Sequence[Candidate], objectives: Sequence[Objective]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value, low end, high end and tolerance, each ``(objectives, candidates)``, so that more is always better."""
    shape = (len(objectives), len(candidates))
    middle, low, high, slack = (np.empty(shape) for _ in range(4))
    for i, candidate in enumerate(candidates):
        for j, objective in enumerate(objectives):
            figure = candidate.figures[objective.metric]
            sign = 1.0 if objective.higher_is_better else -1.0
            middle[j, i] = sign * figure.value
            low[j, i], high[j, i] = min(ends := [sign * end for end in figure.ends]), max(ends)
            slack[j, i] = objective.tolerance * (1.0 if objective.absolute else abs(figure.value))
    return middle, low, high, slack


def _worth(middle: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """``(candidates,)``: the sum of all figures, each in units of its mean tolerance.

    A candidate may lose a little within each tolerance and win in one figure; three of them could dominate each other
    in a circle and leave nobody. So the sum of wins must exceed the sum of losses.
    """
    unit = slack.mean(axis=1, keepdims=True)
    spread = np.ptp(middle, axis=1, keepdims=True)
    unit = np.where(unit > 0, unit, np.where(spread > 0, spread, 1.0))
    worth: np.ndarray = (middle / unit).sum(axis=0)
    return worth


def _chances(
    middle: np.ndarray, low: np.ndarray, high: np.ndarray, kept: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Share of draws in which nobody of the front (``kept``) is at least as good everywhere and better somewhere."""
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}.")
    spread = (high - low) / (2 * _NORMAL_95)

    def draw(i: int) -> np.ndarray:  # (objectives, resamples)
        return rng.normal(middle[:, i, None], spread[:, i, None], (len(middle), resamples))

    front = {int(i): draw(int(i)) for i in np.flatnonzero(kept)}
    rivals = np.stack(list(front.values()), axis=1)  # (objectives, front, resamples)
    chances = np.empty(middle.shape[1])
    for i in range(middle.shape[1]):
        own = (front[i] if i in front else draw(i))[:, None]
        beaten = np.all(rivals >= own, axis=0) & np.any(rivals > own, axis=0)  # never by itself
        chances[i] = 1 - beaten.any(axis=0).mean()
    return chances


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume that the points dominate beyond the reference, in the units of the axes' product; more is better on each.

    Points that are not better than the reference on every axis add nothing.

    Args:
        points: ``(points, axes)``.
        reference: ``(axes,)``.

    >>> hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]), np.zeros(2))
    6.0
    """
    points = np.asarray(points, dtype=float).reshape(-1, len(reference)) - np.asarray(reference, dtype=float)
    return _volume(points[np.all(points > 0, axis=1)])


def _volume(points: np.ndarray) -> float:
    """By slices along the last axis, from the highest down; each slice's area is that of the points above it."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1])]
    heights = np.append(points[:, -1], 0.0)
    return sum(
        float(heights[i] - heights[i + 1]) * _volume(points[: i + 1, :-1])
        for i in range(len(points))
        if heights[i] > heights[i + 1]
    )


def find_knee(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> Candidate | None:
    """The candidate farthest beyond the plane through the extremes: where more of one costs much of another.

    Axes run from the worst candidate (0) to the best (1); those whose figures are all positive are logarithmic, as
    ratios are what matters there. None when there are fewer than three candidates: two extremes have nothing between
    them.

    Raises:
        ConfigError: As for `place`.
    """
    _check(candidates, objectives)
    if len(candidates) < 3:
        return None
    reach = np.zeros(len(candidates))
    for objective in objectives:
        axis = np.array([candidate.figures[objective.metric].value for candidate in candidates])
        if np.all(axis > 0):
            axis = np.log(axis)
        axis = axis if objective.higher_is_better else -axis
        width = axis.max() - axis.min()
        reach += (axis - axis.min()) / width if width > 0 else 0.0
    return candidates[int(np.argmax(reach))]
