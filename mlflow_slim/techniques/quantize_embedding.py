"""``quantize.embedding``: shorter vectors, in fewer bits; the model that makes them stays as it is.

What is searched gets smaller and faster, not the model: a vector of 384 float32 takes 1536 bytes, its first 128
dimensions in int8 take 128, all of them in one bit each 48. Models that weren't trained so that the first dimensions
say most (Kusupati et al. 2022, arXiv:2205.13147) lose more when they are cut.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ConfigError
from ..interfaces import Context
from ..runtime import tasks

__all__ = ["QuantizeEmbedding"]

_BITS = {"float32": 32, "int8": 8, "binary": 1}


class QuantizeEmbedding(BaseModel):
    """Cuts vectors to their first dimensions and rounds them to int8, or to their signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "quantize.embedding"
    works_on_builds: ClassVar[bool] = True

    dimensions: int | None = Field(None, ge=1, description="How many of the first dimensions stay; default: all.")
    dtype: Literal["float32", "int8", "binary"] = Field(
        "int8",
        description="A number of a vector: float32, int8 between the extremes seen in training rows, or its sign.",
    )
    calibration_rows: int = Field(1000, ge=2, description="Training rows that show the extremes, at most.")

    def check(self, source: OptimizedModel) -> None:
        """Raises ConfigError when there are no vectors, or they are shorter."""
        if tasks.find(source.task).KIND != "embedder":
            raise ConfigError(f"quantize.embedding is for vectors, and {source.task} gives none. Leave it out.")
        width = _width(source)
        if self.dimensions is not None and self.dimensions > width:
            raise ConfigError(f"dimensions is {self.dimensions}, and the vectors have {width}. Write that or less.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The model with another ``spec``; ``source`` is left as it is."""
        self.check(source)
        plain = {key: value for key, value in source.spec.items() if key not in ("low", "high", "output")}
        spec: dict[str, Any] = {**plain, "output": "float32"}
        if self.dimensions is not None:
            spec["dimensions"] = self.dimensions
        if self.dtype == "int8":
            inputs = context.data.train.inputs
            step = -(-len(inputs) // self.calibration_rows)
            vectors = context.task.outputs(source.model, source.processor, inputs[::step], spec)
            spec |= {"low": vectors.min(axis=0).tolist(), "high": vectors.max(axis=0).tolist()}
        spec["output"] = self.dtype
        width = spec.get("dimensions") or _width(source)
        before = _width(source) * _BITS[str(source.spec.get("output", "float32"))] / 8
        notes = {"bytes_per_vector": -(-width * _BITS[self.dtype] // 8), "bytes_before": before}
        record = StepRecord(self.name, self.model_dump(mode="json"), notes)
        return source.after(record, source.model, spec=spec)


def _width(source: OptimizedModel) -> int:
    return int(source.spec.get("dimensions") or source.model.config.hidden_size)
