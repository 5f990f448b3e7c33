"""The frontier over the tracking store: which points of an experiment are worth keeping, and why the rest isn't ranked.

Points of any run and any day are ranked together when nothing but the models differs: the same task, test rows,
machine, protocol, threads and original. Time and energy depend on the machine's mood, so a figure of another session is
taken through its own baseline: ``value * (baseline here / baseline there)``. Whatever isn't ranked is listed with the
reason.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .dominance import Candidate, Figure, Placed, find_knee, hypervolume, place
from .errors import ConfigError, InputNotFound, did_you_mean
from .schema import ALIASES, HEADLINE, Meaning, check_metrics, known_meaning, meaning, objective

if TYPE_CHECKING:
    from .tracking.stored_points import StoredPoint

__all__ = [
    "ALLOWABLE",
    "DEFAULT_OBJECTIVES",
    "Constraint",
    "Frontier",
    "Ranked",
    "Unranked",
    "find_point",
    "frontier",
    "rank",
]

DEFAULT_OBJECTIVES = ("quality", "latency", "size")

ALLOWABLE = {
    "contended": "points measured while other work disturbed the machine",
    "host": "points of other machines",
    "original": "points measured against another original",
    "protocol": "points of another version of the measuring protocol",
    "threads": "points measured with another number of threads",
    "grade": "energy of another provenance",
}
"""What may be ranked together all the same, when it is asked for."""

_CONDITIONS = {
    "task": ("slim.task", "another task"),
    "rows": ("slim.measure.test_digest", "other test rows"),
    "host": ("slim.host.fingerprint", "another machine"),
    "protocol": ("slim.measure.protocol", "another version of the protocol"),
    "threads": ("slim.measure.threads", "another number of threads"),
    "original": ("slim.baseline.digest", "measured against another original"),
}


@dataclass(frozen=True)
class Constraint:
    """A limit on a figure, held by the bad end of its interval.

    Attributes:
        metric: Name of the figure, or ``quality``.
        at_most: True for ``<=``, False for ``>=``.
        limit: In the figure's unit.
    """

    metric: str
    at_most: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """From ``latency/p90_ms<=20`` or ``quality>=0.8``; raises ConfigError for anything else."""
        found = re.fullmatch(r"\s*([\w/.]+)\s*(<=|>=)\s*([-+.\deE]+)\s*", text)
        try:
            if found is None:
                raise ValueError
            limit = float(found[3])
        except ValueError:
            raise ConfigError(f"{text!r} is no limit. Write for instance latency/p90_ms<=20 or quality>=0.8.") from None
        meaning(found[1])
        return cls(ALIASES.get(found[1], found[1]), found[2] == "<=", limit)

    def broken_by(self, figure: Figure) -> bool:
        """Whether the bad end of the interval is over the limit."""
        low, high = figure.ends
        return high > self.limit if self.at_most else low < self.limit

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True)
class Ranked:
    """A point with its place.

    Attributes:
        point: As MLflow has it.
        placed: Its place; `Placed.name` is the id of its run.
        figures: By metric, all that are known of the schema, those of time and energy as of the reference session.
    """

    point: StoredPoint
    placed: Placed
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Unranked:
    """A point that isn't ranked, and why."""

    point: StoredPoint
    reason: str


