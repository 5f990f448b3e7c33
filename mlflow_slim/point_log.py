"""Logs each exported model as a point the moment it exists, and checks what MLflow then gives back."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import bundle
from .artifact import ExportedModel, StepRecord
from .catalog import load_backend
from .errors import IntegrityError, MeasurementError
from .inputs import Inputs
from .probes import answers_to_probes
from .stages import Stages

if TYPE_CHECKING:
    from .measurement.helper import Helper
    from .tracking import PointRun, RecipeRun

__all__ = ["Point", "PointLog"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One exported, logged and measured model.

    Attributes:
        exported: The model in its folder; the folder is gone when the recipe has ended.
        run_id: Its MLflow run.
        model_uri: Its logged model, ``models:/m-...``.
    """

    exported: ExportedModel
    run_id: str
    model_uri: str


class PointLog:
    """The points of one recipe, in their order; the first is the baseline of all others.

    Args:
        recipe_run: Under which each has its run.
        helper: Loads what was logged in a clean process.
        threads: Of one inference.
        download: Gives an MLflow artifact as a folder.
    """

    def __init__(self, recipe_run: RecipeRun, helper: Helper, *, threads: int, download: Callable[[str], Path]) -> None:
        self._recipe_run, self._helper, self._threads, self._download = recipe_run, helper, threads, download
        self.points: list[Point] = []
        self.runs: list[PointRun] = []

    @property
    def exported(self) -> list[ExportedModel]:
        """The models, the baseline first."""
        return [point.exported for point in self.points]

    def add(self, exported: ExportedModel, inputs: Inputs, prepared: StepRecord | None, stages: Stages) -> None:
        """Logs a model under a run of its own, and checks what was logged in a fresh process.

        A model that MLflow does not take is kept in a folder that the message names.
        """
        sample = inputs.data.validation.inputs[: inputs.task.check_rows]
        baseline_run = self.points[0].run_id if self.points else None
        with stages.time("log"), _kept_if_not_logged(exported):
            from . import flavor, foreign

            log = foreign.log_model if exported.backend == "pyfunc" else flavor.log_model
            point_run = self._recipe_run.open_point(
                exported.variant, step=len(exported.lineage), baseline_run_id=baseline_run, data=inputs.data
            )
            info = point_run.log_model(
                log,
                exported,
                params={**inputs.facts, **_point_params(exported, prepared), **self._digests(exported)},
            )
            self.points.append(Point(exported, point_run.run_id, info.model_uri))
            self.runs.append(point_run)
        with stages.time("check"):
            point_run.set_tags(_reuse_tags(exported, prepared))
            point_run.set_tags(self._check(exported, point_run, info.model_uri, sample))
        logger.info("Logged %s as %s", exported.variant, info.model_uri)

    def _digests(self, exported: ExportedModel) -> dict[str, str]:
        """What tells this model, and the one it is measured against, from all others."""
        own = bundle.content_digest(exported.directory)
        original = bundle.content_digest(self.points[0].exported.directory) if self.points else own
        return {"slim.model.digest": own, "slim.baseline.digest": original}

    def _check(self, exported: ExportedModel, point_run: PointRun, uri: str, sample: Any) -> dict[str, str]:
        """Tags that say whether the logged model, loaded in a fresh process, answers like the exported one."""
        predictor = load_backend(exported.backend).load(exported.directory, threads=self._threads)
        here = predictor.predict(sample)
        point_run.log_answers(*answers_to_probes(predictor, exported.spec))
        try:
            there = self._helper.outputs(bundle.find(self._download(uri)), sample)
        except (MeasurementError, IntegrityError) as error:
            why = f"it can't be loaded: {error}"
        else:
            if here.shape == there.shape and np.allclose(here, there, rtol=1e-4, atol=1e-4):
                return {"slim.reload": "same", "slim.reload.max_abs_diff": f"{np.abs(here - there).max():.3g}"}
            why = "its answers differ"
        logger.warning("The logged model of %s is not what was exported: %s", exported.variant, why)
        return {"slim.reload": "differs", "slim.reload.because": why}


@contextlib.contextmanager
def _kept_if_not_logged(exported: ExportedModel) -> Iterator[None]:
    """Moves a model that MLflow did not take (a server that went down, a full disk) to where it stays."""
    try:
        yield
    except Exception:
        try:
            kept = Path(tempfile.mkdtemp(prefix="mlflow_slim-kept-")) / exported.directory.name
            exported.directory.rename(kept)  # on the same disk, so it needs no space
        except OSError as trouble:
            logger.error("%s was not logged and could not be kept: %s", exported.variant, trouble)
        else:
            logger.error("%s was not logged. It is kept in %s", exported.variant, kept)
        raise


def _point_params(exported: ExportedModel, prepared: StepRecord | None) -> dict[str, Any]:
    """What made this point and its baseline, and numbers that the steps found, as params of its run and its model."""
    params: dict[str, Any] = {
        "slim.backend": exported.backend,
        "slim.task": exported.task,
        "slim.variant": exported.variant,
    }
    if prepared is not None:
        params["slim.baseline.technique"] = prepared.technique
        params.update({f"slim.baseline.{key}": value for key, value in prepared.options.items() if value is not None})
    for index, record in enumerate(exported.lineage):
        params[f"slim.steps.{index}.technique"] = record.technique
        params.update(
            {f"slim.steps.{index}.{key}": value for key, value in record.options.items() if value is not None}
        )
        found = {key: value for key, value in record.notes.items() if isinstance(value, bool | int | float)}
        params.update({f"slim.steps.{index}.found.{key}": value for key, value in found.items()})
    return params


def _reuse_tags(exported: ExportedModel, prepared: StepRecord | None) -> dict[str, str]:
    """Says that the last step was not done in this run, so that its energy isn't counted twice over all runs."""
    last = exported.lineage[-1] if exported.lineage else prepared
    reused = last is not None and last.cost is not None and last.cost.reused
    return {"slim.step.reused": "true", "slim.emissions.reused": "true"} if reused else {}
