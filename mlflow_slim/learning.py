"""The two ways a model learns a task here: from the labels, or from a teacher's answers and the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .artifact import OptimizedModel
from .interfaces import Context
from .lessons import PROJECTION, Teaching, make_lesson
from .losses import hidden_loss, real_tokens
from .scoring import validation_scorer
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
        answer = context.task.answer(model(**inputs), inputs, student.spec)
        return context.task.loss(answer, extra["labels"], student.spec)

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
    teaching: Teaching,
    *,
    label: str,
    guide: OptimizedModel | None = None,
    hidden_weight: float = 0.0,
) -> FitResult:
    """Trains ``student.model`` in place on ``alpha * soft + (1 - alpha) * hard`` loss.

    The teacher answers every training row once, before training.

    Args:
        student: What is trained.
        teacher: Gives the soft labels.
        context: Rows, seed, device.
        options: How long and how fast.
        teaching: How the teacher is imitated.
        label: Name of the technique, for messages.
        guide: A model of the student's depth, width and tokens, whose hidden states are imitated after every layer.
        hidden_weight: Weight of their mean squared error, >= 0.

    Raises:
        ModelError: Two language models have different vocabularies.
        TrainingDiverged: The loss became NaN or infinite.
    """
    import torch

    lesson = make_lesson(student, teacher, context, teaching)
    alpha, labelled = teaching.alpha, context.task.labels != "scores"
    guided = guide is not None and hidden_weight > 0
    if guide is not None:
        guide.model.to(context.device).eval()

    def loss(model: Any, inputs: dict[str, Any], extra: dict[str, Tensor]) -> Tensor:
        ours = model(**inputs, output_hidden_states=guided)
        answer = context.task.answer(ours, inputs, student.spec)
        total = lesson.loss(model, inputs, answer, extra)
        if labelled:
            total = alpha * total + (1 - alpha) * context.task.loss(answer, extra["labels"], student.spec)
        if guide is None or not guided:
            return total
        with torch.no_grad():
            theirs = guide.model(**inputs, output_hidden_states=True)
        mask = real_tokens(inputs, ours.hidden_states[0])
        layers = list(zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True))
        apart = [hidden_loss(mine, other, mask) for mine, other in layers]
        return total + hidden_weight * sum(apart[1:], start=apart[0]) / len(apart)

    metric, score = validation_scorer(student, context)
    rows = training_rows(student, context.data.train, context, lesson.columns)
    result = fit(student.model, student.processor, rows, loss, score, options, context, metric=metric, label=label)
    if hasattr(student.model, PROJECTION):
        delattr(student.model, PROJECTION)
    for model in (student, teacher, *([guide] if guide is not None else [])):
        model.model.to("cpu")
    return result
