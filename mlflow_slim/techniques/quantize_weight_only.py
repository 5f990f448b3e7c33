"""``quantize.weight_only``: weights are kept in 8 or 4 bits, in blocks with a scale each, and computed with as floats.

Embeddings are included: they are half of a small encoder. The gain is size and memory, and speed where reading the
weights is what takes the time (large models, one text at a time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel
from ..decoder_quantization import block_for
from ..gptq import harm, input_moments
from ..interfaces import Context, Scheme
from ..precision_search import QuantizeOptions, quantize_for_backends
from ..runtime import tasks

__all__ = ["QuantizeWeightOnly"]

_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the layers' weights that may stay in 8 bits beside the output embedding, tried in this order."""


class QuantizeWeightOnly(QuantizeOptions):
    """Rounds weights to 8 or 4 bits in blocks; activations stay float."""

    name: ClassVar[str] = "quantize.weight_only"
    generates: ClassVar[bool] = True
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    bits: Literal[8, 4] = Field(8, description="Bits of a weight of a matrix; 4 falls back to 8.")
    embedding_bits: Literal[8, 4] = Field(8, description="Bits of a weight of an embedding.")
    block_size: Literal[16, 32, 64, 128] = Field(32, description="Weights that share a scale.")
    solve: Literal["gptq", "nearest"] = Field(
        "gptq",
        description="How 4-bit weights of a language model are found: making good each other's errors, or rounded.",
    )
    gptq_rows: int = Field(512, ge=1, description="Training rows whose activations GPTQ looks at, at most.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module.
            ExportError: The model can't be exported or quantized.
        """
        if tasks.find(source.task).KIND == "generator":
            return self._apply_to_decoder(source, context)
        asked = Scheme("weight_only", bits=self.bits, embedding_bits=self.embedding_bits, block_size=self.block_size)
        wider = replace(asked, bits=8, embedding_bits=8)
        choices = [[asked]] if asked == wider else [[asked], [wider]]
        return quantize_for_backends(self.name, self, choices, source, context)

    def _apply_to_decoder(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A language model: in 4 bits as far as ``max_drop`` allows, the matrices that would harm most in 8."""
        import torch

        # Top tokens change far more easily than classes, and most changes mean nothing: only the metric is held.
        options = self if "min_agreement" in self.model_fields_set else self.model_copy(update={"min_agreement": 0.0})
        eight = Scheme("weight_only", bits=8, embedding_bits=8, block_size=self.block_size)
        train = context.data.train.inputs
        rows = [train[i] for i in range(0, len(train), -(-len(train) // self.gptq_rows))]
        choices = [[eight]]
        if self.bits == 4:
            weights = {
                name: module.weight.detach().cpu()
                for name, module in source.model.named_modules()
                if isinstance(module, torch.nn.Linear) and block_for(module.weight.shape[1], self.block_size)
            }
            moments = input_moments(source, context.task, rows, weights)
            heads = [
                name for name in weights if source.model.get_submodule(name) is source.model.get_output_embeddings()
            ]
            order = [name for name in harm(weights, moments, block_size=self.block_size) if name not in heads]
            sizes = {name: weights[name].numel() for name in order}
            # The output embedding acts on every answer at once: in a small model it lost more than all layers did.
            wide = [frozenset[str](), *(frozenset(heads) | _first(order, sizes, share) for share in _SHARES)]
            four = replace(eight, bits=4, embedding_bits=self.embedding_bits, solve=self.solve)
            choices = [[replace(four, wide=names)] for names in dict.fromkeys(wide)] + choices
        return quantize_for_backends(
            self.name, options, choices, source, context, calibration=rows, back_to_float=False
        )


def _first(order: Sequence[str], sizes: Mapping[str, int], share: float) -> frozenset[str]:
    """As many names from the start as have ``share`` of all weights."""
    room, chosen = share * sum(sizes.values()), []
    for name in order:
        if room < sizes[name]:
            break
        room -= sizes[name]
        chosen.append(name)
    return frozenset(chosen)
