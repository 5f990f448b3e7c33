"""What a teacher's answers are to a student that learns from them: one answer a row, a word, or a token.

A lesson asks the teacher once, before training, and gives what the student is to imitate as columns of its training
rows; its loss compares. Language models may be taught on what they write themselves, too (``on_policy``): then the
teacher is asked while they train.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .artifact import OptimizedModel
from .errors import ModelError
from .interfaces import Context
from .losses import Divergence, answered, distillation_loss, divergence_of, vector_loss
from .training import pad_before, training_rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["PROJECTION", "Lesson", "Teaching", "add_projection", "check_same_tokens", "make_lesson", "projected"]

PROJECTION = "slim_projection"
"""The module of a student that leads from its width to the teacher's while it learns."""

_BATCH = 16
_NOTHING = -100
"""Where there is no token: in a row's tail."""


@dataclass(frozen=True)
class Teaching:
    """How a student imitates.

    Attributes:
        temperature: Softening of both distributions, > 0.
        alpha: Weight of the soft loss, 0 to 1; the rest is the hard labels'.
        divergence: What the soft loss is.
        beta: Weight of the teacher in ``jsd``, above 0 and below 1.
        top_k: Of a language model, the teacher's likeliest tokens that are kept for each place; all others are one.
        on_policy: Of a language model, share of batches in which the student writes the texts itself, 0 to 1.
    """

    temperature: float = 2.0
    alpha: float = 0.5
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    top_k: int = 64
    on_policy: float = 0.0


class Lesson(Protocol):
    """A teacher's answers to the training rows."""

    columns: Mapping[str, Any]
    """Further columns of the student's training rows."""

    def loss(self, model: Any, inputs: Mapping[str, Tensor], logits: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """The soft loss of a batch, a scalar; ``extra`` has ``labels`` and the columns."""
        ...


def make_lesson(student: OptimizedModel, teacher: OptimizedModel, context: Context, teaching: Teaching) -> Lesson:
    """The teacher's answers to the training rows, in the shape that the task's models answer.

    Raises:
        ModelError: Two language models have different vocabularies.
    """
    if context.task.labels == "texts":
        return _TokenLesson(student, teacher, context, teaching)
    return _RowLesson(student, teacher, context, teaching)


def add_projection(model: Any, width: int, seed: int) -> None:
    """Gives a model a matrix from its own width to another, which is learned with it and thrown away (TinyBERT's W_h).

    None where both are the same.
    """
    import torch

    own = int(model.config.hidden_size)
    if own != width:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            setattr(model, PROJECTION, torch.nn.Linear(own, width, bias=False))


def projected(model: Any, states: Any) -> Any:
    """States ``(..., width)`` in the width that `add_projection` leads to."""
    project = getattr(getattr(model, "module", model), PROJECTION, None)
    return states if project is None else project(states)


class _RowLesson:
    """One answer a row, or a word; student and teacher may have different tokenizers."""

    def __init__(self, student: OptimizedModel, teacher: OptimizedModel, context: Context, how: Teaching) -> None:
        model = teacher.model.to(context.device)
        spec = {**teacher.spec, "output": "float32", "dimensions": None}  # of vectors, all that there is to learn
        answers = context.task.outputs(model, teacher.processor, context.data.train.inputs, spec)
        teacher.model.to("cpu")
        self._vectors = context.task.labels == "scores"
        if self._vectors:
            add_projection(student.model, int(answers.shape[-1]), context.seed)
        self.columns: Mapping[str, Any] = {"teacher_logits": answers}
        self._how, self._multi_label = how, bool(student.spec.get("multi_label"))

    def loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],  # noqa: ARG002
        logits: Tensor,
        extra: Mapping[str, Tensor],
    ) -> Tensor:
        how = self._how
        if self._vectors:
            return vector_loss(projected(model, logits), extra["teacher_logits"])
        return distillation_loss(
            *answered(extra["labels"], logits, extra["teacher_logits"]),
            temperature=how.temperature,
            multi_label=self._multi_label,
            kind=how.divergence,
            beta=how.beta,
        )


def check_same_tokens(student: OptimizedModel, teacher: OptimizedModel) -> None:
    """Raises ModelError when the tokens of two language models don't mean the same, or texts are cut otherwise."""
    if student.processor.get_vocab() != teacher.processor.get_vocab():
        sizes = [len(one.processor) for one in (student, teacher)]
        raise ModelError(
            f"Student and teacher have different vocabularies ({sizes[0]} and {sizes[1]} tokens), so the probabilities "
            "of the one say nothing about the tokens of the other. Use distill.generate, which goes by texts, or a "
            "student of the same family."
        )
    lengths = [int(one.spec["max_length"]) for one in (student, teacher)]
    if lengths[0] != lengths[1]:
        raise ModelError(
            f"The student takes {lengths[0]} tokens and the teacher {lengths[1]}, so they would answer to different "
            f"texts. Write max_length={min(lengths)}."
        )


