"""How well vectors keep what is near to what: the nearest texts, and the order of similarities people gave to pairs.

Source: Kusupati et al. 2022, arXiv:2205.13147, for recall of a larger vector's neighbours; Reimers and Gurevych 2019,
arXiv:1908.10084, for Spearman's correlation of cosines with people's scores.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["NEIGHBOURS", "cosines", "kept_neighbours", "nearest", "spearman"]

Array: TypeAlias = npt.NDArray[Any]
NEIGHBOURS = 10
"""So many nearest rows are compared, or all others where there are fewer."""
_CHUNK = 1024


def _unit(vectors: Array) -> Array:
    long = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(long, 1e-12), dtype=np.float32)


def nearest(vectors: Array) -> Array:
    """``(rows, k)`` numbers of the rows with the largest cosine to each, itself left out, the nearest first.

    Equal cosines are in the rows' order.
    """
    units = _unit(vectors)
    k = min(NEIGHBOURS, len(units) - 1)
    found = np.empty((len(units), k), dtype=np.int64)
    for start in range(0, len(units), _CHUNK):
        near = units[start : start + _CHUNK] @ units.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        found[start : start + _CHUNK] = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return found


def kept_neighbours(before: Array, after: Array) -> Array:
    """``(rows,)`` share of each row's nearest that are the same ones, in any order; both as `nearest` gives them."""
    return np.asarray((before[:, :, None] == after[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)


def cosines(pairs: Array) -> Array:
    """``(rows,)`` cosine of the two vectors of each pair ``(rows, 2, dimensions)``."""
    units = _unit(pairs)
    return np.asarray((units[:, 0] * units[:, 1]).sum(axis=1), dtype=np.float64)


def spearman(predictions: Array, references: Array) -> float:
    """Spearman's rank correlation, -1 to 1; nan where all of one side are equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (predictions, references)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
