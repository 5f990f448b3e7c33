"""Questions about a context, and the part of it that answers: pieces, windows over long contexts, and best spans.

A context is taken apart into pieces, the same for every tokenizer: runs of letters, runs of digits, single marks. A
model's answer to a row is ``(1 + pieces, 2)``: how well the answer begins, and ends, at each of them. The first row of
it stands for "there is no answer". Both are 0 where no token begins or ends with the piece. A context that is longer
than the model's inputs is read in windows that overlap; a piece has the best of what they say of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .encoder import COLUMNS

STARTS, ENDS, WINDOWS = "starts", "ends", "windows"
"""Names of the arrays that say where the pieces of a context stand, see `WindowEncoder`."""
_PIECES = re.compile(r"[^\W\d_]+|\d+|\S")
_NEVER = -1e9
"""Far below any logit; finite, so that differences stay numbers."""


def pieces_in(text: str) -> np.ndarray:
    """``(pieces, 2)`` the first character of each piece, and the one after its last.

    >>> text = "In 1990s, $5.50"
    >>> [text[start:end] for start, end in pieces_in(text)]
    ['In', '1990', 's', ',', '$', '5', '.', '50']
    """
    return np.array([piece.span() for piece in _PIECES.finditer(text)], dtype=np.int64).reshape(-1, 2)


def least_length(stride: int, special_tokens: int) -> int:
    """Tokens that an input must have at least for windows to move on, whatever the question."""
    return special_tokens + 2 * stride + 8


def usual_stride(max_length: int) -> int:
    """Tokens that two windows share where nobody says: 128, as is usual, and a quarter of shorter inputs."""
    return min(128, max_length // 4)


def places_of(offsets: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(pieces,)`` the token that each piece begins with, and the one it ends with; -1 where there is none.

    Args:
        offsets: ``(tokens, 2)`` characters of the tokens of a part of the context, in order.
        pieces: Of that part.
    """
    if not len(pieces):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    first = np.minimum(np.searchsorted(pieces[:, 1], offsets[:, 0], side="right"), len(pieces) - 1)
    begin = np.maximum(offsets[:, 0], pieces[first, 0])  # some tokens hold the space before a word
    kept = np.flatnonzero(offsets[:, 1] > begin)
    starts = ends = np.full(len(pieces), -1, dtype=np.int64)
    if not len(kept):
        return starts, ends
    begin, end = begin[kept], offsets[kept, 1]
    at = np.searchsorted(begin, pieces[:, 0], side="left")
    token = np.minimum(at, len(kept) - 1)
    starts = np.where((at < len(kept)) & (begin[token] < pieces[:, 1]), kept[token], -1)
    at = np.searchsorted(end, pieces[:, 1], side="right") - 1
    token = np.maximum(at, 0)
    ends = np.where((at >= 0) & (end[token] > pieces[:, 0]), kept[token], -1)
    return starts, ends


def _within(offsets: np.ndarray, pieces: np.ndarray) -> tuple[int, np.ndarray]:
    """The first piece that these tokens touch, and ``(2, pieces)`` of `places_of` from there to the last."""
    if not len(offsets):
        return 0, np.zeros((2, 0), dtype=np.int64)
    first = int(np.searchsorted(pieces[:, 1], offsets[0, 0], side="right"))
    behind = int(np.searchsorted(pieces[:, 0], offsets[-1, 1], side="left"))
    return first, np.stack(places_of(offsets, pieces[first : max(behind, first)]))


