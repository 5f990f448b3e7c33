"""``prune.heads``: attention heads that matter least are taken out, and the matrices around them shrink.

Importance is the first-order Taylor score of Michel et al. 2019 (arXiv:1905.10650) on training rows. What is left is
trained to answer as before.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel, StepRecord
from ..importance import Importance, fewer_heads
from ..interfaces import Context
from ..recovery import Recovery
from ..structure import check_heads, find_parts

__all__ = ["PruneHeads"]


class PruneHeads(Recovery):
    """Takes out whole attention heads, then trains what is left."""

    name: ClassVar[str] = "prune.heads"

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of the heads to take out.")
    scope: Literal["layer", "global"] = Field(
        "layer", description="layer: the same share of each layer; global: the least important of all layers."
    )
    importance: Importance = Field(
        "auto", description="taylor: what the loss feels; activation: what is sent on; auto: taylor where labels are."
    )
    rows: int = Field(512, ge=1, description="Training rows to score heads on, at most.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when heads of this model can't be taken out; looks at shapes only."""
        check_heads(source.model)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A model with fewer heads; ``source`` is left as it is.

        Raises:
            ModelError: The heads of this architecture can't be taken out.
            TrainingDiverged: The loss became NaN or infinite.
        """
        self.check(source)
        pruned, kept = fewer_heads(
            source, context, sparsity=self.sparsity, scope=self.scope, importance=self.importance, rows=self.rows
        )
        notes = {
            "heads_kept": kept,
            "heads_before": [parts.heads for parts in find_parts(source.model)],
            **self.recover(pruned, source, context, label=self.name),
        }
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model)
