"""``prune.depth``: the layers that change the answers least are taken out; what is left is trained.

Importance is how much a layer turns the hidden states, 1 - cos(input, output), as ShortGPT does (Men et al. 2024,
arXiv:2403.03853, eq. 1), or the position alone (``spread``, ``first``, ``last``, ``alternate``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

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

    layers: int | tuple[int, ...] | None = Field(
        None, description="How many layers to keep, or which; default: half of them."
    )
    importance: Literal["activation", "spread", "alternate", "first", "last"] = Field(
        "activation",
        description="Which layers stay when a number is given: activation (those that change the hidden states "
        "most), or by position: spread, alternate, first, last.",
    )
    rows: int = Field(512, ge=1, description="Training rows to score layers on, at most.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when the model has no such layers; looks at shapes only."""
        total = len(find_layers(source.model)[1])
        if isinstance(self.layers, tuple):
            checked_layers(self.layers, total)
        elif self.layers is not None:
            choose_layers(total, self.layers)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A model with fewer layers; ``source`` is left as it is.

        Raises:
            ModelError: The model has no such layers, or no list of layers at all.
            TrainingDiverged: The loss became NaN or infinite.
        """
        self.check(source)
        total = len(find_layers(source.model)[1])
        notes: dict[str, Any] = {"layers_before": total}
        count = self.layers if self.layers is not None else max(1, total // 2)
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
