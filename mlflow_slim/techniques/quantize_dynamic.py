"""``quantize.dynamic``: int8 weights, activations scaled to int8 while the model runs; no training.

Validation rows decide what the recipe leaves open: 7 or 8 bits for weights (two 8-bit products can overflow the 16-bit
sums of CPUs without VNNI, Jacob et al. 2018, arXiv:1712.05877, and onnxruntime's notes on U8S8), and which modules
stay in float when the answers of the whole integer model stray too far.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel
from ..interfaces import Context, Scheme
from ..precision_search import QuantizeOptions, quantize_for_backends

__all__ = ["QuantizeDynamic"]


class QuantizeDynamic(QuantizeOptions):
    """Turns weights into int8 and scales activations at run time; keeps in float what the margin needs."""

    name: ClassVar[str] = "quantize.dynamic"
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime", "torch")

    per_channel: bool = Field(True, description="A scale for each output channel of a weight, not one for all.")
    reduce_range: bool | None = Field(
        None, description="7 bits for weights; default: whichever of 7 and 8 answers closer on calibration rows."
    )
    embedding_bits: Literal[8, 4] = Field(
        8,
        description="Bits of the embeddings' weights; 4 halves their size again, in blocks with a scale each, and "
        "falls back to 8 where the margin doesn't hold.",
    )
    block_size: Literal[16, 32, 64, 128] = Field(64, description="Weights of an embedding that share a scale; 4 bits.")

    engine: Literal["torch.ao", "torchao"] = Field(
        "torch.ao",
        description="Which quantizer on the torch backend, where embeddings stay float and so does the file.",
    )

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module.
            ExportError: The model can't be exported or quantized.
        """
        choices = [
            [
                Scheme(
                    "dynamic",
                    per_channel=self.per_channel,
                    reduce_range=reduced,
                    embedding_bits=bits,
                    block_size=self.block_size,
                    engine=self.engine,
                )
                for reduced in ([False, True] if self.reduce_range is None else [self.reduce_range])
            ]
            for bits in ([4, 8] if self.embedding_bits == 4 else [8])
        ]
        return quantize_for_backends(self.name, self, choices, source, context)
