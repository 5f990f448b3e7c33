"""``prune.width``: feed-forward neurons, and if asked heads and dimensions of the hidden states, are taken out.

Neurons go by first-order Taylor scores (Molchanov et al. 2019, arXiv:1906.10771) or by what they send on; every layer
keeps equally many, so that the configuration can say so. Hidden dimensions go by the same scores summed over all
matrices that read them (Muralidharan et al. 2024, arXiv:2407.14679, sum likewise over layers); every matrix and the
embeddings get narrower, which harms more than neurons for the same size. What is left is trained to answer as before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ModelError
from ..importance import Importance, fewer_heads, keep_most_important, unit_scores
from ..interfaces import Context
from ..recovery import Recovery
from ..structure import check_heads, find_parts, keep_neurons, keep_width

__all__ = ["PruneWidth"]


class PruneWidth(Recovery):
    """Makes the feed-forward parts, and if asked the hidden states, narrower, then trains what is left."""

    name: ClassVar[str] = "prune.width"
    generates: ClassVar[bool] = True

    sparsity: float = Field(0.5, ge=0, lt=1, description="Share of each layer's feed-forward neurons to take out.")
    hidden_sparsity: float = Field(
        0.0, ge=0, lt=1, description="Share of the hidden states' dimensions to take out, rounded to whole heads."
    )
    head_sparsity: float = Field(0.0, ge=0, lt=1, description="Share of each layer's attention heads to take out.")
    importance: Importance = Field(
        "auto", description="taylor: what the loss feels; activation: what is sent on; auto: taylor where labels are."
    )
    rows: int = Field(512, ge=1, description="Training rows to score neurons on, at most.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when this model can't be made narrower; looks at shapes only."""
        find_parts(source.model)
        if self.head_sparsity:
            check_heads(source.model)
        if self.hidden_sparsity:
            keep_width(source.model, range(int(source.model.config.num_attention_heads)))

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A narrower model; ``source`` is left as it is.

        Raises:
            ModelError: The parts of this architecture aren't known, or too little would be left.
            TrainingDiverged: The loss became NaN or infinite.
        """
        self.check(source)
        notes: dict[str, Any] = {}
        pruned = source
        if self.sparsity:
            pruned = self._fewer_neurons(pruned, context)
            notes["neurons_kept"] = find_parts(pruned.model)[0].neurons
            notes["neurons_before"] = find_parts(source.model)[0].neurons
        if self.head_sparsity:
            pruned, notes["heads_kept"] = fewer_heads(
                pruned, context, sparsity=self.head_sparsity, scope="layer", importance=self.importance, rows=self.rows
            )
        if self.hidden_sparsity:
            pruned = self._narrower(pruned, context)
            notes["width_kept"] = int(pruned.model.config.hidden_size)
            notes["width_before"] = int(source.model.config.hidden_size)
        if pruned is source:
            raise ModelError("All three sparsities are 0, so nothing would be taken out. Raise one of them.")
        notes |= self.recover(pruned, source, context, label=self.name)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model)

    def _fewer_neurons(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        layers = find_parts(source.model)
        sizes = {parts.down: 1 for parts in layers}
        scores = unit_scores(source, sizes, context, importance=self.importance, rows=self.rows)
        kept = keep_most_important([scores[parts.down] for parts in layers], self.sparsity, scope="layer")
        neurons = {parts.layer: units for parts, units in zip(layers, kept, strict=True)}
        return replace(source, model=keep_neurons(source.model, neurons))

    def _narrower(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        layers = find_parts(source.model)
        config = source.model.config
        width, step = int(config.hidden_size), int(config.num_attention_heads)
        left = max(1, round(width * (1 - self.hidden_sparsity) / step)) * step  # transformers wants a multiple of it
        sizes = {name: 1 for parts in layers for name in (*parts.queries, *parts.up)}
        scores = unit_scores(source, sizes, context, importance=self.importance, rows=self.rows)
        total = np.sum([scores[name] for name in sizes], axis=0)
        kept = sorted(np.argsort(-total, kind="stable")[:left].tolist())
        return replace(source, model=keep_width(source.model, kept))
