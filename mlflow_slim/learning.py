"""The two ways a model learns a task here: from the labels, or from a teacher's answers and the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .artifact import OptimizedModel
from .interfaces import Context
from .losses import distillation_loss
from .scoring import outputs_of, validation_scorer
from .training import FitOptions, FitResult, fit, training_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["learn_labels", "learn_logits"]


def learn_labels(student: OptimizedModel, context: Context, options: FitOptions, *, label: str) -> FitResult:
    """Trains ``student.model`` in place on the hard labels of the training rows.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
    """

    def loss(model: Any, inputs: dict[str, Any], extra: dict[str, Any]) -> Any:
        return context.task.loss(model(**inputs).logits, extra["labels"], student.spec)

    metric, score = validation_scorer(student, context)
    rows = training_rows(student, context.data.train, context)
    result = fit(student.model, student.processor, rows, loss, score, options, context, metric=metric, label=label)
    student.model.to("cpu")
    return result


def learn_logits(
    student: OptimizedModel,
    teacher: OptimizedModel,
    context: Context,
    options: FitOptions,
    *,
    temperature: float,
    alpha: float,
    label: str,
) -> FitResult:
    """Trains ``student.model`` in place on ``alpha * soft + (1 - alpha) * hard`` loss.

    The teacher answers every training row once, before training; the two may have different tokenizers.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
    """
    teacher_rows = training_rows(teacher, context.data.train, context)
    answers = outputs_of(teacher.model.to(context.device), teacher.processor, teacher_rows)
    teacher.model.to("cpu")
    multi_label = bool(student.spec.get("multi_label"))

    def loss(model: Any, inputs: dict[str, Any], extra: dict[str, Tensor]) -> Tensor:
        logits = model(**inputs).logits
        soft = distillation_loss(logits, extra["teacher_logits"], temperature=temperature, multi_label=multi_label)
        hard: Tensor = context.task.loss(logits, extra["labels"], student.spec)
        return alpha * soft + (1 - alpha) * hard

    metric, score = validation_scorer(student, context)
    rows = training_rows(student, context.data.train, context, {"teacher_logits": answers})
    result = fit(student.model, student.processor, rows, loss, score, options, context, metric=metric, label=label)
    student.model.to("cpu")
    return result