class WindowEncoder:
    """Encodes pairs of question and context, a long context as several windows.

    Args:
        tokenizer: What it is set to for cutting and padding is not looked at.
        inputs: ``names``, ``pad_token``, ``pad_id``, ``pad_type_id`` as in ``slim.json``.
        max_length: Tokens of a window, with the question and special tokens.
        stride: Tokens that two windows share.
        whole: Whether to give `STARTS`, `ENDS` and `WINDOWS`, too.
    """

    def __init__(
        self, tokenizer: Tokenizer, inputs: Mapping[str, Any], *, max_length: int, stride: int, whole: bool = False
    ) -> None:
        self._names, self._whole = tuple(inputs["names"]), whole
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.no_truncation()
        self._plain.no_padding()
        self._longest = max_length - least_length(stride, self._plain.num_special_tokens_to_add(is_pair=True)) + 7
        self._windows = Tokenizer.from_str(self._plain.to_str())
        self._windows.enable_truncation(max_length, stride=stride, strategy="only_second")
        self._windows.enable_padding(
            pad_id=int(inputs["pad_id"]), pad_type_id=int(inputs["pad_type_id"]), pad_token=str(inputs["pad_token"])
        )

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, inputs: Mapping[str, Any], spec: Mapping[str, Any], *, whole: bool = False
    ) -> WindowEncoder:
        """For a model with this spec: its ``max_length`` and ``stride``."""
        return cls(tokenizer, inputs, max_length=int(spec["max_length"]), stride=int(spec["stride"]), whole=whole)

    def __call__(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """``{name: (windows, tokens) int64}``, padded to the longest; the windows of a row follow each other.

        `WINDOWS` is ``(windows, 3)``: whose row each is of, the first piece in it, and the token that stands for "no
        answer". `STARTS` and `ENDS` are ``(windows, pieces)`` from that piece on, see `places_of`.
        """
        encoded = self._windows.encode_batch([(self._cut(question), context) for question, context in rows])
        parts = [(row, part) for row, whole in enumerate(encoded) for part in (whole, *whole.overflowing)]
        arrays = {
            name: np.array([getattr(part, COLUMNS[name]) for _, part in parts], dtype=np.int64) for name in self._names
        }
        if not self._whole:
            return arrays
        pieces = [pieces_in(context) for _, context in rows]
        windows, places = [], []
        for row, part in parts:
            real = np.flatnonzero([sequence == 1 for sequence in part.sequence_ids])
            first, found = _within(np.array(part.offsets).reshape(-1, 2)[real], pieces[row])
            windows.append((row, first, int(np.argmax(part.special_tokens_mask))))
            places.append(np.append(real, -1)[found])  # -1 is the last of it
        most = max(found.shape[1] for found in places)
        padded = [np.pad(one, [(0, 0), (0, most - one.shape[1])], constant_values=-1) for one in places]
        starts, ends = np.stack(padded, axis=1)
        return {**arrays, STARTS: starts, ENDS: ends, WINDOWS: np.array(windows)}

    def _cut(self, question: str) -> str:
        """A question that leaves room for a context; few are this long."""
        if len(question.encode()) < self._longest:
            return question
        offsets = self._plain.encode(question, add_special_tokens=False).offsets
        return question if len(offsets) <= self._longest else question[: offsets[self._longest - 1][1]]


def at_pieces(logits: np.ndarray, starts: np.ndarray, ends: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """``(rows, 1 + pieces, 2)`` of what windows say, see the top of this module.

    Args:
        logits: ``(windows, tokens, 2)``.
        starts: ``(windows, pieces)`` as `WindowEncoder` gives them.
        ends: Likewise.
        windows: Likewise, ``(windows, 3)``.
    """
    places = np.stack([starts, ends], axis=2)
    said = np.where(places >= 0, np.take_along_axis(logits, np.maximum(places, 0), axis=1), -np.inf)
    none = np.take_along_axis(logits, windows[:, 2, None, None], axis=1)[:, 0]
    numbers = np.arange(1, places.shape[1] + 1)[:, None]
    counts = np.where(places >= 0, numbers, 0).max(axis=(1, 2), initial=0)
    shape = (windows[-1, 0] + 1, 1 + (windows[:, 1] + counts).max(), 2)
    best = np.full(shape, -np.inf, dtype=np.float32)
    best[:, 0] = np.inf
    for (row, first, _), count, own, lacks in zip(windows, counts, said, none, strict=True):
        there = best[row, 1 + first : 1 + first + count]
        np.maximum(there, own[:count], out=there)
        if lacks.sum() < best[row, 0].sum():  # a row has no answer if none of its windows has one
            best[row, 0] = lacks
    return np.where(np.isfinite(best), best, np.float32(0))


def best_spans(outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """``(rows, 2)`` the first and the last piece of each row's answer; -1 where it has none.

    Args:
        outputs: ``(rows, 1 + pieces, 2)``.
        spec: ``max_answer_length`` in pieces, and ``unanswerable``: whether there may be none.
    """
    longest = int(spec["max_answer_length"])
    found = np.full((len(outputs), 2), -1, dtype=np.int64)
    for row, said in enumerate(outputs):
        begin, end = np.where(said[1:] == 0, _NEVER, said[1:]).T.astype(np.float64)
        behind = np.lib.stride_tricks.sliding_window_view(np.append(end, np.full(longest - 1, _NEVER)), longest)
        length = behind.argmax(axis=1)
        sums = begin + behind.max(axis=1)
        start = int(sums.argmax()) if len(sums) else 0
        if len(sums) and sums[start] > _NEVER / 2 and not (spec["unanswerable"] and said[0].sum() > sums[start]):
            found[row] = start, start + length[start]
    return found


def likelihoods(outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """``(rows, 2, 1 + pieces)`` how likely an answer begins, and ends, at each piece; each adds up to 1."""
    logits = np.where(outputs == 0, _NEVER, outputs).astype(np.float64)
    if not spec["unanswerable"]:
        logits[:, 0] = _NEVER
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.moveaxis(shares / shares.sum(axis=1, keepdims=True), 1, 2)


def open_windows(
    path: Path, inputs: Mapping[str, Any], spec: Mapping[str, Any], *, whole: bool = False
) -> WindowEncoder:
    """What encodes by a ``tokenizer.json``."""
    return WindowEncoder.of(Tokenizer.from_file(str(path)), inputs, spec, whole=whole)
