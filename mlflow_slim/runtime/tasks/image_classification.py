"""image-classification: images in (base64 of a file, as MLflow sends them), labels and scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..images import decode
from .text_classification import answers

if TYPE_CHECKING:
    from ..predictor import Predictor

LIBRARY_CLASS = "AutoModelForImageClassification"
OUTPUTS = ("logits",)
KIND = "encoder"
COLUMNS = ("image",)
OPTIONS = ()
_BATCH_SIZE = 16


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[str]:  # noqa: ARG001 - as of every task
    """Rows as base64 texts of images that can be opened.

    Args:
        rows: Base64 texts, data URIs, the bytes of files, or ``{"image": ...}``. Paths and addresses are not opened: a
            served model would open its own machine's.
        spec: Not looked at.

    Raises:
        ValueError: No rows, or a row that is no image; the message names the row, counted from 0.
    """
    import base64

    if not rows:
        raise ValueError("There are no rows: the input is empty. Send at least one image.")
    checked = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            if unknown := sorted(map(str, row.keys() - {"image"})):
                raise ValueError(f"row {number} has unknown keys {unknown}. Known: image.")
            row = row.get("image")
        if isinstance(row, (bytes, bytearray)):
            row = base64.b64encode(row).decode("ascii")
        if not isinstance(row, str):
            raise ValueError(f"row {number} is a {type(row).__name__}, not an image. Send base64 of a file.")
        try:
            decode(row)
        except ValueError as error:
            raise ValueError(f"row {number} is {error}") from error
        checked.append(row)
    return checked


def respond(model: Predictor, rows: Sequence[Any], params: Mapping[str, Any]) -> pd.DataFrame:
    """The table of answers, one row each, as of text-classification."""
    return pd.DataFrame(answers(model.predict(rows, batch_size=_BATCH_SIZE), model.bundle.spec, params))
