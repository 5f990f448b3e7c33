"""The two ways a model learns a task here: from the labels, or from a teacher's answers and the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .artifact import OptimizedModel
from .interfaces import Context
from .losses import distillation_loss, hidden_loss
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
    guide: OptimizedModel | None = None,
    hidden_weight: float = 0.0,
) -> FitResult:
    """Trains ``student.model`` in place on ``alpha * soft + (1 - alpha) * hard`` loss.

    The teacher answers every training row once, before training; the two may have different tokenizers.

    Args:
        student: What is trained.
        teacher: Gives the soft labels.
        context: Rows, seed, device.
        options: How long and how fast.
        temperature: Softening of both distributions, > 0.
        alpha: Weight of the soft loss, 0 to 1.
        label: Name of the technique, for messages.
        guide: A model of the student's depth, width and tokens, whose hidden states are imitated after every layer.
        hidden_weight: Weight of their mean squared error, >= 0.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
    """
    import torch

    teacher_rows = training_rows(teacher, context.data.train, context)
    answers = outputs_of(teacher.model.to(context.device), teacher.processor, teacher_rows)
    teacher.model.to("cpu")
    multi_label = bool(student.spec.get("multi_label"))
    guided = guide is not None and hidden_weight > 0
    if guide is not None:
        guide.model.to(context.device).eval()

    def loss(model: Any, inputs: dict[str, Any], extra: dict[str, Tensor]) -> Tensor:
        ours = model(**inputs, output_hidden_states=guided)
        soft = distillation_loss(ours.logits, extra["teacher_logits"], temperature=temperature, multi_label=multi_label)
        hard: Tensor = context.task.loss(ours.logits, extra["labels"], student.spec)
        total = alpha * soft + (1 - alpha) * hard
        if guide is None or not guided:
            return total
        with torch.no_grad():
            theirs = guide.model(**inputs, output_hidden_states=True)
        mask = inputs["attention_mask"]
        layers = list(zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True))
        apart = [hidden_loss(mine, other, mask) for mine, other in layers]
        return total + hidden_weight * sum(apart[1:], start=apart[0]) / len(apart)

    metric, score = validation_scorer(student, context)
    rows = training_rows(student, context.data.train, context, {"teacher_logits": answers})
    result = fit(student.model, student.processor, rows, loss, score, options, context, metric=metric, label=label)
    for model in (student, *([guide] if guide is not None else [])):
        model.model.to("cpu")
    return result
