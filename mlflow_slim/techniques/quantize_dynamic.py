"""``quantize.dynamic``: int8 weights, activations scaled to int8 while the model runs; no training.

The float model is exported for each runtime and quantized there. Validation rows decide what the recipe leaves
open: 7 or 8 bits for weights (two 8-bit products can overflow the 16-bit sums of CPUs without VNNI, Jacob et al. 2018,
arXiv:1712.05877, and onnxruntime's notes on U8S8), and which modules stay in float when the answers
of the whole integer model stray too far. Test rows are never looked at.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ConfigError, ExportError, did_you_mean
from ..interfaces import Context, QuantizingBackend, Scheme
from ..sensitivity import group_modules, sqnr_db

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QuantizeDynamic"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Trial:
    """One quantized form and how it answers on the calibration rows."""

    scheme: Scheme
    folder: Path
    agreement: float
    drop: float
    sqnr_db: float


class QuantizeDynamic(BaseModel):
    """Turns weights into int8 and scales activations at run time; keeps in float what the margin needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "quantize.dynamic"
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    per_channel: bool = Field(True, description="A scale for each output channel of a weight, not one for all.")
    reduce_range: bool | None = Field(
        None, description="7 bits for weights; default: whichever of 7 and 8 answers closer on calibration rows."
    )
    keep_float: tuple[str, ...] = Field(
        (), description="Modules to keep in float, by name pattern, such as *.classifier or *embeddings*."
    )
    max_drop: float | None = Field(
        0.02,
        ge=0,
        lt=1,
        description="Largest drop of the headline metric on validation rows; beyond it, modules go back to float, the "
        "most harmful first. null: keep whatever comes out.",
    )
    min_agreement: float = Field(
        0.97, ge=0, le=1, description="Smallest share of validation rows answered as before; held as max_drop is."
    )
    calibration_rows: int = Field(400, ge=1, description="Validation rows to decide on, at most.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module.
            ExportError: The model can't be exported or quantized.
        """
        builds: dict[str, Path] = {}
        notes: dict[str, Any] = {}
        for name in context.backends:
            chosen = _Search(self, source, context, cast("QuantizingBackend", context.backends[name]), name).run()
            builds[name] = chosen.folder
            notes[name] = {
                "reduce_range": chosen.scheme.reduce_range,
                "kept_in_float": sorted(chosen.scheme.keep_float),
                "calibration_agreement": round(chosen.agreement, 5),
                "calibration_drop": round(chosen.drop, 5),
                "sqnr_db": round(chosen.sqnr_db, 2),
            }
        record = StepRecord(self.name, self.model_dump(mode="json"), notes)
        return source.after(record, source.model, builds=builds)


class _Search:
    """Finds the scheme for one backend."""

    def __init__(
        self, options: QuantizeDynamic, source: OptimizedModel, context: Context, backend: QuantizingBackend, name: str
    ) -> None:
        self.options, self.source, self.context, self.backend = options, source, context, backend
        self.folder = context.workdir / name
        validation = context.data.validation
        # Even steps: the rows may be sorted by label.
        rows = list(range(0, len(validation), -(-len(validation) // options.calibration_rows)))
        self.inputs: Sequence[Any] = [validation.inputs[row] for row in rows]
        self.references = validation.references[rows]
        self.metric = context.metric or context.task.headline(validation.references, source.spec)[0]
        self.exported = backend.export(source, self.folder / "float", self.inputs[:32])
        self.expected = self._answers(self.exported.directory)
        self.modules = backend.quantizable(self.exported, source, "dynamic")
        self.tried = 0

    def _answers(self, folder: Path) -> np.ndarray:
        return self.backend.load(folder, threads=self.context.threads).predict(self.inputs)

    def _try(self, scheme: Scheme) -> _Trial:
        import numpy as np

        self.tried += 1
        folder = self.folder / f"trial-{self.tried}"
        self.backend.quantize(self.exported, self.source, folder, scheme, self.inputs)
        found, task, spec = self._answers(folder), self.context.task, self.source.spec
        if not np.isfinite(found).all():
            raise ExportError("The quantized model answers with values that are no numbers. Try per_channel=true.")
        same = task.decide(found, spec) == task.decide(self.expected, spec)
        before, after = (task.judge(self.metric, outputs, self.references, spec) for outputs in (self.expected, found))
        return _Trial(
            scheme,
            folder,
            agreement=float(same.reshape(len(same), -1).all(axis=1).mean()),
            drop=before - after,
            sqnr_db=sqnr_db(self.expected, found),
        )

    def run(self) -> _Trial:
        kept = frozenset(name for pattern in self.options.keep_float for name in self._named(pattern))
        asked = self.options.reduce_range
        trials = [
            self._try(Scheme("dynamic", self.options.per_channel, reduced, kept))
            for reduced in ([False, True] if asked is None else [asked])
        ]
        chosen = max(trials, key=lambda trial: trial.sqnr_db)
        if not self._holds(chosen):
            chosen = self._back_to_float(chosen)
        logger.info(
            "quantize.dynamic: %d of %d matrices in int8, weights of %d bits; %.1f %% of %d validation rows as before",
            len(self.modules) - len(chosen.scheme.keep_float),
            len(self.modules),
            7 if chosen.scheme.reduce_range else 8,
            100 * chosen.agreement,
            len(self.inputs),
        )
        return chosen

    def _named(self, pattern: str) -> list[str]:
        names = fnmatch.filter(self.modules, pattern)
        if not names:
            raise ConfigError(f"keep_float {pattern!r} fits no module. {did_you_mean(pattern, self.modules)}")
        return names

    def _holds(self, trial: _Trial) -> bool:
        limit = self.options.max_drop
        return limit is None or (trial.drop <= limit and trial.agreement >= self.options.min_agreement)

    def _back_to_float(self, all_integer: _Trial) -> _Trial:
        """Groups of modules go back to float, the most harmful first, until the margin holds."""
        scheme = all_integer.scheme
        groups = [group for group in group_modules(self.modules) if not set(group) <= scheme.keep_float]
        logger.info(
            "quantize.dynamic: %.1f %% of validation rows answered as before, %s %+.3f: finding what to keep in float",
            100 * all_integer.agreement,
            self.metric,
            -all_integer.drop,
        )
        relief = {
            tuple(group): self._try(replace(scheme, keep_float=scheme.keep_float | set(group))).sqnr_db
            for group in groups
        }
        chosen = all_integer
        for group in sorted(relief, key=lambda group: -relief[group]):
            chosen = self._try(replace(scheme, keep_float=chosen.scheme.keep_float | set(group)))
            if self._holds(chosen):
                break
        return chosen
