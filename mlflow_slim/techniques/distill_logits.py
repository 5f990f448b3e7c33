"""``distill.logits``: a smaller student learns the teacher's softened answers (Hinton, Vinyals, Dean 2015).

The teacher is the model that comes into the step. Its logits on the training rows are computed once
and kept, so the teacher costs one forward pass over the data whatever the number of epochs. Of a language model the
likeliest tokens at each place are kept, on disk (Agarwal et al. 2024, arXiv:2306.13649, for learning from texts that
the student writes itself).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..depth import LayerMap
from ..errors import ConfigError
from ..interfaces import Context
from ..learning import learn_logits
from ..lessons import Teaching
from ..losses import Divergence
from ..runtime import tasks
from ..student import check_student, make_student
from ..training import FitOptions

__all__ = ["DistillLogits"]


class DistillLogits(BaseModel):
    """Trains a student on ``alpha * soft + (1 - alpha) * hard`` loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "distill.logits"
    generates: ClassVar[bool] = True

    student: str | None = Field(
        None, description="Another model as the student (folder, hub id, URI); default: fewer layers of the teacher."
    )
    layers: int | tuple[int, ...] | None = Field(
        None, description="How many of the teacher's layers the student keeps, or which; default: half."
    )
    layer_map: LayerMap = Field(
        "spread", description="Which layers when a number is given: spread, alternate, first, last."
    )
    temperature: float = Field(2.0, gt=0, le=100, description="Softening of both distributions.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the soft loss; the rest is the hard labels'.")
    divergence: Divergence = Field(
        "forward_kl",
        description="Soft loss: forward_kl (cover all that the teacher holds for possible), reverse_kl (keep to what "
        "it holds for likely), jsd (between).",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="Weight of the teacher in the mixture; jsd only.")
    top_k: int = Field(
        64, ge=1, le=4096, description="Teacher's likeliest tokens that are kept for each place; language models only."
    )
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of batches in which the student writes the answers itself and the teacher judges them; "
        "language models only, and slow.",
    )
    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when a student can't be made from ``source``; looks at shapes only."""
        if self.on_policy and tasks.find(source.task).KIND != "generator":
            raise ConfigError(f"on_policy is for models that write texts, not for {source.task}. Leave it out.")
        if self.on_policy and not int(source.spec["max_new_tokens"]):
            raise ConfigError("on_policy needs answers. Write generate.max_new_tokens of 1 or more.")
        check_student(source, student=self.student, layers=self.layers, layer_map=self.layer_map)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The student; ``source`` is the teacher.

        Raises:
            ModelError: The student can't be made from this teacher.
            TrainingDiverged: The loss became NaN or infinite.
        """
        student, made = make_student(
            source, context, student=self.student, layers=self.layers, layer_map=self.layer_map
        )
        result = learn_logits(
            student,
            source,
            context,
            FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay),
            Teaching(self.temperature, self.alpha, self.divergence, self.beta, self.top_k, self.on_policy),
            label=self.name,
        )
        record = StepRecord(self.name, self.model_dump(mode="json"), {**made, **result.notes()})
        return source.after(record, student.model, processor=student.processor, spec=student.spec)
