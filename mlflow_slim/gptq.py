"""GPTQ: weights rounded column by column, each error made good by the columns that are still to come.

What a layer is fed decides which errors matter: the second moments of its inputs on calibration rows are gathered in
one pass of the model as it is. Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with the columns in the
order of what they are fed ("act-order") and blocks whose scales are fixed before, over ranges with the least error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .importance import watched_inputs

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .artifact import OptimizedModel
    from .interfaces import Task

__all__ = ["Codes", "harm", "input_moments", "nearest", "solve"]

_DAMP = 0.01
_BATCH = 16
_COLUMNS = 128  # whose errors are passed on at once
_RANGES = tuple(1 - 0.02 * step for step in range(16))
"""Shares of a block's range that its codes may cover."""


@dataclass(frozen=True)
class Codes:
    """A matrix in integers: ``(code - zero) * scale``, where scale and zero hold for a block of a row.

    Attributes:
        codes: ``(out, in)`` uint8, below ``2 ** bits``.
        scales: ``(out, in / block)`` float32.
        zeros: ``(out, in / block)`` uint8.
        bits: Bits of a code, 4 or 8.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int

    @property
    def block_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def weight(self) -> Tensor:
        """The matrix that the codes stand for, ``(out, in)`` float32."""
        size = self.block_size
        zeros, scales = (part.repeat_interleave(size, dim=1) for part in (self.zeros.float(), self.scales))
        return (self.codes.float() - zeros) * scales

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As onnxruntime's MatMulNBits wants them: codes ``(out, blocks, bytes)``, scales, zeros; low half first.

        Scales are float16 where that holds every one of them.
        """
        import numpy as np

        codes = self.codes.numpy().reshape(len(self.codes), self.scales.shape[1], self.block_size)
        zeros = self.zeros.numpy()
        if self.bits == 4:
            if zeros.shape[1] % 2:
                zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=8)
            codes, zeros = (part[..., 0::2] | (part[..., 1::2] << 4) for part in (codes, zeros))
        scales = self.scales.numpy()
        narrow = scales.astype(np.float16)
        return codes, narrow if (narrow == scales).all() else scales, zeros


def _in_half(scale: Tensor) -> Tensor:
    """Scales that half precision holds exactly, larger by a thousandth so that no code is cut off by rounding.

    A scale too small for that (below about 3e-6) stays as it is.
    """
    import torch

    narrow = (scale * (1 + 2**-10)).half().float()
    return torch.where((narrow / scale - 1).abs() < 0.01, narrow, scale)