@dataclass(frozen=True)
class Frontier:
    """Points of an experiment by their worth.

    Attributes:
        objectives: What was ranked by, in order.
        baseline: The original, in the reference session; None when nothing could be ranked.
        points: Sure ones first, then possible, then dominated; within each by the second objective.
        rest: What isn't ranked, with the reason; the newest first.
        knee: The run of the point of the front where more of one figure begins to cost much of another; None below
            three points.
        hypervolume: How much of the objectives' space the front wins over the baseline: the product of log2 of the
            ratios and of the gain in quality over (baseline - margin) in points; to compare searches only.
        margin: The drop in quality that the hypervolume forgives.
    """

    objectives: tuple[Meaning, ...]
    baseline: StoredPoint | None
    points: tuple[Ranked, ...]
    rest: tuple[Unranked, ...]
    knee: str | None
    hypervolume: float
    margin: float

    @property
    def front(self) -> tuple[Ranked, ...]:
        """Those that nothing dominates."""
        return tuple(ranked for ranked in self.points if ranked.placed.on_front)

    def rows(self) -> list[dict[str, Any]]:
        """One row of plain values a point, ranked or not; all rows have the same keys."""
        metrics = [found.metric for found in self.objectives]
        names = {ranked.point.run_id: ranked.point.title for ranked in self.points}
        rows: list[dict[str, Any]] = []
        for ranked in self.points:
            row = {"variant": ranked.point.title, "front": ranked.placed.front, "p_front": ranked.placed.p_front}
            for metric in metrics:
                figure = ranked.figures[metric]
                row |= {metric: figure.value, f"{metric}_lo": figure.ends[0], f"{metric}_hi": figure.ends[1]}
            by = ", ".join(dict.fromkeys(names[run_id] for run_id in ranked.placed.dominated_by[:3]))
            knee = ranked.point.run_id == self.knee
            rows.append(row | {"knee": knee, "reason": f"dominated by {by}" if by else "", "run": ranked.point.run_id})
        empty = dict.fromkeys(f"{metric}{end}" for metric in metrics for end in ("", "_lo", "_hi"))
        rows += [
            {
                "variant": other.point.title,
                "front": "not ranked",
                "p_front": None,
                **empty,
                "knee": False,
                "reason": other.reason,
                "run": other.point.run_id,
            }
            for other in self.rest
        ]
        return rows


