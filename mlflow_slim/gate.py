"""The gate: every reason why a point must not be promoted, each under the name of the rule that says so.

Rules look at a point as MLflow has it; they load nothing. A rule can be waived by naming it, and that is recorded.
MLflow itself registers the models of FAILED runs and of PENDING uploads as READY; nothing here relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dominance import Figure
from .schema import Meaning

if TYPE_CHECKING:
    from .tracking.stored_points import StoredPoint

__all__ = ["RULES", "WAIVABLE", "Case", "Refusal", "figure_of", "refusals"]


@dataclass(frozen=True)
class Case:
    """What the rules judge.

    Attributes:
        point: The candidate.
        baseline: The point that it was measured against; None when it isn't in the store.
        model_status: Status of its logged model, such as READY; empty when it has none.
        objective: The figure it is chosen by.
        max_quality_drop: Largest loss of the headline metric that is allowed.
        unranked: Why it can't be compared with the others; empty when it can.
    """

    point: StoredPoint
    baseline: StoredPoint | None
    model_status: str
    objective: Meaning
    max_quality_drop: float
    unranked: str = ""


@dataclass(frozen=True)
class Refusal:
    """One rule that a point breaks: its name and a sentence."""

    rule: str
    reason: str


def _unfinished(case: Case) -> str:
    return "" if case.point.status == "FINISHED" else f"its run is {case.point.status}, so it may be half-logged"


def _model(case: Case) -> str:
    if not case.point.models:
        return "its run logged no model"
    if len(case.point.models) > 1:
        return f"its run logged {len(case.point.models)} models, so nobody knows which one was measured"
    return "" if case.model_status == "READY" else f"its model is {case.model_status or 'gone'}, not READY"


def _reload(case: Case) -> str:
    found = case.point.tags.get("slim.reload")
    if found == "same":
        return ""
    because = case.point.tags.get("slim.reload.because", "it was never loaded anew and compared")
    return f"loading it anew was not seen to work: {because}"


def _measured(case: Case) -> str:
    if "slim.imported" in case.point.tags:
        return f"its figures come from {case.point.tags['slim.imported']} and were not measured here"
    missing = [key for key in ("slim.measure.protocol", "slim.measure.test_digest") if key not in case.point.params]
    if missing or f"quality/{case.point.headline}" not in case.point.metrics:
        return "it was not measured"
    return ""


def _contended(case: Case) -> str:
    if case.point.tags.get("slim.measure.contended") != "true":
        return ""
    because = case.point.tags.get("slim.measure.contended_because", "other work on the machine")
    return f"it was measured under contention: {because}"


def _comparable(case: Case) -> str:
    if case.baseline is None:
        return "the original it was measured against is not in the store"
    return f"it can't be compared with the others: {case.unranked}" if case.unranked else ""


def _quality(case: Case) -> str:
    name = f"quality/{case.point.headline}_delta"
    low = case.point.metrics.get(f"{name}_lo")
    if low is None:
        return f"nothing is known about its {case.point.headline} against the original"
    if low >= -case.max_quality_drop:
        return ""
    drop = case.point.metrics.get(name, low)
    smallest = case.point.metrics.get("quality/smallest_margin")
    hint = f"; these rows can certify a drop of {smallest:.3f} at best" if smallest is not None else ""
    return (
        f"its {case.point.headline} may be down by {-low:.4f} (measured {drop:+.4f}), more than the "
        f"{case.max_quality_drop:g} allowed{hint}"
    )


def _slower(case: Case) -> str:
    verdict = case.point.tags.get("slim.speed.verdict")
    if verdict in ("faster", "equivalent"):
        return ""
    if verdict == "slower":
        speed = case.point.metrics.get("speedup/single")
        return "it is slower than the original" + (f" ({speed:.2f}x)" if speed is not None else "")
    because = case.point.tags.get("slim.speed.because", "no verdict")
    return f"it isn't known whether it is slower than the original: {because}"


def _greener(case: Case) -> str:
    verdict = case.point.tags.get("slim.energy.verdict", "")
    if verdict.startswith("greener"):
        return ""
    if not verdict:
        why = case.point.tags.get("slim.absent.energy/wh_per_1k_samples", "its energy was not measured")
        return f"nobody knows whether it is greener: {why}"
    size = case.point.metrics.get("size/compression", 1.0)
    return f"{'smaller, but ' if size > 1 else ''}not greener: the verdict on its energy is {verdict}"


def _gain(case: Case) -> str:
    """The objective must be better than the original's, whatever the intervals allow."""
    metric = case.objective.metric
    own = figure_of(case.point.metrics, metric)
    if own is None:
        why = case.point.tags.get(f"slim.absent.{metric}")
        return f"it has no {metric}" + (f": {why}" if why else "")
    theirs = figure_of(case.baseline.metrics, metric) if case.baseline is not None else None
    if theirs is None or metric.startswith("speedup/"):
        return ""
    bad = own.ends[0] if case.objective.higher_is_better else own.ends[1]
    good = theirs.value
    if (bad > good) if case.objective.higher_is_better else (bad < good):
        return ""
    return f"its {metric} is {own.value:.4g} (at worst {bad:.4g}), no better than the original's {good:.4g}"


def figure_of(metrics: Mapping[str, float], metric: str) -> Figure | None:
    """A figure with its interval, from logged metrics; None when it isn't there."""
    if metric not in metrics:
        return None
    value = metrics[metric]
    return Figure(value, min(value, metrics.get(f"{metric}_lo", value)), max(value, metrics.get(f"{metric}_hi", value)))


RULES: Mapping[str, tuple[str, Callable[[Case], str]]] = {
    "finished": ("its run ended well", _unfinished),
    "model": ("its model was logged whole", _model),
    "reload": ("loaded anew in a fresh process it answered the same", _reload),
    "measured": ("it was measured here", _measured),
    "contended": ("nothing else disturbed the machine", _contended),
    "comparable": ("it was measured like the others, against an original that is in the store", _comparable),
    "quality": ("it is non-inferior at the margin asked for", _quality),
    "slower": ("it is not slower than the original", _slower),
    "greener": ("it takes less energy than the original", _greener),
    "gain": ("the objective is better than the original's, at the bad end of its interval", _gain),
}
"""Rules by name: what they ask for, and the check."""

WAIVABLE = tuple(name for name in RULES if name != "model")
"""All but the one without which there is nothing to promote."""


def refusals(case: Case) -> list[Refusal]:
    """Every rule that the point breaks, in the order of `RULES`."""
    return [Refusal(name, reason) for name, (_, check) in RULES.items() if (reason := check(case))]
