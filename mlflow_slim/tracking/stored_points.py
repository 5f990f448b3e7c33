"""Points read back from the tracking store, page by page: what other runs, of any day, found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from ..errors import InputNotFound
from ..measurement.garbage import no_garbage_collection
from .store import tracking_errors

__all__ = ["StoredPoint", "find_experiments", "read_points"]

_PAGE = 1000
_IS_POINT = "tags.`slim.kind` = 'point'"


@dataclass(frozen=True)
class StoredPoint:
    """One point as MLflow has it.

    Attributes:
        run_id, experiment_id, name: Of its run.
        variant: Name of the point.
        status: FINISHED, FAILED, KILLED or RUNNING.
        started: Milliseconds since the epoch.
        metrics, params, tags: As logged.
        models: Ids of the models that its run logged.
    """

    run_id: str
    experiment_id: str
    name: str
    variant: str
    status: str
    started: int
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    models: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        return "slim.baseline_run" not in self.tags

    @property
    def baseline_run(self) -> str:
        """The run of the point that it was measured against; its own for a baseline."""
        return self.tags.get("slim.baseline_run", self.run_id)

    @property
    def session(self) -> str:
        """The recipe's run, in whose minutes it was measured."""
        return self.tags.get("slim.recipe_run", self.run_id)

    @property
    def headline(self) -> str:
        return self.tags.get("slim.quality.metric", "accuracy")

    @property
    def choices(self) -> str:
        """What a sweep chose for it, such as ``distill.layers=3``; empty for other points."""
        return self.tags.get("slim.choices", "")

    @property
    def title(self) -> str:
        """Variant and choices, for people."""
        return f"{self.variant} ({self.choices})" if self.choices else self.variant

    @property
    def digest(self) -> str:
        """sha256 over the files of its model; empty where it wasn't logged."""
        return self.params.get("slim.model.digest", "")


def find_experiments(client: MlflowClient, names: Sequence[str]) -> list[str]:
    """Ids of the experiments, each named by its name or id.

    Raises:
        InputNotFound: There is none of this name, or it is deleted.
    """
    found = []
    for name in names:
        with tracking_errors(f"find the experiment {name!r}"):
            experiment = client.get_experiment_by_name(name)
            if experiment is None and name.isdigit():
                known = {e.experiment_id: e for e in client.search_experiments()}
                experiment = known.get(name)
            if experiment is None or experiment.lifecycle_stage != "active":
                here = ", ".join(sorted(repr(e.name) for e in client.search_experiments()))
                raise InputNotFound(f"There is no experiment {name!r} in this store. Here are: {here or 'none'}.")
        found.append(experiment.experiment_id)
    return found


def read_points(client: MlflowClient, experiment_ids: Sequence[str], search: str = "") -> list[StoredPoint]:
    """Every point of the experiments, the newest first.

    Args:
        client: Of the store.
        experiment_ids: Where to look.
        search: A further condition in MLflow's filter language, such as ``tags.`slim.recipe` = 'distill'``.

    Raises:
        TrackingError: The store can't be read, or the filter is wrong.
    """
    condition = f"{_IS_POINT} and {search}" if search.strip() else _IS_POINT
    # A run of ours has some 230 figures, params and tags, each an object of MLflow's: collecting among millions of them
    # takes longer than reading them, and they make no cycles that would have to be found meanwhile.
    with tracking_errors("read the points"), no_garbage_collection():
        return [_point(run) for run in _runs(client, experiment_ids, condition)]


def _runs(client: MlflowClient, experiment_ids: Sequence[str], condition: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page: Any = client.search_runs(
            list(experiment_ids), condition, max_results=_PAGE, order_by=["start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _point(run: Run) -> StoredPoint:
    tags = run.data.tags
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    return StoredPoint(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        name=run.info.run_name or "",
        variant=tags.get("slim.variant", run.info.run_name or run.info.run_id),
        status=run.info.status,
        started=run.info.start_time or 0,
        metrics=run.data.metrics,
        params=run.data.params,
        tags=tags,
        models=tuple(output.model_id for output in outputs),
    )
