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

OFFSETS = "offsets"
"""Name of the array ``(rows, tokens, 2)``: the first character of each token, and the one after its last."""
COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def cut_long_pairs(rows: Sequence[Any], tokenizer: Tokenizer, *, max_length: int, from_right: bool = True) -> list[Any]:
    """``rows`` with the texts of very long pairs cut so that each still has more tokens than are kept.

    Cutting a pair, tokenizers builds every combination of the parts cut off either text: two texts of 20,000
    words take gigabytes and minutes. The longer text stays longer, because it gets the odd token.

    Args:
        rows: Strings, which are left as they are, and pairs of strings.
        tokenizer: Its settings for truncation and padding are not used.
        max_length: Tokens that will be kept of a row.
        from_right: Whether the ends of texts are cut off, or their beginnings.
    """

    def is_long(row: Any) -> bool:
        return not isinstance(row, str) and max(map(len, row)) > 20 * max_length

    if not any(map(is_long, rows)):
        return list(rows)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()

    def cut(pair: Sequence[str]) -> tuple[str, ...]:
        parts = [plain.encode(text, add_special_tokens=False).offsets for text in pair]
        most = max(map(len, parts))
        texts = []
        for text, offsets in zip(pair, parts, strict=True):
            keep = max_length + (8 if len(offsets) == most else 4)
            if len(offsets) <= keep:
                texts.append(text)
            else:
                texts.append(text[: offsets[keep - 1][1]] if from_right else text[offsets[-keep][0] :])
        return tuple(texts)

    return [cut(row) if is_long(row) else row for row in rows]


class TokenizerFile:
    """Encodes with ``tokenizer.json`` of a bundle.

    Args:
        path: The tokenizer file.
        inputs: ``names``, ``pad_token``, ``pad_id``, ``pad_type_id``, ``padding_side``, ``truncation_side``.
        max_length: Tokens of a row, special tokens included; more are cut off.
        offsets: Whether to give `OFFSETS`, too; both are 0 for tokens that stand for no text.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any], *, max_length: int, offsets: bool = False) -> None:
        self._offsets = offsets
        self._names = tuple(inputs["names"])
        self._max_length = max_length
        self._from_right = inputs.get("truncation_side", "right") == "right"
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
        rows = cut_long_pairs(rows, self._tokenizer, max_length=self._max_length, from_right=self._from_right)
        encoded = self._tokenizer.encode_batch(rows)
        arrays = {
            name: np.array([getattr(row, COLUMNS[name]) for row in encoded], dtype=np.int64) for name in self._names
        }
        if self._offsets:
            arrays[OFFSETS] = np.array([row.offsets for row in encoded], dtype=np.int64)
        return arrays
