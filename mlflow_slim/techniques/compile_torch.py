"""``compile.torch``: torch's compiler (inductor) makes kernels for this model and this machine; no training.

Ansel et al. 2024 (PyTorch 2, ASPLOS). Batch and length stay free (``dynamic=True``); of a language model passes of one
token are compiled, over a cache of fixed size. The model's folder holds the same
weights and the order to compile them when they are loaded, so the first answers take long: that is part of the cold
start, and of this step's notes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from .. import bundle
from ..artifact import OptimizedModel, StepRecord
from ..errors import ExportError
from ..interfaces import Context
from ..runtime import tasks

__all__ = ["CompileTorch"]


class CompileTorch(BaseModel):
    """Compiles the model with torch.compile when it is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "compile.torch"
    generates: ClassVar[bool] = True
    runs_on: ClassVar[tuple[str, ...]] = ("torch",)

    mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        "default", description="torch.compile's mode; max-autotune compiles far longer."
    )

    def is_available(self) -> str | None:
        """None when there is a C++ compiler, else what to install."""
        wanted = os.environ.get("CXX", "g++")
        if any(shutil.which(name) for name in (wanted, "g++", "clang++")):
            return None
        return "'compile.torch' needs a C++ compiler. Install one: apt install g++, or set CXX to yours."

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` in a folder that is compiled when it is loaded.

        Raises:
            ExportError: The compiled model answers differently.
        """
        from torch._dynamo.utils import counters

        backend = context.backends["torch"]
        sample = context.data.validation.inputs[:32]
        folder = context.workdir / "torch"
        plain = backend.load(backend.export(source, folder, sample).directory, threads=context.threads)
        bundle.set_engine(folder, {"compile": self.mode})
        counters.clear()
        start = time.perf_counter()
        compiled = backend.load(folder, threads=context.threads)
        checked: dict[str, Any]
        if tasks.find(source.task).KIND == "generator":
            checked = _same_texts(plain, compiled, sample[: context.task.check_rows])
        else:
            difference = bundle.compare(
                _batch_by_batch(plain),
                _batch_by_batch(compiled),
                sample,
                max_length=int(source.spec["max_length"]),
                tolerance=1e-3,
                what="The compiled model",
            )
            checked = {"max_abs_diff_to_eager": difference}
        notes: dict[str, Any] = {
            "first_answers_s": round(time.perf_counter() - start, 2),
            "graphs": int(counters["stats"]["unique_graphs"]),
            "graph_breaks": int(sum(counters["graph_break"].values())),
            **checked,
        }
        record = StepRecord(self.name, self.model_dump(mode="json"), notes)
        return source.after(record, source.model, builds={"torch": folder})


def _batch_by_batch(predictor: Any) -> Any:
    def answer(texts: Sequence[Any]) -> Any:
        return predictor.forward(predictor.encode(texts))

    return answer


def _same_texts(plain: Any, compiled: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """How many prompts both answer token by token alike; near ties may fall otherwise when sums are ordered otherwise.

    Raises:
        ExportError: None is.
    """
    ids = [plain.encode([row])["input_ids"][0] for row in rows]
    same = sum(list(plain.tokens(one)) == list(compiled.tokens(one)) for one in ids)
    if not same:
        raise ExportError(
            f"The compiled model writes another text to each of {len(rows)} prompts. Leave it uncompiled."
        )
    return {"compared_prompts": len(rows), "identical_prompts": same}
