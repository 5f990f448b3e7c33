"""``distill.hidden``: the student also imitates the teacher's hidden states and attention, layer by layer.

Terms: mean squared error of mapped hidden states (TinyBERT, Jiao et al. 2020, arXiv:1909.10351, eq. 8),
KL divergence of mapped attention distributions (MiniLM, Wang et al. 2020, arXiv:2002.10957, eq. 3), and
the logits term of ``distill.logits``. The teacher runs beside the student: its hidden states are far too
large to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..depth import LayerMap, checked_layers
from ..errors import ModelError
from ..interfaces import Context
from ..lessons import PROJECTION, add_projection, projected
from ..losses import answered, attention_loss, distillation_loss, hidden_loss, real_tokens, vector_loss
from ..scoring import validation_scorer
from ..student import check_student, make_student
from ..training import FitOptions, fit, training_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DistillHidden", "match_layers"]


def match_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For each student layer the teacher layer whose output it imitates: the end of its share of the stack.

    >>> match_layers(3, 6)
    [1, 3, 5]
    >>> match_layers(2, 3)
    [0, 2]
    >>> match_layers(4, 2)
    [0, 0, 0, 1]
    """
    return [max(0, (i + 1) * teacher_layers // student_layers - 1) for i in range(student_layers)]


class DistillHidden(BaseModel):
    """Trains a student on hidden states, attention, soft and hard labels together."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "distill.hidden"

    student: str | None = Field(
        None, description="Another model with the same vocabulary as the student; default: fewer layers of the teacher."
    )
    layers: int | tuple[int, ...] | None = Field(
        None, description="How many of the teacher's layers the student keeps, or which; default: half."
    )
    layer_map: LayerMap = Field(
        "spread", description="Which layers when a number is given: spread, alternate, first, last."
    )
    teacher_layers: tuple[int, ...] | None = Field(
        None, description="For each student layer the teacher layer it imitates; default: the end of its share."
    )
    hidden_weight: float = Field(1.0, ge=0, le=1e4, description="Weight of the hidden-state term.")
    attention_weight: float = Field(1.0, ge=0, le=1e4, description="Weight of the attention term.")
    temperature: float = Field(2.0, gt=0, le=100, description="Softening of both distributions of labels.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of soft labels against hard labels.")
    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def _matched(self, student_layers: int, teacher_layers: int) -> list[int]:
        if self.teacher_layers is None:
            return match_layers(student_layers, teacher_layers)
        if len(self.teacher_layers) != student_layers:
            raise ModelError(
                f"teacher_layers names {len(self.teacher_layers)} layers, the student has {student_layers}. "
                "Write one for each layer of the student."
            )
        return checked_layers(self.teacher_layers, teacher_layers)

    def check(self, source: OptimizedModel) -> None:
        """Raises when a student can't be made from ``source``; looks at shapes only."""
        check_student(source, student=self.student, layers=self.layers, layer_map=self.layer_map)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The student; ``source`` is the teacher.

        Raises:
            ModelError: The student's tokens differ from the teacher's, so states can't be compared.
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        student, made = make_student(
            source, context, student=self.student, layers=self.layers, layer_map=self.layer_map
        )
        if not _same_tokens(student.processor, source.processor):
            raise ModelError(
                f"distill.hidden compares states token by token, but {self.student!r} has another vocabulary than the "
                "teacher. Use distill.logits, or a student with the teacher's tokenizer."
            )
        teacher, model = source.model, student.model
        before = [_use_eager_attention(part) for part in (teacher, model)]
        layers = (model.config.num_hidden_layers, teacher.config.num_hidden_layers)
        matched = self._matched(*layers)
        add_projection(model, int(teacher.config.hidden_size), context.seed)
        teacher.to(context.device).eval()
        multi_label = bool(source.spec.get("multi_label"))

        def loss(model: Any, inputs: dict[str, Any], extra: dict[str, Any]) -> Tensor:
            ours = model(**inputs, output_hidden_states=True, output_attentions=True)
            with torch.no_grad():
                theirs = teacher(**inputs, output_hidden_states=True, output_attentions=True)
            mask = real_tokens(inputs, ours.hidden_states[0])
            answers = [context.task.answer(found, inputs, source.spec) for found in (ours, theirs)]
            if context.task.labels == "scores":
                total: Tensor = vector_loss(projected(model, answers[0]), answers[1])
            else:
                soft = distillation_loss(
                    *answered(extra["labels"], *answers), temperature=self.temperature, multi_label=multi_label
                )
                hard = context.task.loss(answers[0], extra["labels"], source.spec)
                total = self.alpha * soft + (1 - self.alpha) * hard
            pairs = list(enumerate(matched))
            if self.hidden_weight:  # entry 0 is the embeddings' output, which both should share as well
                states = [(0, 0), *((s + 1, t + 1) for s, t in pairs)]
                total = total + self.hidden_weight * _mean(
                    [
                        hidden_loss(projected(model, ours.hidden_states[s]), theirs.hidden_states[t], mask)
                        for s, t in states
                    ]
                )
            if self.attention_weight:
                total = total + self.attention_weight * _mean(
                    [attention_loss(ours.attentions[s], theirs.attentions[t], mask) for s, t in pairs]
                )
            return total

        metric, score = validation_scorer(student, context)
        try:
            result = fit(
                model,
                student.processor,
                training_rows(student, context.data.train, context),
                loss,
                score,
                FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay),
                context,
                metric=metric,
                label=self.name,
            )
        finally:
            teacher.to("cpu")
            for part, implementation in zip((teacher, model), before, strict=True):
                part.set_attn_implementation(implementation)
            if hasattr(model, PROJECTION):
                delattr(model, PROJECTION)
        record = StepRecord(
            self.name, self.model_dump(mode="json"), {**made, "teacher_layer_of": matched, **result.notes()}
        )
        return source.after(record, model.to("cpu"), processor=student.processor, spec=student.spec)


def _same_tokens(ours: Any, theirs: Any) -> bool:
    """Whether states can be compared place by place; those of images are compared by the model itself."""
    if not (hasattr(ours, "get_vocab") and hasattr(theirs, "get_vocab")):
        return True
    return bool(ours.get_vocab() == theirs.get_vocab())


def _use_eager_attention(model: Any) -> str:
    """Switches to the attention that returns its weights; gives the former one's name."""
    former = str(model.config._attn_implementation)
    model.set_attn_implementation("eager")
    return former


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0]) / len(terms)
