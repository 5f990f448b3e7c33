"""Quality of one point, and of a candidate against the baseline on the same rows, as metrics, words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError, did_you_mean
from ..interfaces import Split, Task
from .stats import certifiable_loss, non_inferiority

__all__ = ["QualityPart", "headline", "quality_report"]


@dataclass
class QualityPart:
    """The part of a report that is about quality; see `mlflow_slim.measurement.report.Report`."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def headline(task: Task, split: Split, spec: Mapping[str, Any], wanted: str | None) -> tuple[str, str]:
    """The metric to judge by, and why.

    Raises:
        ConfigError: The wanted metric can't be judged by.
    """
    if wanted is None:
        return task.headline(split.references, spec)
    known = task.judged_by(spec)
    if wanted not in known:
        raise ConfigError(f"measure.metric can't be {wanted!r} for these labels. {did_you_mean(wanted, known)}")
    return wanted, "the recipe says so"


def quality_report(
    task: Task,
    split: Split,
    spec: Mapping[str, Any],
    outputs: np.ndarray,
    baseline: np.ndarray | None,
    *,
    metric: str,
    margin: float,
    seed: int,
) -> QualityPart:
    """What the outputs on one split are worth.

    Args:
        task: Scores them.
        split: The rows.
        spec: Of the models.
        outputs: ``(rows, ...)`` raw outputs of the point.
        baseline: The baseline's; None when the point is the baseline.
        metric: Headline metric.
        margin: Largest drop of it that is non-inferior.
        seed: Of the bootstrap.
    """
    part = QualityPart()
    scores = task.quality(outputs, split.references, spec)
    part.metrics.update({f"quality/{name}": value for name, value in scores.items()})
    if baseline is None:
        return part
    before = task.quality(baseline, split.references, spec)
    part.metrics.update(
        {f"quality/{name}_delta": scores[name] - before[name] for name in scores if name in before and "/" not in name}
    )
    part.tags.update(
        {f"slim.absent.quality/{name}": "the model gives answers without scores" for name in before.keys() - scores}
    )
    difference = task.difference(metric, baseline, outputs, split.references, spec, seed=seed)
    part.metrics[f"quality/{metric}_delta"] = difference.value
    part.metrics[f"quality/{metric}_delta_lo"] = difference.lo
    part.metrics[f"quality/{metric}_delta_hi"] = difference.hi
    if before.get(metric, 0) > 0:  # a share of something negative says nothing
        part.metrics[f"quality/{metric}_kept"] = scores[metric] / before[metric]
    part.tags["slim.quality.verdict"] = non_inferiority(difference, margin)

    changes = task.changes(baseline, outputs, split, spec)
    part.metrics.update({f"quality/{name}": value for name, value in changes.metrics.items()})
    part.tags.update(changes.tags)
    part.tables.update(changes.tables)
    flips = changes.metrics.get("negative_flips", 0.0) + changes.metrics.get("positive_flips", 0.0)
    # Flips alone bound accuracy; macro F1 of small classes moves further with as many. An interval of width 0, of
    # no flips at all, promises nothing either.
    certifiable = min(1.0, max(changes.certifiable, certifiable_loss(difference)))
    part.metrics["quality/smallest_margin"] = certifiable
    part.tags["slim.quality.because"] = (
        f"{metric} {difference.value:+.4f} [{difference.lo:+.4f}, {difference.hi:+.4f}] (one-sided 95 % bounds) "
        f"against a margin of {margin:g}; {len(split)} rows with {flips:.1%} flips can certify {certifiable:.3f}"
    )
    return part
