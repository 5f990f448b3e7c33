"""text-classification: strings or pairs in, labels and scores out, as transformers' pipeline gives them.

The form of the answers follows ``mlflow.transformers``: a table with ``label`` and ``score`` of the best label,
or, when ``top_k`` is asked for, one column per rank holding ``{"label": ..., "score": ...}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ..predictor import Predictor

LIBRARY_CLASS = "AutoModelForSequenceClassification"
OUTPUTS = ("logits",)
KIND = "encoder"
COLUMNS = ("text", "text_pair")
OPTIONS = ()
_BATCH_SIZE = 32


def _text(value: Any, where: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        raise ValueError(f"{where} has no text (None or NaN). Leave the row out or give it a text.")
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}, {value!r:.40}, not a text. Send strings.")
    if not value.strip():
        raise ValueError(f"{where} is an empty text. Leave the row out or give it a text.")
    return value


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[Any]:
    """Rows as the model takes them: strings, or pairs of strings when it was trained on pairs.

    Args:
        rows: Strings, ``(text, text_pair)``, or ``{"text": ..., "text_pair": ...}``.
        spec: ``pair`` says whether two texts are needed.

    Raises:
        ValueError: No rows, or a row that is not one of these; the message names the row, counted from 0.
    """
    if not rows:
        raise ValueError("There are no rows: the input is empty. Send at least one text.")
    pair = bool(spec.get("pair"))
    checked: list[Any] = []
    for number, row in enumerate(rows):
        where = f"row {number}"
        if isinstance(row, Mapping):
            if unknown := sorted(map(str, row.keys() - {"text", "text_pair"})):
                raise ValueError(f"{where} has unknown keys {unknown}. Known: text, text_pair.")
            row = (row.get("text"), row["text_pair"]) if "text_pair" in row else row.get("text")
        texts = row if isinstance(row, (list, tuple)) else (row,)
        if len(texts) != (2 if pair else 1):
            needs = "a pair of texts (text, text_pair)" if pair else "one text"
            raise ValueError(f"{where} holds {len(texts)} texts; this model takes {needs} a row.")
        names = ("text", "text_pair") if pair else ("text",)
        clean = tuple(
            _text(text, f"{where}, {name}," if pair else where) for name, text in zip(names, texts, strict=True)
        )
        checked.append(clean if pair else clean[0])
    return checked


def respond(model: Predictor, rows: Sequence[Any], params: Mapping[str, Any]) -> pd.DataFrame:
    """The table of answers, one row each; see `answers`."""
    outputs = model.predict(rows, batch_size=_BATCH_SIZE)
    return pd.DataFrame(answers(outputs, model.bundle.spec, params))


def _scores(outputs: np.ndarray, *, multi_label: bool) -> np.ndarray:
    if multi_label or outputs.shape[1] == 1:
        small = np.exp(-np.abs(outputs))  # never overflows, as exp(-outputs) does below -88
        return np.asarray(np.where(outputs >= 0, 1.0, small) / (1.0 + small), dtype=np.float32)
    exponents = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def answers(outputs: np.ndarray, spec: Mapping[str, Any], params: Mapping[str, Any]) -> dict[Any, list[Any]]:
    """Columns of the answer.

    Args:
        outputs: Logits, ``(rows, labels)``.
        spec: ``labels`` and ``multi_label`` (then scores are sigmoids, not a softmax).
        params: ``top_k``: how many labels a row; absent or None gives ``label`` and ``score`` of the best.

    Raises:
        ValueError: ``top_k`` is below 1.
    """
    labels = [str(label) for label in spec["labels"]]
    scores = _scores(outputs, multi_label=bool(spec.get("multi_label")))
    top_k = params.get("top_k")
    if top_k is None:
        best = scores.argmax(axis=1)
        return {
            "label": [labels[index] for index in best],
            "score": [float(row[index]) for row, index in zip(scores, best, strict=True)],
        }
    if int(top_k) < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    order = np.argsort(-scores, axis=1, kind="stable")[:, : int(top_k)]
    return {
        rank: [
            {"label": labels[index], "score": float(row[index])}
            for row, index in zip(scores, order[:, rank], strict=True)
        ]
        for rank in range(order.shape[1])
    }