def _grid(blocks: Tensor, bits: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero of each block ``(rows, blocks, block)``: its range, 0 included, is shared out evenly.

    With ``weights``, ranges that cut off a block's ends are tried too, and the one with the least squared error, so
    weighted, is taken.
    """
    import torch

    top = 2**bits - 1
    low, high = blocks.amin(dim=-1).clamp(max=0), blocks.amax(dim=-1).clamp(min=0)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for share in _RANGES if weights is not None else (1.0,):
        scale = (high - low) * share / top
        scale = _in_half(torch.where(scale > 0, scale, torch.ones_like(scale)))
        zero = (-low * share / scale).round().clamp(0, top)
        if weights is None:
            return scale, zero
        codes = ((blocks / scale[..., None]).round() + zero[..., None]).clamp(0, top)
        error = (((codes - zero[..., None]) * scale[..., None] - blocks) ** 2 * weights).sum(dim=-1)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = (
                torch.where(better, error, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, zero, best[2]),
            )
    assert best is not None, "there is at least one range"
    return best[1], best[2]


def nearest(weight: Tensor, *, bits: int, block_size: int) -> Codes:
    """Every weight rounded to the nearest code.

    Args:
        weight: ``(out, in)``; ``in`` is a multiple of ``block_size``.
        bits: 4 or 8.
        block_size: Weights of a row that share a scale.
    """
    import torch

    blocks = weight.float().reshape(len(weight), -1, block_size)
    scale, zero = _grid(blocks, bits)
    codes = (blocks / scale[..., None]).round() + zero[..., None]
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8).reshape(weight.shape)
    return Codes(codes, scale, zero.to(torch.uint8), bits)


def solve(weight: Tensor, moments: Tensor, *, bits: int, block_size: int) -> Codes:
    """Codes whose products with the layer's inputs are near those of ``weight``.

    Args:
        weight: ``(out, in)``; ``in`` is a multiple of ``block_size``.
        moments: ``(in, in)`` sum of the outer products of the layer's inputs.
        bits: 4 or 8.
        block_size: Weights of a row that share a scale.
    """
    import torch

    left = weight.float().clone()
    columns = left.shape[1]
    matrix = moments.float().clone()
    every = torch.arange(columns)
    silent = matrix[every, every] == 0  # inputs that never come: any weight will do
    matrix[silent, silent] = 1.0
    left[:, silent] = 0.0
    often = matrix.diagonal().clone()
    scales, zeros = _grid(left.reshape(len(left), -1, block_size), bits, often.reshape(1, -1, block_size))
    # The columns that matter most go first, while there are others left to make good their errors.
    order = torch.argsort(often, descending=True)
    matrix[every, every] += _DAMP * often.mean()
    left, matrix = left[:, order], matrix[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(matrix)), upper=True)
    codes = torch.zeros_like(left, dtype=torch.uint8)
    for start in range(0, columns, _COLUMNS):
        stop = min(start + _COLUMNS, columns)
        errors = torch.zeros(len(left), stop - start)
        for column in range(start, stop):
            block = int(order[column]) // block_size
            scale, zero = scales[:, block], zeros[:, block]
            code = ((left[:, column] / scale).round() + zero).clamp(0, 2**bits - 1)
            codes[:, order[column]] = code.to(torch.uint8)
            error = (left[:, column] - (code - zero) * scale) / inverse[column, column]
            left[:, column + 1 : stop] -= error[:, None] * inverse[column, column + 1 : stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ inverse[start:stop, stop:]
    return Codes(codes, scales, zeros.to(torch.uint8), bits)


def input_moments(source: OptimizedModel, task: Task, inputs: Sequence[Any], names: Iterable[str]) -> dict[str, Tensor]:
    """Sum of the outer products of what each linear module is fed, ``(in, in)``, over all tokens of the rows.

    Args:
        source: The model; it is left as it is.
        task: Encodes the rows.
        inputs: Calibration rows.
        names: Modules to look at.
    """
    import torch

    found: dict[str, Tensor] = {}
    real = torch.zeros(0, dtype=torch.bool)  # which places of the batch at hand hold a token

    def look(name: str, _: Any, given: Tensor) -> None:
        flat = given.detach()[real].float()
        product = flat.T @ flat
        found[name] = found[name] + product if name in found else product

    rows = sorted((row["input_ids"] for row in task.encode(source.processor, inputs, source.spec)), key=len)
    with watched_inputs(source.model, names, look), torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            batch = source.processor.pad({"input_ids": rows[start : start + _BATCH]}, return_tensors="pt")
            real = batch["attention_mask"].bool()
            source.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}, use_cache=False)
    return {name: moments.cpu() for name, moments in found.items()}


def harm(weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], *, block_size: int) -> list[str]:
    """Names of matrices, those first whose outputs 4 bits harm most for every weight that is saved.

    The harm is the squared error of the outputs on the calibration rows as a share of the outputs' own squares.
    """

    def share(name: str) -> float:
        weight = weights[name].float()
        error = weight - nearest(weight, bits=4, block_size=block_size).weight()
        lost, whole = (((part @ moments[name]) * part).sum() for part in (error, weight))
        return float(lost / whole) / weight.numel()

    return sorted(weights, key=lambda name: -share(name))
