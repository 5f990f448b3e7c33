"""Everything measured about one point, under the names that MLflow will show.

Key names are the schema of the project: ``group/name_unit``. What was not measured is absent from
``metrics``, and ``tags`` has ``slim.absent.<key>`` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What was measured about one point.

    Attributes:
        variant: Name of the point, see `mlflow_slim.artifact.variant_name`.
        metrics: Figures by schema name, finite only.
        tags: Words about the figures, under ``slim.``: ``slim.quality.verdict`` (non-inferior, worse, not enough data),
            ``slim.speed.verdict`` (faster, slower, equivalent, inconclusive), ``slim.energy.grade`` (A to D),
            ``slim.measure.contended`` (true, false), ``slim.absent.<metric>`` (the reason).
        params: Conditions of the measurement, under ``slim.measure.``: threads, rounds, protocol version, batch sizes.
        tables: Rows for people by table name: ``slices``, ``broken_rows``, ``classes``.
        samples: Raw samples by name, so that anyone can recompute the figures.
    """

    variant: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Moves what is not finite out of ``metrics`` and says so in ``tags``: MLflow sorts infinity as best."""
        finite = {key: float(value) for key, value in self.metrics.items() if math.isfinite(value)}
        lost = {
            f"slim.absent.{key}": f"the value was {value}" for key, value in self.metrics.items() if key not in finite
        }
        object.__setattr__(self, "metrics", finite)
        object.__setattr__(self, "tags", {**self.tags, **lost})
