"""From the states of tokens to one vector for a text, and to what of it is given out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

POOLINGS = ("mean", "cls", "max", "last")
"""How states become one vector: their mean, the first, the largest of each dimension, the last."""
VECTOR_SETTINGS = ("pooling", "normalize", "dimensions", "output", "low", "high")
"""What a spec says of how a vector is made."""


def pool(states: np.ndarray, mask: np.ndarray, how: str) -> np.ndarray:
    """``(rows, width)`` of states ``(rows, tokens, width)``; ``mask`` ``(rows, tokens)`` is 0 where there is padding.

    Raises:
        ValueError: ``how`` is none of `POOLINGS`.
    """
    if how == "mean":
        weights = mask.astype(np.float32)[:, :, None]
        return np.asarray((states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9), dtype=np.float32)
    if how == "max":
        return np.asarray(np.where(mask[:, :, None] > 0, states, -np.inf).max(axis=1), dtype=np.float32)
    rows = np.arange(len(states))
    if how == "cls":
        return np.asarray(states[rows, mask.argmax(axis=1)], dtype=np.float32)
    if how == "last":
        return np.asarray(states[rows, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)], dtype=np.float32)
    raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {how!r}.")


def finish(vectors: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """What is given out of pooled vectors: the first ``dimensions`` of them, at length 1, in whole numbers; float32.

    Args:
        vectors: ``(rows, width)``.
        spec: ``dimensions`` (None for all), ``normalize``, and ``output``: ``float32``, ``int8`` (by ``low`` and
            ``high`` of each dimension) or ``binary`` (-1 and 1).
    """
    if (kept := spec.get("dimensions")) is not None:
        vectors = vectors[:, :kept]
    if spec["normalize"]:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    output = spec.get("output", "float32")
    if output == "int8":
        low, high = (np.array(spec[end], dtype=np.float32) for end in ("low", "high"))
        vectors = np.clip(np.round((vectors - low) / np.maximum(high - low, 1e-12) * 255 - 128), -128, 127)
    elif output == "binary":
        vectors = np.where(vectors > 0, 1.0, -1.0)
    return np.asarray(vectors, dtype=np.float32)
