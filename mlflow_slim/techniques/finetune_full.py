"""``finetune.full``: all weights are trained on the hard labels of the training rows.

Also makes the baseline when the given model has no trained head for the data's labels.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..interfaces import Context
from ..learning import learn_labels
from ..training import FitOptions

__all__ = ["FinetuneFull"]


class FinetuneFull(BaseModel):
    """Fine-tunes every weight with AdamW on the task's own loss; keeps the best epoch by validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "finetune.full"
    generates: ClassVar[bool] = True

    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A trained copy of ``source``.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        tuned = replace(source, model=copy.deepcopy(source.model))
        options = FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay)
        result = learn_labels(tuned, context, options, label=self.name)
        record = StepRecord(self.name, self.model_dump(mode="json"), result.notes())
        return source.after(record, tuned.model)
