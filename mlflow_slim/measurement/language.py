"""What only language models can be asked: how far their probabilities are apart, and what typing errors do to them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ROWS", "divergences", "misspelt", "misspelt_prompt"]

ROWS = 32
"""Rows whose whole distributions are compared: a vocabulary of 50,000 at each place is much to keep."""
_WORD = re.compile(r"[^\W\d_]{4,}")
_SHARE = 0.1
Floats = npt.NDArray[np.float32]


def divergences(original: Sequence[Floats], candidate: Sequence[Floats]) -> npt.NDArray[np.float64]:
    """KL(original || candidate) at every place of all rows, nats, ``(places,)``.

    Args:
        original: Log-probabilities ``(places, vocabulary)`` a row.
        candidate: Likewise; of a vocabulary that is padded to another size, the common tokens are compared.
    """
    found = []
    for before, after in zip(original, candidate, strict=True):
        size = min(before.shape[1], after.shape[1])
        p, q = (part[:, :size].astype(np.float64) for part in (before, after))
        found.append((np.exp(p) * (p - q)).sum(axis=1))
    return np.concatenate(found)


def misspelt_prompt(prompt: Any, *, seed: int) -> Any:
    """A prompt so misspelt, or the messages of a chat with the last one so."""
    if isinstance(prompt, str):
        return misspelt(prompt, seed=seed)
    *before, last = prompt
    return [*before, {**last, "content": misspelt(last["content"], seed=seed)}]


def misspelt(text: str, *, seed: int) -> str:
    """A text in which a tenth of the words, one at least, have two inner letters swapped.

    >>> misspelt("the weather is fine", seed=0)
    'the weatehr is fine'
    """
    words = list(_WORD.finditer(text))
    if not words:
        return text
    draw = random.Random(f"{seed} {text}")
    letters = list(text)
    for word in draw.sample(words, max(1, round(_SHARE * len(words)))):
        at = draw.randrange(word.start() + 1, word.end() - 2)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)
