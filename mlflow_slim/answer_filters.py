"""Which of a teacher's answers are worth learning: rules with names, and how many each took out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .runtime.prompts import shown
from .teachers import Prompt, Reply

__all__ = ["Rules", "repeated_share", "why_not"]

_REFUSALS = re.compile(
    r"^\W*(i('m| am) (very )?sorry|sorry,|i (can('|no)t|can not|am unable to|'m unable to|won't)\b"
    r"|as an ai\b|as a language model|i apologi[sz]e)",
    re.IGNORECASE,
)
"""How refusals begin; English only."""


@dataclass(frozen=True)
class Rules:
    """What makes an answer worth learning.

    Attributes:
        min_words, max_words: Words it has, at least and at most; None for no limit.
        keep_cut: Whether answers that the limit of tokens ended are kept.
        keep_refusals: Whether refusals are kept.
        max_repetition: Largest share of its word n-grams that stood in it before, 0 to 1.
    """

    min_words: int = 1
    max_words: int | None = None
    keep_cut: bool = False
    keep_refusals: bool = False
    max_repetition: float = 0.3


def repeated_share(text: str, size: int = 3) -> float:
    """Share of the word n-grams of a text that stood in it before, 0 to 1; 0 for one with fewer words.

    >>> repeated_share("a b c a b c a b c")
    0.5714285714285714
    """
    words = text.split()
    grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def why_not(prompts: Sequence[Prompt], replies: Sequence[Reply | None], rules: Rules) -> list[str]:
    """For each answer the name of the first rule that it breaks, or nothing."""
    seen: set[tuple[str, str]] = set()
    found = []
    for prompt, reply in zip(prompts, replies, strict=True):
        reason = _why(reply, rules)
        if reply is not None and not reason:
            pair = tuple(" ".join(text.lower().split()) for text in (shown(prompt), reply.text))
            reason = "duplicate" if pair in seen else ""
            seen.add((pair[0], pair[1]))
        found.append(reason)
    return found


def _why(reply: Reply | None, rules: Rules) -> str:
    if reply is None:
        return "not asked: the budget was spent"
    words = len(reply.text.split())
    if words < max(1, rules.min_words):
        return "too short"
    if rules.max_words is not None and words > rules.max_words:
        return "too long"
    if reply.cut and not rules.keep_cut:
        return "cut off"
    if not rules.keep_refusals and _REFUSALS.match(reply.text):
        return "refusal"
    if repeated_share(reply.text) > rules.max_repetition:
        return "repetitive"
    return ""
