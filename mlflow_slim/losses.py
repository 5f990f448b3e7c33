"""Losses of distillation as plain functions of tensors; every one is 0 when student and teacher agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Divergence",
    "answered",
    "attention_loss",
    "distillation_loss",
    "divergence_of",
    "hidden_loss",
    "real_tokens",
    "vector_loss",
]

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]


def divergence_of(student: Tensor, teacher: Tensor, *, kind: Divergence = "forward_kl", beta: float = 0.5) -> Tensor:
    """How far apart two distributions are, one value a distribution; 0 when they agree.

    ``forward_kl`` is KL(teacher || student), which makes a student cover all that the teacher holds for possible;
    ``reverse_kl`` is KL(student || teacher), which makes it keep to what the teacher holds for likely; ``jsd`` lies
    between: beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta teacher + (1 - beta) student.

    Args:
        student: ``(..., classes)`` log-probabilities.
        teacher: Likewise; carries no gradient.
        kind: Which of them.
        beta: Weight of the teacher in ``jsd``, above 0 and below 1.

    Source: Agarwal et al. 2024, arXiv:2306.13649, section 2, for the generalised divergence; Gu et al. 2024,
    arXiv:2306.08543, for the reverse one.
    """
    import math

    import torch

    if kind == "forward_kl":
        return (teacher.exp() * (teacher - student)).sum(dim=-1)
    if kind == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(dim=-1)
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    ours, theirs = student.exp() * (student - mixed), teacher.exp() * (teacher - mixed)
    return (beta * theirs + (1 - beta) * ours).sum(dim=-1)


def answered(labels: Tensor, *logits: Tensor) -> tuple[Tensor, ...]:
    """Logits ``(answers, classes)`` where there is something to learn.

    Args:
        labels: ``(batch, ...)``; of models that answer once a token ``(batch, tokens)``, negative where nothing is
            asked.
        logits: ``(batch, classes)``, which stay as they are, or ``(batch, tokens, classes)``.
    """
    return tuple(one[labels >= 0] if one.dim() == 3 else one for one in logits)


def real_tokens(inputs: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """``(batch, tokens)``, 1 where a token is no padding; all of an image's patches are real.

    Args:
        inputs: Of the model.
        states: ``(batch, tokens, ...)`` of one of its layers.
    """
    mask = inputs.get("attention_mask")
    return states.new_ones(states.shape[:2]) if mask is None else mask


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    multi_label: bool = False,
    kind: Divergence = "forward_kl",
    beta: float = 0.5,
) -> Tensor:
    """The divergence of softened answers times ``temperature ** 2``, mean over the batch; 0 when both agree.

    The factor keeps gradients at one size when the temperature changes.

    Args:
        student_logits: ``(batch, classes)``.
        teacher_logits: ``(batch, classes)``, carries no gradient; -inf takes a class from both distributions.
        temperature: Softening of both distributions, > 0.
        multi_label: Every class is a yes-or-no question of its own: the sum of the classes' divergences.
        kind: As in `divergence_of`.
        beta: Likewise.

    Raises:
        ValueError: ``temperature`` is not positive.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    import torch
    import torch.nn.functional as functional

    if not temperature > 0:
        raise ValueError(f"temperature must be over 0, got {temperature}.")
    # The lowest number that float16 has room for, and not -inf, of which the difference is no number.
    student, teacher = (
        logits.masked_fill(torch.isneginf(teacher_logits), -6e4) / temperature
        for logits in (student_logits, teacher_logits)
    )
    if multi_label:  # a yes-or-no question is a softmax over (logit, 0)
        student = torch.stack([student, torch.zeros_like(student)], dim=-1)
        teacher = torch.stack([teacher, torch.zeros_like(teacher)], dim=-1)
    apart = divergence_of(
        functional.log_softmax(student, dim=-1), functional.log_softmax(teacher, dim=-1), kind=kind, beta=beta
    )
    return apart.reshape(len(apart), -1).sum(dim=1).mean() * temperature**2


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One less the cosine of two vectors, mean over the batch; 0 when they point the same way.

    Args:
        student: ``(batch, width)``.
        teacher: Likewise; carries no gradient.
    """
    import torch.nn.functional as functional

    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def hidden_loss(student_states: Tensor, teacher_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared error over real tokens.

    Args:
        student_states: ``(batch, tokens, width)``.
        teacher_states: ``(batch, tokens, width)``, carries no gradient.
        attention_mask: ``(batch, tokens)``, 1 for real tokens.

    Source: Jiao et al. 2020, arXiv:1909.10351, equation 8.
    """
    weights = attention_mask.to(student_states.dtype)  # (batch, tokens)
    squared = (student_states - teacher_states).pow(2).mean(dim=-1)  # (batch, tokens)
    return (squared * weights).sum() / weights.sum()


def attention_loss(student_attention: Tensor, teacher_attention: Tensor, attention_mask: Tensor) -> Tensor:
    """KL(teacher || student) of where each real token looks, mean over tokens and heads.

    When the numbers of heads differ, the heads are averaged first.

    Args:
        student_attention: ``(batch, heads, tokens, tokens)``, rows sum to 1.
        teacher_attention: Likewise; carries no gradient.
        attention_mask: ``(batch, tokens)``, 1 for real tokens.

    Source: Wang et al. 2020, arXiv:2002.10957, equation 3.
    """
    if student_attention.shape[1] != teacher_attention.shape[1]:
        student_attention = student_attention.mean(dim=1, keepdim=True)
        teacher_attention = teacher_attention.mean(dim=1, keepdim=True)
    tiny = 1e-9  # attention to padding is exactly 0, whose logarithm is not a number
    ours, theirs = student_attention.clamp_min(tiny), teacher_attention.clamp_min(tiny)
    divergence = (theirs * (theirs.log() - ours.log())).sum(dim=-1)  # (batch, heads, tokens)
    weights = attention_mask[:, None, :].to(divergence.dtype).expand_as(divergence)
    return (divergence * weights).sum() / weights.sum()
