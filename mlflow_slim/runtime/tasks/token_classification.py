"""token-classification: texts in, entities (or a label for every word) with their places out.

Each row's answer is a list of ``{"entity_group", "score", "word", "start", "end"}``, as transformers' pipeline gives it
with ``aggregation_strategy="first"``: ``start`` and ``end`` count characters of the text as it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..words import joined, words_in

if TYPE_CHECKING:
    from ..predictor import Predictor

LIBRARY_CLASS = "AutoModelForTokenClassification"
OUTPUTS = ("logits",)
KIND = "tagger"
COLUMNS = ("text",)
OPTIONS = ()
_BATCH_SIZE = 32
_OUTSIDE = "O"


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[Any]:  # noqa: ARG001 - as of every task
    """Rows as they are: texts, or lists of words that are apart already.

    Raises:
        ValueError: No rows, or a row that is neither; the message names the row, counted from 0.
    """
    if not rows:
        raise ValueError("There are no rows: the input is empty. Send at least one text.")
    checked: list[Any] = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            if unknown := sorted(map(str, row.keys() - {"text"})):
                raise ValueError(f"row {number} has unknown keys {unknown}. Known: text.")
            row = row.get("text")
        if isinstance(row, (list, tuple, np.ndarray)):
            row = [str(word) for word in row]
            text = "".join(row)
        elif isinstance(row, str):
            text = row
        else:
            raise ValueError(f"row {number} is a {type(row).__name__}, {row!r:.40}, not a text. Send strings.")
        if not text.strip():
            raise ValueError(f"row {number} is an empty text. Leave the row out or give it a text.")
        checked.append(row)
    return checked


def respond(model: Predictor, rows: Sequence[Any], params: Mapping[str, Any]) -> pd.DataFrame:
    """A table with the column ``entities``, see `answers`."""
    marks_apart = bool(model.bundle.spec.get("marks_apart", True))
    found = [_apart(row, marks_apart) for row in rows]
    outputs = model.predict([joined([text[a:b] for a, b in places]) for text, places in found], batch_size=_BATCH_SIZE)
    spec = model.bundle.spec
    return pd.DataFrame(
        {"entities": [answers(*one, row, spec, params) for one, row in zip(found, outputs, strict=True)]}
    )


def _apart(row: Any, marks_apart: bool) -> tuple[str, list[tuple[int, int]]]:
    """A text and the places of its words; words that come apart are joined with spaces."""
    if isinstance(row, str):
        return row, words_in(row, marks_apart=marks_apart)
    ends = np.cumsum([len(word) + 1 for word in row]) - 1
    return " ".join(row), [(int(end) - len(word), int(end)) for word, end in zip(row, ends, strict=True)]


def answers(
    text: str,
    places: Sequence[tuple[int, int]],
    outputs: np.ndarray,
    spec: Mapping[str, Any],
    params: Mapping[str, Any],  # noqa: ARG001 - none is known
) -> list[dict[str, Any]]:
    """What a text holds.

    Args:
        text: As it was sent.
        places: First character of each word, and the one after its last.
        outputs: ``(words, labels)`` logits; zeros of words that the model was not shown, which are left out.
        spec: ``labels``, and ``spans``: whether words next to each other make one entity. Its score is then their mean.
        params: None is known.
    """
    labels = [str(label) for label in spec["labels"]]
    found: list[dict[str, Any]] = []
    scores: list[float] = []
    before: str | None = None
    for (start, end), logits in zip(places, outputs, strict=False):
        if not logits.any():
            before = None
            continue
        best = int(logits.argmax())
        score = float(1 / np.exp(logits - logits[best]).sum())
        label = labels[best]
        if label == _OUTSIDE and spec["spans"]:
            before = None
            continue
        kind = kind_of(label) if spec["spans"] else label
        if spec["spans"] and goes_on(before, label):
            scores.append(score)
            found[-1] |= {"score": float(np.mean(scores)), "word": text[found[-1]["start"] : end], "end": end}
        else:
            scores = [score]
            found.append({"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end})
        before = label
    return found


def kind_of(label: str) -> str:
    """What a label names, without the mark of its place in a span.

    >>> kind_of("B-PER"), kind_of("PER"), kind_of("B")
    ('PER', 'PER', 'B')
    """
    return label[2:] if label[1:2] == "-" and label[0] in "BIESLU" and label[2:] else label


def goes_on(before: str | None, label: str) -> bool:
    """Whether a word belongs to the span of the word before it.

    >>> goes_on("B-PER", "I-PER"), goes_on("I-PER", "B-PER"), goes_on("I-PER", "I-LOC"), goes_on("PER", "PER")
    (True, False, False, True)
    """
    if before is None or before == _OUTSIDE or kind_of(before) != kind_of(label):
        return False
    ended = kind_of(before) != before and before[0] in "ESLU"
    begins = kind_of(label) != label and label[0] in "BSU"
    return not (ended or begins)