def frontier(
    experiment: str | Sequence[str] | None = None,
    *,
    search: str = "",
    objectives: Sequence[str] = DEFAULT_OBJECTIVES,
    constraints: Sequence[str] = (),
    allow: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> Frontier:
    """The frontier over the points of experiments.

    Args:
        experiment: Names or ids; by default what MLflow's environment variables say, else ``mlflow_slim``.
        search: A further condition in MLflow's filter language.
        objectives: Figures by name or alias (quality, latency, size, energy, memory, ...).
        constraints: Limits such as ``latency/p90_ms<=20``.
        allow: Differences to overlook, see `ALLOWABLE`.
        tracking_uri: The store; by default the one MLflow is set to.

    Raises:
        ConfigError: An objective, a constraint or an allowance isn't known.
        InputNotFound: There is no such experiment.
        TrackingError: The store can't be read.
    """
    check_metrics(objectives)
    limits = [Constraint.parse(text) for text in constraints]
    _check_allowed(allow)
    from .tracking import connect
    from .tracking.stored_points import find_experiments, read_points

    client = connect(tracking_uri)
    names = [experiment] if isinstance(experiment, str) else list(experiment or default_experiment())
    return rank(read_points(client, find_experiments(client, names), search), objectives, limits, allow)


def default_experiment() -> list[str]:
    """What MLflow's environment variables say, else ``mlflow_slim``."""
    from .tracking import DEFAULT_EXPERIMENT

    named = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")
    return [named or DEFAULT_EXPERIMENT]


def _check_allowed(allow: Sequence[str]) -> None:
    faults = [
        f"There is nothing called {name!r} to allow. {did_you_mean(name, list(ALLOWABLE))}"
        for name in allow
        if name not in ALLOWABLE
    ]
    if faults:
        raise ConfigError(faults)


def rank(
    points: Sequence[StoredPoint],
    objectives: Sequence[str] = DEFAULT_OBJECTIVES,
    constraints: Sequence[Constraint] = (),
    allow: Sequence[str] = (),
) -> Frontier:
    """Places the points that may be compared with the newest sound one; see `frontier`."""
    check_metrics(objectives)
    _check_allowed(allow)
    reasons: dict[str, str] = {}  # by run
    by_run = {point.run_id: point for point in points}
    newest_first = sorted(points, key=lambda point: (-point.started, point.run_id))
    for point in newest_first:
        if reason := _unsound(point, allow):
            reasons[point.run_id] = reason
    sound = [point for point in newest_first if point.run_id not in reasons]
    baseline = _reference(sound)
    meanings = _meanings(objectives, baseline)
    if baseline is not None:
        for point in sound:
            if reason := _differs(point, baseline, meanings, allow):
                reasons[point.run_id] = reason
        _drop_repeats([point for point in sound if point.run_id not in reasons], baseline, reasons)
    figures = {}
    for point in sound if baseline is not None else ():
        if point.run_id in reasons:
            continue
        assert baseline is not None
        known = _figures(point, baseline, by_run)
        if reason := _missing(point, known, meanings) or _over_limits(known, constraints, point.headline):
            reasons[point.run_id] = reason
        else:
            figures[point.run_id] = known
    candidates = [Candidate(run_id, known) for run_id, known in figures.items()]
    wanted = [objective(found) for found in meanings]
    placed = place(candidates, wanted)
    ranked = [
        Ranked(by_run[where.name], where, candidate.figures)
        for where, candidate in zip(placed, candidates, strict=True)
    ]
    second = meanings[min(1, len(meanings) - 1)]
    sign = -1 if second.higher_is_better else 1
    order = ("sure", "possible", "dominated")
    ranked.sort(key=lambda one: (order.index(one.placed.front), sign * one.figures[second.metric].value))
    kept = {one.placed.name for one in ranked if one.placed.on_front}
    knee = find_knee([candidate for candidate in candidates if candidate.name in kept], wanted)
    margin = float(baseline.params.get("slim.measure.quality_margin", 0.0)) if baseline is not None else 0.0
    return Frontier(
        objectives=meanings,
        baseline=baseline,
        points=tuple(ranked),
        rest=tuple(Unranked(point, reasons[point.run_id]) for point in newest_first if point.run_id in reasons),
        knee=knee.name if knee else None,
        hypervolume=_gain([one for one in ranked if one.placed.name in kept], baseline, meanings, margin),
        margin=margin,
    )


def _unsound(point: StoredPoint, allow: Sequence[str]) -> str:
    """Why a point can't be ranked with any other; empty when it can."""
    if point.status != "FINISHED":
        return f"its run is {point.status}"
    if "slim.imported" in point.tags:
        return f"imported from {point.tags['slim.imported']}, not measured here"
    if "slim.measure.protocol" not in point.params:
        return "it was not measured"
    if point.tags.get("slim.reload") == "differs":
        return "loaded anew it answers differently"
    if point.tags.get("slim.measure.contended") == "true" and "contended" not in allow:
        because = point.tags.get("slim.measure.contended_because", "other work on the machine")
        return f"contended ({because})"
    if "slim.baseline.digest" not in point.params:
        return "it was logged before originals were told apart (no slim.baseline.digest)"
    return ""


def _reference(sound: Sequence[StoredPoint]) -> StoredPoint | None:
    """The baseline of the newest session that has one."""
    return next((point for point in sound if point.is_baseline), None)


def _meanings(objectives: Sequence[str], baseline: StoredPoint | None) -> tuple[Meaning, ...]:
    headline = baseline.headline if baseline is not None else "accuracy"
    grade = baseline.tags.get("slim.energy.grade") if baseline is not None else None
    return tuple(meaning(name, headline=headline, grade=grade) for name in objectives)


def _differs(point: StoredPoint, baseline: StoredPoint, meanings: Sequence[Meaning], allow: Sequence[str]) -> str:
    """What keeps a point from being compared with those of the reference session; empty when nothing does."""
    for name, (param, words) in _CONDITIONS.items():
        if name not in allow and point.params.get(param) != baseline.params.get(param):
            return words
    if point.headline != baseline.headline:
        return f"its quality is {point.headline}, not {baseline.headline}"
    ours, theirs = (p.tags.get("slim.energy.grade") for p in (baseline, point))
    if any(found.of_energy for found in meanings) and ours != theirs and "grade" not in allow:
        return f"its energy is of grade {theirs or 'none'}, not {ours or 'none'}"
    return ""


def _drop_repeats(points: Sequence[StoredPoint], baseline: StoredPoint, reasons: dict[str, str]) -> None:
    """Of one model measured several times on the same runtime, one point stays: a whole measurement, else the newest.

    The reference baseline stays whatever comes.
    """
    best: dict[str, StoredPoint] = {}
    for point in points:  # the newest first
        key = point.digest or point.run_id
        now = best.setdefault(key, point)
        if now is baseline:
            continue
        if point is baseline or (_is_quick(now) and not _is_quick(point)):
            best[key] = point
    for point in points:
        stays = best[point.digest or point.run_id]
        if stays is not point:
            reasons[point.run_id] = f"the same model was measured again (run {stays.run_id[:8]})"


def _is_quick(point: StoredPoint) -> bool:
    return point.params.get("slim.measure.quick") == "true"


def _figures(point: StoredPoint, baseline: StoredPoint, by_run: Mapping[str, StoredPoint]) -> dict[str, Figure]:
    """Every figure of the schema that the point has, as of the reference session."""
    own = by_run.get(point.baseline_run)
    known = {}
    for metric, value in point.metrics.items():
        if metric.endswith(("_lo", "_hi", "_delta")):
            continue
        found = known_meaning(metric)
        if found is None:
            continue
        low, high = point.metrics.get(f"{metric}_lo", value), point.metrics.get(f"{metric}_hi", value)
        if metric == f"quality/{point.headline}":
            low, high = _quality_ends(point, own, metric, value)
        figure = Figure(value, min(low, value), max(high, value))
        if found.of_a_session and point.session != baseline.session:
            scale = _scale(own, baseline, metric)
            if scale is None:
                continue
            figure = Figure(value * scale, figure.ends[0] * scale, figure.ends[1] * scale)
        known[metric] = figure
    if point.is_baseline:
        known |= {key: Figure(1.0) for key in ("speedup/single", "speedup/offline") if key not in known}
    return known


def _quality_ends(point: StoredPoint, own: StoredPoint | None, metric: str, value: float) -> tuple[float, float]:
    """From the paired difference against the baseline, whose own value counts as exact: the rows are the same."""
    anchor = own.metrics.get(metric) if own is not None else None
    low, high = point.metrics.get(f"{metric}_delta_lo"), point.metrics.get(f"{metric}_delta_hi")
    return (value, value) if anchor is None or low is None or high is None else (anchor + low, anchor + high)


def _scale(own: StoredPoint | None, baseline: StoredPoint, metric: str) -> float | None:
    """The baseline here over the baseline there; None when one of them lacks the figure."""
    there = own.metrics.get(metric) if own is not None else None
    here = baseline.metrics.get(metric)
    return here / there if here and there else None


def _missing(point: StoredPoint, known: Mapping[str, Figure], meanings: Sequence[Meaning]) -> str:
    for found in meanings:
        if found.metric not in known:
            why = point.tags.get(f"slim.absent.{found.metric}")
            if why is None and found.metric in point.metrics:
                why = "its own baseline is not among the points, or lacks it"
            return f"no {found.metric}" + (f": {why}" if why else "")
    return ""


def _over_limits(known: Mapping[str, Figure], constraints: Sequence[Constraint], headline: str) -> str:
    for limit in constraints:
        metric = f"quality/{headline}" if limit.metric == HEADLINE else limit.metric
        figure = known.get(metric)
        if figure is None:
            return f"{metric} is limited and was not measured"
        if limit.broken_by(figure):
            return f"{metric} is {figure.value:.4g} ({figure.ends[0]:.4g} to {figure.ends[1]:.4g}), asked for {limit}"
    return ""


def _gain(front: Sequence[Ranked], baseline: StoredPoint | None, meanings: Sequence[Meaning], margin: float) -> float:
    """See `Frontier.hypervolume`."""
    if baseline is None or len(meanings) < 2:
        return 0.0
    own = _figures(baseline, baseline, {baseline.run_id: baseline})
    if any(found.metric not in own for found in meanings):
        return 0.0
    rows = []
    for one in front:
        row = []
        for found in meanings:
            value, reference = one.figures[found.metric].value, own[found.metric].value
            sign = 1.0 if found.higher_is_better else -1.0
            if found.absolute:
                row.append(100 * (sign * (value - reference) + margin))
            else:
                row.append(sign * math.log2(value / reference) if value > 0 and reference > 0 else 0.0)
        rows.append(row)
    return hypervolume(np.array(rows).reshape(-1, len(meanings)), np.zeros(len(meanings)))


def find_experiment_names(found: Frontier) -> list[str]:
    """Names of the experiments that the ranked points are in."""
    from .tracking import connect

    client = connect()
    ids = dict.fromkeys(one.point.experiment_id for one in found.points)
    return [str(client.get_experiment(experiment_id).name) for experiment_id in ids]


def find_point(points: Sequence[StoredPoint], name: str) -> StoredPoint:
    """The point whose run id (or its beginning), run name or variant is ``name``; the newest of several.

    Raises:
        InputNotFound: There is none.
    """
    for same in (
        [p for p in points if p.run_id == name or (len(name) >= 6 and p.run_id.startswith(name))],
        [p for p in points if name in (p.name, p.variant)],
        [p for p in points if name.removeprefix("models:/") in p.models],
    ):
        if same:
            return max(same, key=lambda p: p.started)
    raise InputNotFound(f"There is no point {name!r}. {did_you_mean(name, sorted({p.variant for p in points}))}")
