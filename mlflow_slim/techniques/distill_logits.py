"""``distill.logits``: a smaller student learns the teacher's softened answers (Hinton, Vinyals, Dean 2015).

The teacher is the model that comes into the step. Its logits on the training rows are computed once
and kept, so the teacher costs one forward pass over the data whatever the number of epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..depth import LayerMap
from ..interfaces import Context
from ..losses import distillation_loss
from ..scoring import outputs_of, validation_scorer
from ..student import check_student, make_student
from ..training import FitOptions, fit, training_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DistillLogits"]


class DistillLogits(BaseModel):
    """Trains a student on ``alpha * soft + (1 - alpha) * hard`` loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "distill.logits"

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
    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when a student can't be made from ``source``; looks at shapes only."""
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
        teacher_rows = training_rows(source, context.data.train, context)
        teacher = outputs_of(source.model.to(context.device), source.processor, teacher_rows)
        source.model.to("cpu")
        multi_label = bool(source.spec.get("multi_label"))

        def loss(model: object, inputs: dict[str, object], extra: dict[str, Tensor]) -> Tensor:
            logits = model(**inputs).logits  # type: ignore[operator]
            soft = distillation_loss(
                logits, extra["teacher_logits"], temperature=self.temperature, multi_label=multi_label
            )
            hard: Tensor = context.task.loss(logits, extra["labels"], source.spec)
            return self.alpha * soft + (1 - self.alpha) * hard

        metric, score = validation_scorer(student, context)
        result = fit(
            student.model,
            student.processor,
            training_rows(student, context.data.train, context, {"teacher_logits": teacher}),
            loss,
            score,
            FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay),
            context,
            metric=metric,
            label=self.name,
        )
        record = StepRecord(self.name, self.model_dump(mode="json"), {**made, **result.notes()})
        return source.after(record, student.model.to("cpu"), processor=student.processor, spec=student.spec)