class _TokenLesson:
    """One answer a token: the teacher's likeliest ones and how likely they are, kept on disk.

    All other tokens count as one, so that a distribution stays one. The columns of rows that nobody looks at are not
    in memory.
    """

    def __init__(self, student: OptimizedModel, teacher: OptimizedModel, context: Context, how: Teaching) -> None:
        import numpy as np

        check_same_tokens(student, teacher)
        self._student, self._teacher, self._how, self._context = student, teacher, how, context
        # Models of a family pad their vocabularies to different sizes; what is beyond the shorter one is no token.
        self._size = min(one.model.get_output_embeddings().weight.shape[0] for one in (student, teacher))
        self._draws = np.random.default_rng(context.seed)
        teacher.model.to(context.device).eval()
        if how.on_policy == 1:
            self.columns: Mapping[str, Any] = {}
            return
        rows = training_rows(teacher, context.data.train, context)
        ids, logs = _keep_likeliest(teacher, rows, context.workdir, how, self._size)
        self.columns = {"teacher_ids": ids, "teacher_logs": logs}

    def loss(self, model: Any, inputs: Mapping[str, Tensor], logits: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        import torch

        how = self._how
        if how.on_policy and self._draws.random() < how.on_policy:
            return self._on_policy(model, inputs, extra["labels"])
        ours = logits[:, :-1][extra["labels"][:, 1:] != _NOTHING]
        ours = torch.log_softmax(ours[:, : self._size].float() / how.temperature, dim=-1)
        kept = extra["teacher_ids"][..., 0] != _NOTHING
        ids, logs = extra["teacher_ids"][kept].long(), extra["teacher_logs"][kept]
        apart = divergence_of(_with_rest(ours.gather(-1, ids)), _with_rest(logs), kind=how.divergence, beta=how.beta)
        return apart.mean() * how.temperature**2

    def _on_policy(self, model: Any, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """The divergence on texts that the student writes now from the batch's prompts."""
        import torch

        how, source = self._how, self._student
        pad = source.processor.pad_token_id
        prompts = _prompts(inputs["input_ids"], inputs["attention_mask"], labels)
        ids, mask = pad_before(prompts, pad, labels.device)
        width = ids.shape[1]
        with torch.no_grad():
            model.eval()
            texts = getattr(model, "module", model).generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=max(1, int(source.spec["max_new_tokens"])),
                pad_token_id=pad,
            )
            model.train()
            written = texts[:, width:]
            ended = torch.zeros_like(written[:, 0], dtype=torch.bool)
            real = []
            for place in range(written.shape[1]):  # the first end token is part of a text, what follows is not
                real.append(~ended)
                ended = ended | (written[:, place] == source.processor.eos_token_id)
            counts = torch.stack(real, dim=1)
            mask = torch.cat([mask, counts.long()], dim=1)
            places = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
            theirs = self._teacher.model(input_ids=texts, **places, use_cache=False).logits
        ours = model(input_ids=texts, **places, use_cache=False).logits
        ours, theirs = (
            torch.log_softmax(part[:, width - 1 : -1][counts][:, : self._size].float() / how.temperature, dim=-1)
            for part in (ours, theirs)
        )
        return divergence_of(ours, theirs, kind=how.divergence, beta=how.beta).mean() * how.temperature**2


def _prompts(ids: Tensor, mask: Tensor, labels: Tensor) -> list[Any]:
    """What stands before the tokens to learn in each row; the first half of a row that is all to be learned."""
    found = []
    for row, real, wanted in zip(ids, mask, labels, strict=True):
        tokens = row[real.bool()]
        first = int((wanted[real.bool()] != _NOTHING).long().argmax())
        found.append(tokens[: first or max(1, len(tokens) // 2)])
    return found


def _with_rest(logs: Tensor) -> Tensor:
    """``(places, k)`` log-probabilities with one more for all that is left, so that they are a distribution."""
    import torch

    rest = (1 - logs.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat([logs, rest.log()], dim=-1)


def _keep_likeliest(
    teacher: OptimizedModel, rows: Sequence[Mapping[str, Any]], folder: Path, how: Teaching, size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each row the likeliest tokens ``(places, k)`` int32 at its places to learn, and their log-probabilities.

    Places are those whose next token is to be learned. Both lie in files of ``folder`` and are read as they are asked.
    """
    import numpy as np
    import torch

    counts = [sum(label != _NOTHING for label in row["labels"][1:]) for row in rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    k = min(how.top_k, size)
    shape = (int(starts[-1]), k)
    ids = np.lib.format.open_memmap(folder / "teacher_ids.npy", "w+", np.int32, shape)
    logs = np.lib.format.open_memmap(folder / "teacher_logs.npy", "w+", np.float32, shape)
    device = next(teacher.model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            padded = teacher.processor.pad({"input_ids": [rows[i]["input_ids"] for i in chosen]}, return_tensors="pt")
            logits = teacher.model(**padded.to(device), use_cache=False).logits
            for place, i in enumerate(chosen):
                wanted = torch.tensor(rows[i]["labels"][1:], device=device) != _NOTHING
                answers = logits[place, : len(wanted)][wanted][:, :size].float() / how.temperature
                top = torch.log_softmax(answers, dim=-1).topk(k, dim=-1)
                logs[starts[i] : starts[i + 1]] = top.values.cpu().numpy()
                ids[starts[i] : starts[i + 1]] = top.indices.cpu().numpy()
    ids.flush()
    logs.flush()
    pairs = list(itertools.pairwise(starts))
    return [ids[a:b] for a, b in pairs], [logs[a:b] for a, b in pairs]
