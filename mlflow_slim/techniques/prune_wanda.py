"""``prune.wanda``: the weights that add least to their layer's outputs become zero, without any training if asked.

A weight counts as its size times the norm of what it is multiplied with on calibration rows, and competes with the
others of its row: Sun et al. 2024, arXiv:2306.11695, equation 1. The inputs are those of the model as it is, not of
one whose earlier layers are pruned already, so that one pass over the rows is enough. As with `prune.magnitude` the
matrices keep their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ..artifact import OptimizedModel
from ..importance import input_norms
from ..interfaces import Context
from ..zeros import Zeroing, n_of_m

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PruneWanda"]


class PruneWanda(Zeroing):
    """Sets the weights with the least part in their layer's outputs to zero, then trains the others."""

    name: ClassVar[str] = "prune.wanda"

    rows: int = Field(128, ge=1, description="Training rows to look at, at most.")

    def masks(self, source: OptimizedModel, weights: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        """See `Zeroing.masks`."""
        import torch

        norms = input_norms(source, list(weights), context, rows=self.rows)
        masks = {}
        for name, weight in weights.items():
            parts = weight.abs() * norms[name].to(weight.dtype)
            if self.pattern is not None:
                masks[name] = n_of_m(parts, self.pattern)
                continue
            out = round(self.sparsity * weight.shape[1])  # of every row
            low = parts.topk(out, dim=1, largest=False).indices
            masks[name] = torch.ones_like(parts).scatter_(1, low, 0.0)
        return masks
