"""``prune.magnitude``: the smallest weights become zero and stay zero while the rest is trained.

The matrices keep their shape: a runtime with dense kernels, which is every runtime here, computes with the zeros as
with any other number, and a file holds them unless it is compressed. What is gained is shown by the number of weights
that are not zero, and by hardware and formats that know a pattern such as 2:4 (Mishra et al. 2021, arXiv:2104.08378).
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ..artifact import OptimizedModel, StepRecord
from ..depth import find_layers
from ..interfaces import Context
from ..recovery import Recovery

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PruneMagnitude"]

CAUTION = (
    "prune.magnitude sets weights to zero without making any matrix smaller: dense runtimes are not faster for it, "
    "and the file is smaller only once it is compressed."
)


class PruneMagnitude(Recovery):
    """Sets the smallest weights of the layers' matrices to zero, then trains the others."""

    name: ClassVar[str] = "prune.magnitude"
    leaves_zeros: ClassVar[bool] = True
    """A later step that trains would fill them."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of weights to set to zero; a pattern says it instead.")
    scope: Literal["layer", "global"] = Field(
        "layer", description="layer: the same share of each matrix; global: the smallest of all matrices."
    )
    pattern: str | None = Field(
        None, description="N:M, such as 2:4: of every M neighbours in a row only the N largest stay; default: anywhere."
    )

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        found = re.fullmatch(r"(\d+):(\d+)", value) if value is not None else None
        if value is not None and (found is None or not 0 < int(found[1]) < int(found[2])):
            raise ValueError(f"pattern {value!r} is not N:M with 0 < N < M. Write for example 2:4.")
        return value

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A model with zeros in the matrices of its layers; ``source`` is left as it is.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        pruned = replace(source, model=copy.deepcopy(source.model))
        matrices = _matrices(pruned.model)
        masks = self._masks([matrix.detach() for matrix in matrices])
        with torch.no_grad():
            for matrix, mask in zip(matrices, masks, strict=True):
                matrix.mul_(mask)
        # A weight that is zero, with a gradient that is zero, stays zero under AdamW: its moments and its decay do.
        holds = [matrix.register_hook(_held(mask)) for matrix, mask in zip(matrices, masks, strict=True)]
        try:
            notes: dict[str, Any] = dict(self.recover(pruned, source, context, label=self.name))
        finally:
            for hold in holds:
                hold.remove()
        total = sum(matrix.numel() for matrix in matrices)
        zeros = total - sum(int(torch.count_nonzero(matrix)) for matrix in matrices)
        notes |= {"matrices": len(matrices), "zero_share": round(zeros / total, 5), "caution": CAUTION}
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model)

    def _masks(self, matrices: list[Tensor]) -> list[Tensor]:
        import torch

        if self.pattern is not None:
            n, m = map(int, self.pattern.split(":"))
            return [_n_of_m(matrix, n, m) for matrix in matrices]
        if self.scope == "global":
            sizes = torch.cat([matrix.abs().flatten() for matrix in matrices])
            limit = sizes.kthvalue(max(1, round(self.sparsity * len(sizes)))).values
            return [(matrix.abs() > limit).to(matrix.dtype) for matrix in matrices]
        limits = [m.abs().flatten().kthvalue(max(1, round(self.sparsity * m.numel()))).values for m in matrices]
        return [(m.abs() > limit).to(m.dtype) for m, limit in zip(matrices, limits, strict=True)]


def _matrices(model: Any) -> list[Any]:
    """Weights of the linear modules of all layers; embeddings and the task's head stay as they are."""
    import torch

    _, layers = find_layers(model)
    return [module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)]


def _n_of_m(matrix: Tensor, n: int, m: int) -> Tensor:
    """Ones at the ``n`` largest of every ``m`` neighbours in a row; what is left over at a row's end stays."""
    import torch

    mask = torch.ones_like(matrix)
    whole = matrix.shape[1] // m * m
    groups = matrix[:, :whole].abs().reshape(matrix.shape[0], -1, m)
    small = groups.topk(m - n, dim=-1, largest=False).indices
    mask[:, :whole] = torch.ones_like(groups).scatter_(-1, small, 0.0).reshape(matrix.shape[0], whole)
    return mask


def _held(mask: Tensor) -> Any:
    def hold(gradient: Tensor) -> Tensor:
        return gradient * mask.to(gradient.device)

    return hold
