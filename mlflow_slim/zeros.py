"""Weights set to zero in place: the options and the work that every technique shares which makes a model sparse."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from .artifact import OptimizedModel, StepRecord
from .depth import find_layers
from .errors import ModelError
from .interfaces import Context
from .recovery import Recovery

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Zeroing", "linear_weights", "n_of_m"]


class Zeroing(Recovery):
    """Sets weights of the layers' matrices to zero, then trains the others."""

    name: ClassVar[str]
    generates: ClassVar[bool] = True
    leaves_zeros: ClassVar[bool] = True
    """A later step that trains would fill them."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of weights to set to zero; a pattern says it instead.")
    pattern: str | None = Field(
        None, description="N:M, such as 2:4: of every M neighbours in a row only the N best stay; default: anywhere."
    )

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        found = re.fullmatch(r"(\d+):(\d+)", value) if value is not None else None
        if value is not None and (found is None or not 0 < int(found[1]) < int(found[2])):
            raise ValueError(f"pattern {value!r} is not N:M with 0 < N < M. Write for example 2:4.")
        return value

    def check(self, source: OptimizedModel) -> None:
        """Raises when the model's layers have no matrices that are known; looks at shapes only."""
        linear_weights(source.model)

    def masks(self, source: OptimizedModel, weights: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        """For each matrix ones at the weights that stay and zeros at the others."""
        raise NotImplementedError

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A model with zeros in the matrices of its layers; ``source`` is left as it is.

        Raises:
            ModelError: The model keeps no list of layers, or they have no linear modules.
            TrainingDiverged: The loss became NaN or infinite.
        """
        import torch

        pruned = replace(source, model=copy.deepcopy(source.model))
        weights = linear_weights(pruned.model)
        masks = self.masks(source, {name: weight.detach() for name, weight in weights.items()}, context)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
        # A weight that is zero, with a gradient that is zero, stays zero under AdamW: its moments and its decay do.
        holds = [weight.register_hook(_held(masks[name])) for name, weight in weights.items()]
        try:
            notes: dict[str, Any] = dict(self.recover(pruned, source, context, label=self.name))
        finally:
            for hold in holds:
                hold.remove()
        total = sum(weight.numel() for weight in weights.values())
        zeros = total - sum(int(torch.count_nonzero(weight)) for weight in weights.values())
        caution = (
            f"{self.name} sets weights to zero without making any matrix smaller: dense runtimes are not faster for "
            "it, and the file is smaller only once it is compressed."
        )
        notes |= {"matrices": len(weights), "zero_share": round(zeros / total, 5), "caution": caution}
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model)


def linear_weights(model: Any) -> dict[str, Any]:
    """Weights of the linear modules of all layers by module name; embeddings and the head are none of them.

    Raises:
        ModelError: The model keeps no list of layers, or they have no linear modules.
    """
    import torch

    prefix, layers = find_layers(model)
    found = {
        f"{prefix}.{name}": module.weight
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not found:
        raise ModelError(
            f"The layers of a {model.config.model_type!r} model have no linear modules that are known. Take whole "
            "layers out instead: steps: [{technique: prune.depth}]."
        )
    return found


def n_of_m(scores: Tensor, pattern: str) -> Tensor:
    """Ones at the N highest of every M neighbours in a row; what is left over at a row's end stays."""
    import torch

    n, m = map(int, pattern.split(":"))
    mask = torch.ones_like(scores)
    whole = scores.shape[1] // m * m
    groups = scores[:, :whole].reshape(scores.shape[0], -1, m)
    low = groups.topk(m - n, dim=-1, largest=False).indices
    mask[:, :whole] = torch.ones_like(groups).scatter_(-1, low, 0.0).reshape(scores.shape[0], whole)
    return mask


def _held(mask: Tensor) -> Any:
    def hold(gradient: Tensor) -> Tensor:
        return gradient * mask.to(gradient.device)

    return hold
