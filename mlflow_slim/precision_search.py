"""Finds the integer form of a model whose answers hold on validation rows; test rows are never looked at.

The float model is exported once for a runtime. Candidate schemes are tried on it; the one whose outputs are nearest is
kept if it holds the margin, else modules go back to float, the most harmful first.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from .artifact import OptimizedModel, StepRecord
from .errors import ConfigError, ExportError, did_you_mean
from .interfaces import Context, QuantizingBackend, Scheme
from .measurement.arms import is_generator
from .sensitivity import group_modules, sqnr_db

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QuantizeOptions", "quantize_for_backends"]

logger = logging.getLogger(__name__)


class QuantizeOptions(BaseModel):
    """Options of every technique that turns weights into integers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def holds(self, drop: float, agreement: float) -> bool:
        """Whether a drop of the headline metric, and a share of rows answered as before, are within the margin."""
        return self.max_drop is None or (drop <= self.max_drop and agreement >= self.min_agreement)


@dataclass(frozen=True)
class _Trial:
    """One quantized form and how it answers on the calibration rows."""

    scheme: Scheme
    folder: Path
    agreement: float
    drop: float
    sqnr_db: float


def quantize_for_backends(
    name: str,
    options: QuantizeOptions,
    choices: Sequence[Sequence[Scheme]],
    source: OptimizedModel,
    context: Context,
    *,
    calibration: Sequence[Any] | None = None,
    back_to_float: bool = True,
    reference: OptimizedModel | None = None,
) -> OptimizedModel:
    """``source`` with a quantized build for each of the context's backends.

    Args:
        name: Name of the technique.
        options: Its options in force.
        choices: What may be tried, all of one kind, smallest first: the nearest scheme of the first choice that holds
            the margin is taken. Where none does, modules of the last choice go back to float.
        source: The model; it is left as it is.
        context: Validation rows to decide on, folder, backends.
        calibration: Rows whose activations the runtime's quantizer may look at; by default those to decide on.
        reference: Whose answers are to hold; by default those of ``source`` before.
        back_to_float: False keeps the last choice as it is, with a word of caution; where modules are many and large.

    Raises:
        ConfigError: A pattern of ``keep_float`` fits no module, or a backend can't do this.
        ExportError: The model can't be exported or quantized.
    """
    builds: dict[str, Path] = {}
    notes: dict[str, Any] = {}
    schemes = [scheme for choice in choices for scheme in choice]
    for backend_name, backend in context.backends.items():
        kind = schemes[0].kind
        if kind not in getattr(backend, "kinds", ()):
            raise ConfigError(f"{name} can't be done for {backend_name}. Write other export.backends.")
        search = _Search(
            name, options, source, context, cast("QuantizingBackend", backend), kind, calibration, reference
        )
        chosen = search.run(choices, back_to_float=back_to_float)
        if not search.holds(chosen):
            notes["caution"] = (
                f"{name} on {backend_name}: {search.metric} fell by {chosen.drop:.4f} on validation rows, with "
                f"{chosen.agreement:.1%} of the answers as before; more than max_drop or min_agreement allow."
            )
        builds[backend_name] = chosen.folder
        notes[backend_name] = {
            **_differences(chosen.scheme, schemes),
            "kept_in_float": sorted(chosen.scheme.keep_float),
            "calibration_rows": len(search.inputs),
            "calibration_digest": _digest(search.inputs),
            "calibration_agreement": round(chosen.agreement, 5),
            "calibration_drop": round(chosen.drop, 5),
            "sqnr_db": round(chosen.sqnr_db, 2),
        }
        if chosen.scheme.wide:
            notes[backend_name]["kept_in_8_bits"] = sorted(chosen.scheme.wide)
    return source.after(StepRecord(name, options.model_dump(mode="json"), notes), source.model, builds=builds)


def _differences(chosen: Scheme, schemes: Sequence[Scheme]) -> Mapping[str, Any]:
    """What was decided: the fields in which the schemes to choose from differ."""
    fields = [f for f in vars(chosen) if f != "wide" and len({getattr(scheme, f) for scheme in schemes}) > 1]
    return {field: getattr(chosen, field) for field in {*fields, "reduce_range"}}


def _digest(inputs: Sequence[Any]) -> str:
    return hashlib.sha256(repr(list(inputs)).encode()).hexdigest()[:16]


