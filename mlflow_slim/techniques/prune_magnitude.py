"""``prune.magnitude``: the smallest weights become zero and stay zero while the rest is trained.

The matrices keep their shape: a runtime with dense kernels, which is every runtime here, computes with the zeros as
with any other number, and a file holds them unless it is compressed. What is gained is shown by the number of weights
that are not zero, and by hardware and formats that know a pattern such as 2:4 (Mishra et al. 2021, arXiv:2104.08378).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel
from ..interfaces import Context
from ..zeros import Zeroing, n_of_m

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PruneMagnitude"]


class PruneMagnitude(Zeroing):
    """Sets the smallest weights of the layers' matrices to zero, then trains the others."""

    name: ClassVar[str] = "prune.magnitude"

    scope: Literal["layer", "global"] = Field(
        "layer", description="layer: the same share of each matrix; global: the smallest of all matrices."
    )

    def masks(
        self,
        source: OptimizedModel,  # noqa: ARG002 - weights are all that is looked at
        weights: Mapping[str, Tensor],
        context: Context,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """See `Zeroing.masks`."""
        import torch

        sizes = {name: weight.abs() for name, weight in weights.items()}
        if self.pattern is not None:
            return {name: n_of_m(size, self.pattern) for name, size in sizes.items()}
        if self.scope == "global":
            limit = self._limit(torch.cat([size.flatten() for size in sizes.values()]))
            return {name: (size > limit).to(size.dtype) for name, size in sizes.items()}
        return {name: (size > self._limit(size.flatten())).to(size.dtype) for name, size in sizes.items()}

    def _limit(self, sizes: Tensor) -> Tensor:
        return sizes.kthvalue(max(1, round(self.sparsity * len(sizes)))).values
