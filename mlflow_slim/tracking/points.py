"""One point of a comparison: a top-level run with a logged model, its metrics and its tables."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from ..errors import TrackingError
from .artifacts import log_tree, write_samples, write_table
from .cards import point_card
from .datasets import data_inputs, dataset_name
from .fields import as_params, as_tags, flatten
from .owner import this_process
from .reaper import OWNER_TAG
from .scrub import scrub
from .store import tracking_errors

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from ..artifact import ExportedModel
    from ..foreign import Logged
    from ..interfaces import TaskData
    from ..measurement.report import Report
    from .runs import RecipeRun

__all__ = ["ANSWERS", "PointRun", "close_once", "run_color"]

logger = logging.getLogger(__name__)

ANSWERS = "slim/answers.json"
"""What the model answered to `mlflow_slim.probes` when it was logged."""

# Okabe and Ito's palette: told apart by colour-blind people too.
_COLORS: Mapping[str, str] = {"torch": "#0072b2", "onnxruntime": "#d55e00", "openvino": "#009e73"}


def run_color(variant: str, front: str = "") -> str:
    """The colour of a point in the UI: grey for a baseline, else by runtime; pale once it is dominated."""
    chain, _, backend = variant.partition("@")
    color = "#8c8c8c" if chain == "baseline" else _COLORS.get(backend or "torch", "#cc79a7")
    if front != "dominated":
        return color
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(part + 2 * 255) // 3:02x}" for part in parts)


def close_once(client: MlflowClient, run_id: str, status: str) -> None:
    """Writes the status of a run unless it has a final one: a late signal must not turn FINISHED into KILLED."""
    if client.get_run(run_id).info.status != "RUNNING":
        return
    # Over HTTP, MLflow prints two lines for every run that ends; a recipe ends many and shows one link itself.
    quiet = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    before = os.environ.get(quiet)
    os.environ[quiet] = "true"
    try:
        client.set_terminated(run_id, status)
    finally:
        if before is None:
            del os.environ[quiet]
        else:
            os.environ[quiet] = before


class PointRun:
    """The run of one point. Made by `RecipeRun.open_point`.

    Attributes:
        run_id, name: Of the run.
        variant: Name of the point.
        model_id: The logged model, once `log_model` has succeeded.
        is_open: False once the status was written.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str, name: str, variant: str) -> None:
        self.run_id = run_id
        self.name = name
        self.variant = variant
        self.model_id: str | None = None
        self.is_open = True
        self._client = client
        self._experiment_id = experiment_id
        self._test: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"PointRun({self.variant!r}, run_id={self.run_id!r}, model_id={self.model_id!r})"

    @classmethod
    def open(
        cls,
        recipe_run: RecipeRun,
        variant: str,
        *,
        step: int,
        baseline_run_id: str | None,
        conditions: Mapping[str, Any],
    ) -> PointRun:
        """Creates the run; see `RecipeRun.open_point`."""
        client = recipe_run.client
        name = f"{variant} · {recipe_run.name}"
        tags = {
            **resolve_tags(),
            OWNER_TAG: this_process(),
            "slim.kind": "point",
            "slim.recipe": recipe_run.recipe_name,
            "slim.recipe_run": recipe_run.run_id,
            "slim.step": str(step),
            "slim.variant": variant,
            "mlflow.runColor": run_color(variant),
        }
        if baseline_run_id is not None:
            tags["slim.baseline_run"] = baseline_run_id
        with tracking_errors(f"open a run for {variant}"):
            clean = {key: scrub(value) for key, value in tags.items()}
            run = client.create_run(recipe_run.experiment_id, tags=clean, run_name=name)
            point = cls(client, run.info.run_id, recipe_run.experiment_id, name, variant)
            client.log_batch(point.run_id, params=as_params(conditions))
        return point

    def log_data(self, data: TaskData) -> None:
        """Names the three splits as inputs; metrics logged after this belong to the test split."""
        with tracking_errors("log the data sets"):
            self._client.log_inputs(self.run_id, datasets=data_inputs(data))
        self._test = (dataset_name(data, data.test), data.test.digest[:36])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs params, nested ones under dotted names. Those logged before the model show on the model too."""
        with tracking_errors("log params"):
            self._client.log_batch(self.run_id, params=as_params(dict(flatten(params))))

    def log_model(
        self,
        log: Callable[..., ModelInfo | Logged],
        exported: ExportedModel,
        *,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ModelInfo | Logged:
        """Logs the model under this run and remembers it, so that metrics can belong to it.

        The LoggedModel is created here, because MLflow would put it in the experiment of whatever run happens to be
        active (or in "Default") rather than in that of ``run_id``, and would leave it PENDING on Ctrl-C.

        Args:
            log: The flavor's ``log_model``; called with ``exported``, name, run_id, model_id and ``options``.
            exported: The model.
            params: Logged on the run first, and on the model with the run's own.
            options: For ``log``.
        """
        self.log_params(params or {})
        with tracking_errors(f"log the model {self.variant}"):
            model = self._client.create_logged_model(
                self._experiment_id,
                name=re.sub(r"[^\w-]+", "-", self.variant).strip("-"),
                source_run_id=self.run_id,
                params=dict(self._client.get_run(self.run_id).data.params),
                tags={"slim.variant": self.variant},
            )
            try:
                info = log(exported, name=model.name, run_id=self.run_id, model_id=model.model_id, **options)
            except BaseException as error:
                self._abandon(model.model_id, error)
                raise
        self.model_id = model.model_id
        return info

    def _abandon(self, model_id: str, error: BaseException) -> None:
        """Marks a model that was not logged whole, so that nobody takes it for one that is still coming."""
        try:
            self._client.finalize_logged_model(model_id, "FAILED")
        except Exception as trouble:
            logger.error("Model %s could not be marked as FAILED after %r: %s", model_id, error, trouble)

    def log_report(self, report: Report, *, tags: Mapping[str, str] | None = None) -> None:
        """Logs everything measured about the point. Call it once, after measuring, never while.

        All metrics go in one batch, linked to the model and to the test split; tables become ``tables/<name>.json``
        (one name on all runs, so that the UI compares them), raw samples ``samples/samples.parquet``.
        """
        with tempfile.TemporaryDirectory() as folder, tracking_errors(f"log the report on {self.variant}"):
            root = Path(folder)
            logged = [write_table(root, f"tables/{name}.json", rows) for name, rows in report.tables.items() if rows]
            if report.samples:
                write_samples(root, "samples/samples.parquet", report.samples)
            (root / "slim").mkdir()
            figures = {"variant": report.variant, "metrics": dict(report.metrics), "tags": dict(report.tags)}
            (root / "slim" / "report.json").write_text(json.dumps(figures, indent=1, sort_keys=True))
            log_tree(
                self._client,
                self.run_id,
                root,
                tables=logged,
                tags={**report.tags, **(tags or {}), "mlflow.note.content": point_card(report)},
                params=report.params,
                metrics=report.metrics,
                model_id=self.model_id,
                dataset=self._test,
            )

    def log_answers(self, inputs: Sequence[Any], outputs: Any) -> None:
        """Keeps what the model answers to fixed inputs as the artifact `ANSWERS`."""
        rows = [[round(float(value), 6) for value in row.reshape(-1)] for row in outputs]
        with tracking_errors("log the answers to the probes"):
            text = json.dumps(
                {"inputs": [list(one) if isinstance(one, tuple) else one for one in inputs], "outputs": rows}
            )
            self._client.log_text(self.run_id, text, ANSWERS)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, such as the outcome of the check after logging."""
        with tracking_errors("set tags"):
            self._client.log_batch(self.run_id, tags=as_tags(tags))

    def finish(self, status: str = "FINISHED", *, failure: str | None = None) -> None:
        """Writes the status; once, later calls do nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
            failure: One line that says why it isn't FINISHED.
        """
        if not self.is_open:
            return
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise TrackingError(f"A run ends as FINISHED, FAILED or KILLED, not as {status!r}.")
        with tracking_errors(f"close the run of {self.variant}"):
            close_once(self._client, self.run_id, status)
        self.is_open = False
        if failure:
            self.set_tags({"slim.failure": failure})
