"""Training a pruned model until it answers well again: the options every pruning technique shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .artifact import OptimizedModel
from .interfaces import Context
from .learning import learn_labels, learn_logits
from .lessons import Teaching
from .training import FitOptions

__all__ = ["Recovery"]


class Recovery(BaseModel):
    """Options of a technique that takes parts out of a model and then trains what is left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recovery: Literal["distill", "finetune", "none"] = Field(
        "distill",
        description="How quality comes back: distill (the model that the recipe starts from teaches), finetune "
        "(labels alone), none (a later step does it).",
    )
    temperature: float = Field(2.0, gt=0, le=100, description="Softening of both distributions; distill only.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the soft loss against hard labels; distill only.")
    hidden_weight: float = Field(
        1.0,
        ge=0,
        le=1e4,
        description="Weight of imitating the hidden states of the model before pruning, where depth and width are "
        "still the same; distill only.",
    )
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def recover(
        self, pruned: OptimizedModel, source: OptimizedModel, context: Context, *, label: str
    ) -> Mapping[str, Any]:
        """Trains ``pruned.model`` in place; what to note about it.

        Args:
            pruned: The model with parts taken out.
            source: The model they were taken from, the teacher where the context knows no other.
            context: Rows, seed, device.
            label: Name of the technique, for messages.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        if self.recovery == "none":
            pruned.model.eval()
            return {}
        options = FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay)
        if self.recovery == "finetune":
            return learn_labels(pruned, context, options, label=label).notes()
        same = _state_sizes(pruned) == _state_sizes(source)
        return learn_logits(
            pruned,
            context.original or source,
            context,
            options,
            Teaching(self.temperature, self.alpha),
            label=label,
            guide=source if same else None,
            hidden_weight=self.hidden_weight,
        ).notes()


def _state_sizes(source: OptimizedModel) -> tuple[int, int]:
    """Depth and width of the hidden states."""
    return int(source.model.config.num_hidden_layers), int(source.model.config.hidden_size)
