"""question-answering: a question and a context in, the part of the context that answers it out.

Answers are texts, as ``mlflow.transformers`` gives them; with ``details`` each comes with how likely it is and where it
stands: ``start`` and ``end`` count characters of the context as it was sent. A model that learned from questions
without an answer may give an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..questions import best_spans, likelihoods, pieces_in

if TYPE_CHECKING:
    from ..predictor import Predictor

LIBRARY_CLASS = "AutoModelForQuestionAnswering"
OUTPUTS = ("start_logits", "end_logits")
KIND = "answerer"
COLUMNS = ("question", "context")
OPTIONS = ()
_BATCH_SIZE = 32


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[tuple[str, str]]:  # noqa: ARG001 - as of every task
    """Rows as pairs of question and context.

    Raises:
        ValueError: No rows, or a row that is no such pair; the message names the row, counted from 0.
    """
    if not rows:
        raise ValueError("There are no rows: the input is empty. Send a question and a context at least.")
    checked = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            if unknown := sorted(map(str, row.keys() - set(COLUMNS))):
                raise ValueError(f"row {number} has unknown keys {unknown}. Known: question, context.")
            row = tuple(row.get(name) for name in COLUMNS)
        if isinstance(row, str) or not isinstance(row, (list, tuple, np.ndarray)) or len(row) != 2:
            raise ValueError(f"row {number} is {row!r:.60}. Send a mapping with question and context.")
        for name, text in zip(COLUMNS, row, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"row {number} has no {name}: {text!r:.40}. Send a text.")
        checked.append((str(row[0]), str(row[1])))
    return checked


def respond(model: Predictor, rows: Sequence[Any], params: Mapping[str, Any]) -> list[str] | pd.DataFrame:
    """The answers as texts; with ``details`` a table of ``answer``, ``score``, ``start`` and ``end``.

    Raises:
        ValueError: ``details`` is neither true nor false.
    """
    details = params.get("details", False)
    if not isinstance(details, (bool, np.bool_)):
        raise ValueError(f"details must be true or false, got {details!r}.")
    outputs = model.predict(rows, batch_size=_BATCH_SIZE)
    found = answers([context for _, context in rows], outputs, model.bundle.spec)
    return found if details else found["answer"].tolist()


def answers(contexts: Sequence[str], outputs: np.ndarray, spec: Mapping[str, Any]) -> pd.DataFrame:
    """What was found, a row for each context.

    Args:
        contexts: As they were sent.
        outputs: ``(rows, 1 + pieces, 2)``, see `questions`.
        spec: ``max_answer_length`` and ``unanswerable``.

    Returns:
        ``answer``, ``score`` (that of its beginning times that of its end, 0 to 1), ``start``, ``end``; an empty text
        from 0 to 0 where there is none.
    """
    spans, shares = best_spans(outputs, spec), likelihoods(outputs, spec)
    places = characters_of(contexts, spans)
    row = np.arange(len(spans))
    score = shares[row, 0, spans[:, 0] + 1] * shares[row, 1, spans[:, 1] + 1]
    texts = [context[start:end] for context, (start, end) in zip(contexts, places, strict=True)]
    start, end = zip(*places, strict=True)
    return pd.DataFrame({"answer": texts, "score": score, "start": start, "end": end})


def characters_of(contexts: Sequence[str], spans: np.ndarray) -> list[tuple[int, int]]:
    """The first character of each span of pieces, and the one after its last; 0 and 0 where there is none."""
    found = []
    for context, (first, last) in zip(contexts, spans, strict=True):
        pieces = pieces_in(context)
        found.append((int(pieces[first, 0]), int(pieces[last, 1])) if first >= 0 else (0, 0))
    return found
