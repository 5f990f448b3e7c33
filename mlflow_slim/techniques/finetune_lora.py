"""``finetune.lora``: small matrices of low rank beside the frozen ones are trained and then merged into them.

Hu et al. 2021 (arXiv:2106.09685), through peft. What is trained fits in a few MiB; after merging, the model is an
ordinary one with the shape and the latency of the one it came from. With ``base=nf4`` the frozen matrices are kept in
4 bits while training, and the model that comes out has the weights these stand for, plus what was learned.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..interfaces import Context
from ..lora import Adapters, check_nf4, learn_adapters
from ..structure import find_parts
from ..training import FitOptions

__all__ = ["FinetuneLora"]


class FinetuneLora(BaseModel):
    """Trains low-rank adapters and the task's head on the labels, then merges the adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "finetune.lora"
    generates: ClassVar[bool] = True

    rank: int = Field(8, ge=1, le=1024, description="Rank of each adapter.")
    alpha: int = Field(16, ge=1, description="Scale of the adapters; they count alpha / rank times.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what the adapters read.")
    targets: Literal["attention", "all"] = Field(
        "all", description="Which matrices get an adapter: attention, or those of the feed-forward parts too."
    )
    base: Literal["float", "nf4"] = Field(
        "float", description="How the frozen matrices are kept while training: nf4 is 4 bits (QLoRA), for memory."
    )
    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate of AdamW; adapters take a high one.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when it isn't known where this model's matrices are, or bitsandbytes is needed and missing."""
        find_parts(source.model)
        if self.base == "nf4":
            check_nf4()

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A trained copy of ``source`` with the adapters merged.

        Raises:
            ModelError: The parts of this architecture aren't known, or merging changed the answers.
            TrainingDiverged: The loss became NaN or infinite.
        """
        options = FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay)
        adapters = Adapters(self.rank, self.alpha, self.dropout, self.targets, self.base)
        model, notes = learn_adapters(source, context, options, adapters, label=self.name)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), model)
