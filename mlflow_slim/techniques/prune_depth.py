"""``prune.depth``: the layers that change the answers least are taken out; what is left is trained.

Importance is how much a layer turns the hidden states, 1 - cos(input, output), as ShortGPT does (Men et al. 2024,
arXiv:2403.03853, eq. 1), or the position alone (``spread``, ``first``, ``last``, ``alternate``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ..artifact import OptimizedModel, StepRecord
from ..depth import checked_layers, choose_layers, find_layers, keep_layers
from ..importance import layer_scores
from ..interfaces import Context
from ..recovery import Recovery

__all__ = ["PruneDepth"]


class PruneDepth(Recovery):
    """Takes out whole layers, then trains what is left."""

    name: ClassVar[str] = "prune.depth"
    generates: ClassVar[bool] = True

    layers: int | float | tuple[int, ...] | None = Field(
        None,
        description="How many layers to keep, which, or what share of them (a number below 1); default: half of them.",
    )
    importance: Literal["activation", "spread", "alternate", "first", "last"] = Field(
        "activation",
        description="Which layers stay when a number is given: activation (those that change the hidden states "
        "most), or by position: spread, alternate, first, last.",
    )
    rows: int = Field(512, ge=1, description="Training rows to score layers on, at most.")

    @field_validator("layers")
    @classmethod
    def _share_or_number(cls, value: Any) -> Any:
        if not isinstance(value, float) or 0 < value < 1:
            return value
        if value.is_integer():
            return int(value)
        raise ValueError(
            f"layers is {value:g}. Write a whole number, a list of layers, or a share above 0 and below 1."
        )

    def check(self, source: OptimizedModel) -> None:
        """Raises when the model has no such layers; looks at shapes only."""
        count = self._count(source)
        total = len(find_layers(source.model)[1])
        if isinstance(count, tuple):
            checked_layers(count, total)
        else:
            choose_layers(total, count)

    def _count(self, source: OptimizedModel) -> int | tuple[int, ...]:
        """How many layers are kept, or which."""
        total = len(find_layers(source.model)[1])
        if self.layers is None:
            return max(1, total // 2)
        return max(1, round(self.layers * total)) if isinstance(self.layers, float) else self.layers

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A model with fewer layers; ``source`` is left as it is.

        Raises:
            ModelError: The model has no such layers, or no list of layers at all.
            TrainingDiverged: The loss became NaN or infinite.
        """
        self.check(source)
        total = len(find_layers(source.model)[1])
        notes: dict[str, Any] = {"layers_before": total}
        count = self._count(source)
        if isinstance(count, tuple):
            kept = sorted(set(count))
        elif self.importance == "activation":
            scores = layer_scores(source, context, rows=self.rows)
            notes["layer_scores"] = [round(score, 5) for score in scores]
            kept = sorted(sorted(range(total), key=lambda layer: -scores[layer])[:count])
        else:
            kept = choose_layers(total, count, self.importance)
        notes["layers_kept"] = kept
        pruned = replace(source, model=keep_layers(source.model, kept))
        notes |= self.recover(pruned, source, context, label=self.name)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model)
