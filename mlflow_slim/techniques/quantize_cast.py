"""``quantize.cast``: weights and computing in 16-bit floats (bfloat16 or float16); no training.

Half the size. Faster only where the processor computes in that type (GPUs, CPUs with AMX or AVX-512 BF16); elsewhere
every operation converts, and the measured point comes out as slower.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ExportError
from ..interfaces import Context

__all__ = ["QuantizeCast"]


class QuantizeCast(BaseModel):
    """Casts weights to a 16-bit float type and computes in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "quantize.cast"
    generates: ClassVar[bool] = True
    runs_on: ClassVar[tuple[str, ...]] = ("torch",)

    dtype: Literal["bfloat16", "float16"] = Field(
        "bfloat16", description="bfloat16 has float32's range, float16 more digits and a largest value of 65504."
    )

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A copy of ``source`` in ``dtype``.

        Raises:
            ExportError: Its answers are no numbers any more.
        """
        import numpy as np
        import torch

        model = copy.deepcopy(source.model).to(getattr(torch, self.dtype))
        rows = context.data.validation.inputs[: context.task.check_rows]
        if not np.isfinite(context.task.outputs(model, source.processor, rows, source.spec)).all():
            raise ExportError(
                f"In {self.dtype} the model answers with values that are no numbers: some are beyond its range. "
                "Write dtype: bfloat16, which has the range of float32."
            )
        return source.after(StepRecord(self.name, self.model_dump(mode="json")), model.eval())