class _Search:
    """Finds the scheme for one backend."""

    def __init__(
        self,
        name: str,
        options: QuantizeOptions,
        source: OptimizedModel,
        context: Context,
        backend: QuantizingBackend,
        kind: Any,
        calibration: Sequence[Any] | None,
        reference: OptimizedModel | None,
    ) -> None:
        self.name, self.options, self.source, self.context = name, options, source, context
        self.backend = backend
        self.folder = context.workdir / backend.name
        validation = context.data.validation
        # Even steps: the rows may be sorted by label.
        rows = list(range(0, len(validation), -(-len(validation) // options.calibration_rows)))
        self.inputs: Sequence[Any] = [validation.inputs[row] for row in rows]
        self.references = validation.references[rows]
        self.metric = context.metric or context.task.headline(validation.references, source.spec)[0]
        self.exported = backend.export(source, self.folder / "float", self.inputs[: context.task.check_rows])
        if reference is None:
            self.expected = self._answers(self.exported.directory)
        else:
            self.expected = context.task.outputs(reference.model, reference.processor, self.inputs, reference.spec)
        self.modules = backend.quantizable(self.exported, source, kind)
        self.calibration = self.inputs if calibration is None else calibration
        self.tried = 0

    def _answers(self, folder: Path) -> np.ndarray:
        predictor: Any = self.backend.load(folder, threads=self.context.threads)
        answer = predictor.scores if is_generator(predictor) else predictor.predict
        outputs: np.ndarray = answer(self.inputs)
        return outputs

    def _try(self, scheme: Scheme) -> _Trial:
        self.tried += 1
        folder = self.folder / f"trial-{self.tried}"
        self.backend.quantize(self.exported, self.source, folder, scheme, self.calibration)
        return self._judged(scheme, folder)

    def _judged(self, scheme: Scheme, folder: Path) -> _Trial:
        import numpy as np

        found, task, spec = self._answers(folder), self.context.task, self.source.spec
        if not np.isfinite(found).all():
            raise ExportError("The quantized model answers with values that are no numbers. Try per_channel=true.")
        before, after = (task.judge(self.metric, outputs, self.references, spec) for outputs in (self.expected, found))
        return _Trial(
            scheme,
            folder,
            agreement=task.agreement(self.expected, found, spec),
            drop=before - after,
            sqnr_db=sqnr_db(self.expected, found),
        )

    def run(self, choices: Sequence[Sequence[Scheme]], *, back_to_float: bool) -> _Trial:
        kept = frozenset(name for pattern in self.options.keep_float for name in self._named(pattern))
        for schemes in choices:
            trials = [self._try(replace(scheme, keep_float=kept)) for scheme in schemes]
            chosen = max(trials, key=lambda trial: trial.sqnr_db)
            if self.holds(chosen):
                break
        else:
            # Where training changed the model by more than the margin, all of it in float wouldn't hold either.
            if back_to_float and self.holds(self._judged(chosen.scheme, self.exported.directory)):
                chosen = self._back_to_float(chosen)
        logger.info(
            "%s: %d of %d matrices in integers%s; %.1f %% of %d validation rows answered as before",
            self.name,
            len(self.modules) - len(chosen.scheme.keep_float),
            len(self.modules),
            ", weights of 7 bits" if chosen.scheme.reduce_range else "",
            100 * chosen.agreement,
            len(self.inputs),
        )
        return chosen

    def _named(self, pattern: str) -> list[str]:
        names = fnmatch.filter(self.modules, pattern)
        if not names:
            raise ConfigError(f"keep_float {pattern!r} fits no module. {did_you_mean(pattern, self.modules)}")
        return names

    def holds(self, trial: _Trial) -> bool:
        return self.options.holds(trial.drop, trial.agreement)

    def _back_to_float(self, all_integer: _Trial) -> _Trial:
        """Groups of modules go back to float, the most harmful first, until the margin holds."""
        scheme = all_integer.scheme
        groups = [group for group in group_modules(self.modules) if not set(group) <= scheme.keep_float]
        logger.info(
            "%s: %.1f %% of validation rows answered as before, %s %+.3f: finding what to keep in float",
            self.name,
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
            if self.holds(chosen):
                break
        return chosen
