"""Texts and pairs to arrays, by ``tokenizer.json`` alone.

Truncation and padding are set here, from ``slim.json``, and never taken from the tokenizer file, where they may
be whatever was in force when it was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class TokenizerFile:
    """Encodes with ``tokenizer.json`` of a bundle.

    Args:
        path: The tokenizer file.
        inputs: ``names``, ``pad_token``, ``pad_id``, ``pad_type_id``, ``padding_side``, ``truncation_side``.
        max_length: Tokens of a row, special tokens included; more are cut off.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any], *, max_length: int) -> None:
        self._names = tuple(inputs["names"])
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(
            max_length, strategy="longest_first", direction=inputs.get("truncation_side", "right")
        )
        self._tokenizer.enable_padding(
            direction=inputs.get("padding_side", "right"),
            pad_id=int(inputs["pad_id"]),
            pad_type_id=int(inputs.get("pad_type_id", 0)),
            pad_token=str(inputs["pad_token"]),
        )

    def __call__(self, texts: Sequence[Any]) -> dict[str, np.ndarray]:
        """``{name: (rows, tokens) int64}``, padded to the longest row. A row is a string or a pair of strings."""
        rows = [text if isinstance(text, str) else tuple(text) for text in texts]
        encoded = self._tokenizer.encode_batch(rows)
        return {
            name: np.array([getattr(row, _COLUMNS[name]) for row in encoded], dtype=np.int64) for name in self._names
        }
