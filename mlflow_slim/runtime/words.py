"""Words of a text, and which token stands for each: its first, as models of single words are trained.

Words are what stands between single spaces, so that a model sees them as it was trained on them: text and punctuation
apart, where they were. `words_in` takes a text as people write it apart in that way, and remembers where each word was.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

_NO_BREAK = "\u00a0"
# Scripts that are written without spaces: every character is a word, as in the data that models of them learn from.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECES = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")


def words_in(text: str, *, marks_apart: bool = True) -> list[tuple[int, int]]:
    """Where the words of a text are: first character, and the one after the last.

    Punctuation before and after a word is a word of its own where ``marks_apart``, within one it is part of it.

    >>> text = "(Mr. O'Neil, 12.5 %)"
    >>> [text[start:end] for start, end in words_in(text)]
    ['(', 'Mr', '.', "O'Neil", ',', '12.5', '%', ')']
    >>> [text[start:end] for start, end in words_in(text, marks_apart=False)]
    ['(Mr.', "O'Neil,", '12.5', '%)']
    """
    found: list[tuple[int, int]] = []
    for piece in _PIECES.finditer(text):
        start, end = piece.span()
        if not marks_apart:
            found.append((start, end))
            continue
        while start < end and _is_mark(text[start]):
            found.append((start, start + 1))
            start += 1
        after: list[tuple[int, int]] = []
        while start < end and _is_mark(text[end - 1]):
            after.append((end - 1, end))
            end -= 1
        found += [(start, end)] if start < end else []
        found += reversed(after)
    return found


def stand_marks_apart(texts: Iterable[str]) -> bool:
    """Whether punctuation is a word of its own in texts with a space between words, as it is in most data of words.

    >>> stand_marks_apart(["Ada , of U.K. ."]), stand_marks_apart(["Dr. A. Smith, Jr.", "Mr. O'Neil -"])
    (True, False)
    """
    alone = attached = 0
    for text in texts:
        for word in filter(None, text.split(" ")):
            if all(map(_is_mark, word)):
                alone += 1
            elif _is_mark(word[0]) or _is_mark(word[-1]):
                attached += 1
    return alone >= attached


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def joined(words: Sequence[str]) -> str:
    """Words as one text, from which they can be had back: space within a word becomes space that doesn't separate."""
    return " ".join(re.sub(r"\s", _NO_BREAK, word) or _NO_BREAK for word in words)


def first_tokens(offsets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """``(rows, words)`` the number of each word's first token; -1 where it has none, because it was cut off.

    Args:
        offsets: ``(rows, tokens, 2)`` first character of a token and the one after its last; both 0 of special tokens.
        texts: Words with single spaces between them.
    """
    words = [text.split(" ") for text in texts]
    found = np.full((len(texts), max(map(len, words))), -1, dtype=np.int64)
    for row, (spans, parts) in enumerate(zip(offsets, words, strict=True)):
        real = np.flatnonzero(spans[:, 1] > spans[:, 0])
        if not len(real):
            continue
        lengths = np.array([len(part) for part in parts])
        ends = np.cumsum(lengths + 1) - 1
        place = np.searchsorted(spans[real, 1], ends - lengths, side="right")
        token = real[np.minimum(place, len(real) - 1)]
        # Some tokenizers have a token for the space before a word, where they know no longer piece.
        starts, before = ends - lengths, np.maximum(token - 1, 0)
        space = (starts > 0) & (spans[before, 1] == starts) & (spans[before, 0] >= starts - 1)
        shown = (place < len(real)) & (spans[token, 0] < ends)
        found[row, : len(parts)] = np.where(shown, np.where(space, before, token), -1)
    return found


def at_words(outputs: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``(rows, words, classes)`` of outputs for tokens; zeros for a word that the model was not shown."""
    chosen = np.take_along_axis(outputs, np.maximum(first, 0)[:, :, None], axis=1)
    return np.asarray(np.where(first[:, :, None] >= 0, chosen, 0.0), dtype=np.float32)
