"""The run of a recipe: opened before any work, closed once, whatever happens in between.

Everything goes through `MlflowClient` with explicit run ids. The fluent stack of active runs is never
touched: it would nest the points (MLflow's charts hide nested runs) and mix with a run of the caller's own.
"""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from ..errors import TrackingError
from .artifacts import log_tree, write_table
from .fields import as_params, as_tags, flatten
from .owner import this_process
from .points import PointRun, close_once
from .reaper import OWNER_TAG, reap
from .saved_view import VIEW_PAGE, install_view
from .scrub import one_line, scrub, scrub_value
from .signals import StoppedBySignal, StopSignals, stop_signals
from .store import UiLink, connect, tracking_errors, ui_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..interfaces import TaskData

__all__ = ["DEFAULT_EXPERIMENT", "RecipeRun", "describe_project_run", "open_recipe_run"]

DEFAULT_EXPERIMENT = "mlflow_slim"

logger = logging.getLogger(__name__)


class RecipeRun:
    """The run that stands for a whole recipe, and the points it opened. Made by `open_recipe_run`.

    Attributes:
        client: Client of the store that holds it.
        run_id, experiment_id, name: Of the run.
        recipe_name: Name of the recipe, as in the tag ``slim.recipe``.
        points: Every point that was opened, in order.
    """

    def __init__(self, client: MlflowClient, run: Run, *, recipe_name: str, conditions: Mapping[str, Any]) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.name: str = run.info.run_name
        self.recipe_name = recipe_name
        self.points: list[PointRun] = []
        self._conditions = conditions
        self._ended = False

    def __repr__(self) -> str:
        return f"RecipeRun({self.name!r}, run_id={self.run_id!r}, points={len(self.points)})"

    def open_point(
        self, variant: str, *, step: int = 0, baseline_run_id: str | None = None, data: TaskData | None = None
    ) -> PointRun:
        """A new top-level run for one point of the comparison. Several may be open at once.

        Args:
            variant: Name of the point, see `mlflow_slim.artifact.variant_name`.
            step: How many techniques were applied to it; 0 for the baseline.
            baseline_run_id: The run of the point it is compared with; None for the baseline itself.
            data: The splits, logged as inputs; the metrics will belong to the test split.
        """
        point = PointRun.open(self, variant, step=step, baseline_run_id=baseline_run_id, conditions=self._conditions)
        self.points.append(point)
        if data is not None:
            point.log_data(data)
        return point

    def log_data(self, data: TaskData) -> None:
        """Names the data set of the recipe on its run, split by split."""
        from .datasets import data_inputs

        with tracking_errors("log the data sets"):
            self.client.log_inputs(self.run_id, datasets=data_inputs(data))

    def log_progress(self, name: str, value: float, step: int) -> None:
        """Logs one figure on the way, such as an epoch's loss. Training goes on when it can't be logged."""
        try:
            self.client.log_metric(self.run_id, name, value, step=step)
        except Exception as error:
            logger.warning("%s of step %d was not logged: %s", name, step, scrub(str(error)))

    def log_text(self, name: str, text: str) -> None:
        """Keeps a text as an artifact; the work goes on when it can't be logged."""
        try:
            self.client.log_text(self.run_id, scrub(text), name)
        except Exception as error:
            logger.warning("%s was not logged: %s", name, scrub(str(error)))

    def log_summary(
        self,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        figures: Mapping[str, Figure] | None = None,
        card: str | None = None,
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        metrics: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Puts what the recipe found on its run, and the chart view on its experiment.

        Args:
            rows: One row a point, logged as the table ``summary.json``.
            figures: Matplotlib figures by name, logged as ``figures/<name>.png``.
            card: Markdown, shown as the run's description; see `cards.recipe_card`.
            tables: Further tables by name (the ledger), logged as ``tables/<name>.json``.
            metrics: Figures of the whole recipe, in the schema's names.
            texts: Further files by name (``report.html``) and content.
        """
        with tempfile.TemporaryDirectory() as folder, tracking_errors("log the summary of the recipe"):
            root = Path(folder)
            logged = [write_table(root, "summary.json", rows)] if rows else []
            logged += [write_table(root, f"tables/{name}.json", table) for name, table in (tables or {}).items()]
            for name, figure in (figures or {}).items():
                (root / "figures").mkdir(exist_ok=True)
                figure.savefig(root / "figures" / f"{name}.png", dpi=150)
            for name, text in (texts or {}).items():
                (root / name).write_text(text, encoding="utf-8")
            tags = {"mlflow.note.content": card} if card else {}
            log_tree(self.client, self.run_id, root, tables=logged, tags=tags, metrics=metrics or {})
        install_view(self.client, self.experiment_id)

    def ui(self) -> UiLink:
        """How to look at the comparison in the MLflow UI."""
        return ui_command(self.experiment_id, tracking_uri=self.client.tracking_uri, page=VIEW_PAGE)

    def _describe(self, recipe: Mapping[str, Any], known_params: Mapping[str, str], tags: Mapping[str, Any]) -> None:
        """Logs the resolved recipe and the conditions; the first write, so a store that can't take it shows here."""
        import yaml

        params = {**dict(flatten(recipe, "recipe.")), **_under_slim(self._conditions)}
        # A run resumed a second time already has params, and MLflow refuses to change one.
        new = [param for param in as_params(params) if param.key not in known_params]
        with tracking_errors("log the recipe"):
            self.client.log_batch(self.run_id, params=new, tags=as_tags(tags))
            text = yaml.safe_dump(scrub_value(dict(recipe)), sort_keys=False, allow_unicode=True)
            self.client.log_text(self.run_id, text, "recipe.yaml")

    def _end(self, status: str, error: BaseException | None = None) -> None:
        """Writes the status of every run that is still open, once. Raises only when there is no ``error`` to keep."""
        if self._ended:
            return
        self._ended = True
        # The status first: after SIGTERM there may be seconds left.
        points = [point for point in self.points if point.is_open]
        closers: list[Callable[[str], None]] = [
            partial(_close_run, self.client, self.run_id),
            *(point.finish for point in points),
        ]
        troubles: list[Exception] = []
        for close in closers:
            try:
                close(status)
            except Exception as trouble:
                troubles.append(trouble)
        if error is not None:
            for problem in troubles:
                logger.error("%s", problem)
            for run_id in (self.run_id, *(point.run_id for point in points)):
                _tell_why(self.client, run_id, error)
        elif troubles:
            raise troubles[0]


def _tell_why(client: MlflowClient, run_id: str, error: BaseException) -> None:
    text = scrub("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    try:
        client.set_tag(run_id, "slim.failure", _failure(error))
        client.log_text(run_id, text, "slim/traceback.txt")
    except Exception as trouble:
        logger.error("The reason for the failure could not be logged on run %s: %s", run_id, scrub(str(trouble)))


def explain_unopened_run(error: BaseException) -> None:
    """Says on the run that ``mlflow run`` made why its recipe never opened it; nothing outside of ``mlflow run``.

    The status is left to ``mlflow run``, which writes FAILED when the command exits with an error.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")  # `open_recipe_run` takes it out
    if run_id:
        _tell_why(MlflowClient(), run_id, error)


def describe_project_run(kind: str, note: str, texts: Mapping[str, str]) -> None:
    """Puts the outcome of a command that opens no run of its own on the run that ``mlflow run`` made; else nothing.

    Args:
        kind: Value of the tag ``slim.kind``.
        note: Markdown, shown as the run's description.
        texts: Artifacts by name.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = MlflowClient()
    with tracking_errors("describe the run"):
        client.log_batch(run_id, tags=as_tags({"slim.kind": kind, "mlflow.note.content": note}))
        for name, text in texts.items():
            client.log_text(run_id, scrub(text), name)


def _close_run(client: MlflowClient, run_id: str, status: str) -> None:
    with tracking_errors("close the run"):
        close_once(client, run_id, status)


def _failure(error: BaseException) -> str:
    if isinstance(error, StoppedBySignal):
        return f"Stopped by {error.signal_name}"
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by Ctrl-C (SIGINT)"
    return one_line(f"{type(error).__name__}: {error}".rstrip(": "))


def _status(error: BaseException) -> str:
    """FINISHED, FAILED or KILLED, as the way out says."""
    if isinstance(error, (KeyboardInterrupt, StoppedBySignal, GeneratorExit)):
        return "KILLED"
    if isinstance(error, SystemExit) and not error.code:
        return "FINISHED"
    return "FAILED"


def _under_slim(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name if name.startswith("slim.") else f"slim.{name}": value for name, value in flatten(values)}


@contextmanager
def open_recipe_run(
    recipe: Mapping[str, Any],
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    name: str | None = None,
    conditions: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[RecipeRun]:
    """The run of a recipe, for the time of the block.

    Inside ``mlflow run`` it is the run that the project opened; else a new one. The way out of the block decides
    its status and that of all points still open: FINISHED; FAILED for an exception; KILLED for Ctrl-C, SIGTERM
    and SIGHUP. Unless it is FINISHED, the artifact ``slim/traceback.txt`` and the tag ``slim.failure`` say why.

    Args:
        recipe: The resolved recipe, JSON values only; logged as ``recipe.yaml`` and as params ``recipe.*``.
        experiment: Name of the experiment; by default what MLflow's environment variables say, else ``mlflow_slim``.
            Inside ``mlflow run`` the experiment is the project run's, whatever this says.
        run_name: Name of the run; by default MLflow makes one up.
        name: Name of the recipe (``distill``); by default ``recipe["name"]``.
        conditions: Facts about machine and environment, logged as params ``slim.*`` here and on every point.
        tags: Further tags.

    Raises:
        TrackingError: The store can't be reached or written. Known within seconds, before the block starts.
    """
    client = connect()
    with stop_signals() as signals:
        recipe_name = str(name or recipe.get("name") or "recipe")
        run = _start(client, experiment, run_name)
        recipe_run = RecipeRun(client, run, recipe_name=recipe_name, conditions=_under_slim(conditions or {}))
        try:
            cleaned = {key: scrub(value) for key, value in run.data.tags.items() if scrub(value) != value}
            own = {"slim.recipe": recipe_name, "slim.kind": "recipe", OWNER_TAG: this_process()}
            recipe_run._describe(recipe, run.data.params, {**cleaned, **own, **(tags or {})})
            yield recipe_run
            signals.defer()
        except BaseException as error:
            _close(recipe_run, signals, error)
            raise
        recipe_run._end("FINISHED")


def _close(recipe_run: RecipeRun, signals: StopSignals, error: BaseException) -> None:
    signals.defer()
    status = _status(error)
    recipe_run._end(status, None if status == "FINISHED" else error)


def _start(client: MlflowClient, experiment: str | None, run_name: str | None) -> Run:
    """The run to write to: the one that ``mlflow run`` made, or a new one; abandoned ones are closed first."""
    # Taken out of the environment, as MLflow's own start_run does, so that no library resumes the run behind us.
    given = os.environ.pop("MLFLOW_RUN_ID", None)
    if given:
        with tracking_errors(f"find the run {given!r} named by MLFLOW_RUN_ID"):
            run = client.get_run(given)
            if run.info.lifecycle_stage != "active":
                raise TrackingError(
                    f"The run {given!r} named by MLFLOW_RUN_ID is deleted. Unset it, or restore the run."
                )
            if experiment is not None:
                here = client.get_experiment(run.info.experiment_id).name
                if here != experiment:
                    logger.warning(
                        "The run belongs to the experiment %r that `mlflow run` chose, not to %r. "
                        "Use: mlflow run --experiment-name %s",
                        *(here, experiment, experiment),
                    )
            reap(run.info.experiment_id, client=client)
            if run.info.status != "RUNNING" or run_name:
                client.update_run(given, status="RUNNING", name=run_name)
                run = client.get_run(given)
            return run
    with tracking_errors("open a run"):
        experiment_id = _experiment_id(client, experiment)
        reap(experiment_id, client=client)
        # The owner goes in with the run: a process killed right after this line leaves a run that can be reaped.
        tags = {**resolve_tags(), OWNER_TAG: this_process()}
        return client.create_run(
            experiment_id, tags={key: scrub(value) for key, value in tags.items()}, run_name=run_name
        )


def _experiment_id(client: MlflowClient, name: str | None) -> str:
    wanted = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if wanted is None and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return str(client.get_experiment(given).experiment_id)
    wanted = wanted or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(wanted)
    if found is None:
        try:
            return str(client.create_experiment(wanted))
        except MlflowException:  # another process made it a moment ago
            found = client.get_experiment_by_name(wanted)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment {wanted!r} is deleted. Restore it with `mlflow experiments restore -x "
            f"{found.experiment_id}`, or choose another name."
        )
    return str(found.experiment_id)
