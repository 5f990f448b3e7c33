"""``quantize.static``: int8 weights and activations, with ranges found once on calibration rows; no training.

The ranges come from validation rows and never from test rows. SmoothQuant's scaling (Xiao et al. 2022,
arXiv:2211.10438) moves outliers of activations into the weights that read them, before anything is rounded.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel
from ..interfaces import Context, Scheme
from ..precision_search import QuantizeOptions, quantize_for_backends

__all__ = ["QuantizeStatic"]


class QuantizeStatic(QuantizeOptions):
    """Turns weights and activations into int8 with fixed ranges; keeps in float what the margin needs."""

    name: ClassVar[str] = "quantize.static"
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    per_channel: bool = Field(True, description="A scale for each output channel of a weight, not one for all.")
    reduce_range: bool | None = Field(
        None, description="7 bits for weights; default: whichever of 7 and 8 answers closer on calibration rows."
    )
    calibrate: Literal["minmax", "entropy", "percentile"] = Field(
        "minmax", description="How an activation's range is found in what the calibration rows give."
    )
    smooth: float | None = Field(
        None,
        ge=0,
        le=1,
        description="SmoothQuant's alpha: share of the outliers that moves into weights; null: as the runtime does by "
        "itself (openvino: NNCF's own choice, onnxruntime: none).",
    )

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module, or the backend has no such calibration.
            ExportError: The model can't be exported or quantized.
        """
        schemes = [
            Scheme(
                "static",
                per_channel=self.per_channel,
                reduce_range=reduced,
                calibrate=self.calibrate,
                smooth=self.smooth,
            )
            for reduced in ([False, True] if self.reduce_range is None else [self.reduce_range])
        ]
        return quantize_for_backends(self.name, self, [schemes], source, context)
