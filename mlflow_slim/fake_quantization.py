"""Rounding while training, as the integer graph will round: weights a channel, activations a tensor.

Gradients pass through the rounding where nothing is cut off (Jacob et al. 2018, arXiv:1712.05877, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["fake_quantized"]

_TOP = {False: 127, True: 64}
"""Largest code of a weight, by whether its range is reduced to 7 bits."""


@contextmanager
def fake_quantized(model: Any, *, reduce_range: bool = False) -> Iterator[list[str]]:
    """Inside, linear modules of ``model`` round weights and what they are fed; after, its trained weights are plain.

    Weights are symmetric, with a scale for each output channel; activations have 8 bits, with scale and zero point of
    the batch at hand. Embeddings, which lose little in 8 bits, stay as they are. Dropout is off inside, while training,
    too: its noise is many times that of the rounding, and would be what is learned about.

    Args:
        model: A torch module; changed inside, and given back as plain modules.
        reduce_range: 7 bits for weights.

    Yields:
        Names of the modules that round.
    """
    import torch
    from torch.nn.utils import parametrize

    top = _TOP[reduce_range]

    class Rounded(torch.nn.Module):
        """A weight, rounded."""

        def forward(self, weight: Any) -> Any:
            scale = weight.detach().abs().amax(dim=1).clamp(min=1e-8) / top
            zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
            return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -top, top)

    def round_input(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        fed = given[0]
        low, high = fed.detach().amin().clamp(max=0), fed.detach().amax().clamp(min=0)
        scale = ((high - low) / 255).clamp(min=1e-8)
        zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
        return (torch.fake_quantize_per_tensor_affine(fed, scale, zero, 0, 255), *given[1:])

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = []
    model.train = lambda _=True: torch.nn.Module.train(model, False)
    for module in linear.values():
        parametrize.register_parametrization(module, "weight", Rounded())
        hooks.append(module.register_forward_pre_hook(round_input))
    try:
        yield list(linear)
    finally:
        del model.train
        for hook in hooks:
            hook.remove()
        for module in linear.values():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
