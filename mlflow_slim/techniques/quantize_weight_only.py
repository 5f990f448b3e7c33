"""``quantize.weight_only``: weights are kept in 8 or 4 bits, in blocks with a scale each, and computed with as floats.

Embeddings are included: they are half of a small encoder. The gain is size and memory, and speed where reading the
weights is what takes the time (large models, one text at a time).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel
from ..interfaces import Context, Scheme
from ..precision_search import QuantizeOptions, quantize_for_backends

__all__ = ["QuantizeWeightOnly"]


class QuantizeWeightOnly(QuantizeOptions):
    """Rounds weights to 8 or 4 bits in blocks; activations stay float."""

    name: ClassVar[str] = "quantize.weight_only"
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    bits: Literal[8, 4] = Field(8, description="Bits of a weight of a matrix; 4 falls back to 8.")
    embedding_bits: Literal[8, 4] = Field(8, description="Bits of a weight of an embedding.")
    block_size: Literal[16, 32, 64, 128] = Field(32, description="Weights that share a scale.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module.
            ExportError: The model can't be exported or quantized.
        """
        asked = Scheme("weight_only", bits=self.bits, embedding_bits=self.embedding_bits, block_size=self.block_size)
        wider = replace(asked, bits=8, embedding_bits=8)
        choices = [[asked]] if asked == wider else [[asked], [wider]]
        return quantize_for_backends(self.name, self, choices, source, context)
