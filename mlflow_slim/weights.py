"""Finds a matrix of a graph again as the torch module it came from, whatever exporters and fusions called it."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["array_digest", "modules_by_weight"]


def array_digest(array: Any) -> str:
    """Shape and sha256 of an array's values as float32."""
    import numpy as np

    plain = np.ascontiguousarray(array, dtype=np.float32)
    return f"{plain.shape}:{hashlib.sha256(plain.tobytes()).hexdigest()}"


def modules_by_weight(model: Any) -> dict[str, str]:
    """Digest of each matrix of a torch model, as it is and transposed -> the name of its module."""
    found: dict[str, str] = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            array = weight.detach().cpu().float().numpy()
            for form in (array, array.T):
                found.setdefault(array_digest(form), name.removesuffix(".weight"))
    return found
