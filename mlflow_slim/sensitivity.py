"""Which parts of a model suffer from less precision: the measure of the damage, and the parts to try one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["group_modules", "sqnr_db"]


def sqnr_db(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of outputs, decibels; infinite when both are the same.

    Args:
        exact: Outputs of the float model, any shape.
        rounded: Outputs of the quantized one, same shape.

    >>> import numpy as np
    >>> round(sqnr_db(np.array([1.0, 1.0]), np.array([1.1, 0.9])), 6)
    20.0
    """
    import numpy as np

    noise = float(np.square(exact.astype(np.float64) - rounded).sum())
    signal = float(np.square(exact.astype(np.float64)).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def group_modules(names: Iterable[str]) -> list[list[str]]:
    """Modules of one layer and part together, others alone, in the order of their first member.

    One layer's attention projections share what they are fed, so they are judged together.

    >>> group_modules(["emb", "enc.layer.0.attention.q", "enc.layer.0.attention.k", "enc.layer.0.output", "head"])
    [['emb'], ['enc.layer.0.attention.q', 'enc.layer.0.attention.k'], ['enc.layer.0.output'], ['head']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        found = re.match(r"(.*\.\d+\.[^.]+)", name)
        groups.setdefault(found[1] if found else name, []).append(name)
    return list(groups.values())
