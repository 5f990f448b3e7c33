"""feature-extraction: texts in, one vector for each out, as sentence-transformers gives them.

Vectors are float32 ``(rows, dimensions)``; of a model whose output is ``int8`` they are int8, of a ``binary`` one eight
dimensions are packed into an uint8, the first the highest bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .text_classification import check_rows as check_texts

if TYPE_CHECKING:
    from ..predictor import Predictor

LIBRARY_CLASS = "AutoModel"
OUTPUTS = ("last_hidden_state",)
KIND = "embedder"
COLUMNS = ("text",)
OPTIONS = ()
_BATCH_SIZE = 32


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[Any]:  # noqa: ARG001 - as of every task
    """Rows as texts.

    Raises:
        ValueError: No rows, or a row that is no text; the message names the row, counted from 0.
    """
    return check_texts(rows, {"pair": False})


def respond(model: Predictor, rows: Sequence[Any], params: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG001
    """The vectors, one row each."""
    vectors = model.predict(rows, batch_size=_BATCH_SIZE)
    output = model.bundle.spec.get("output", "float32")
    if output == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype(np.int8) if output == "int8" else vectors
