"""The experiment's ready-made chart page, and a note that leads to it.

MLflow 3.15 and later keep a "saved view" of the runs page as an experiment tag with plain JSON. The format is
the UI's own and undocumented, so it lives in this module alone, and nothing here ever fails a run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient

from .scrub import scrub

__all__ = ["VIEW_PAGE", "install_view"]

logger = logging.getLogger(__name__)

_VIEW_ID = "slim-tradeoffs"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW_ID}"
_NOTE_TAG = "mlflow.note.content"
_NOTE_MARK = f"viewStateShareKey={_VIEW_ID}"

# Without workflowType the UI may open in its mode for agents, which hides the charts.
VIEW_PAGE = f"/runs?{_NOTE_MARK}&compareRunsMode=CHART&workflowType=machine_learning"
"""What follows ``#/experiments/<id>`` in the address of the charts."""

_TRADE_OFFS = (
    "latency/p50_ms",
    "size/disk_mib",
    "energy/wh_per_1k_samples",
)
_COLUMNS = (
    "tags.`slim.variant`",
    "tags.`slim.quality.verdict`",
    "tags.`slim.speed.verdict`",
    "metrics.`latency/p50_ms`",
    "metrics.`speedup/single`",
    "metrics.`size/disk_mib`",
    "metrics.`energy/wh_per_1k_samples`",
    "metrics.`emissions/gco2e_per_1k_samples`",
    "tags.`slim.energy.grade`",
    "attributes.`Models`",
)


def install_view(client: MlflowClient, experiment_id: str, *, quality: str | None = None) -> bool:
    """Gives the experiment its chart view and note; True when both are there afterwards.

    Args:
        client: Client of the store.
        experiment_id: The experiment.
        quality: Name of the headline quality metric; by default what the newest measured point says.
    """
    try:
        experiment = client.get_experiment(experiment_id)
        quality = quality or _headline(client, experiment_id)
        if quality is None:  # nothing measured yet: a view of empty charts helps nobody
            return False
        found = experiment.tags.get(_VIEW_TAG)
        state = json.dumps(_state(f"quality/{quality}"))
        if found is None or _differs(found, state):
            now = int(time.time() * 1000)
            view = {"name": "mlflow_slim: trade-offs", "createdAt": now, "updatedAt": now, "state": state}
            client.set_experiment_tag(experiment_id, _VIEW_TAG, json.dumps(view))
        note = experiment.tags.get(_NOTE_TAG, "")
        if _NOTE_MARK not in note:
            ours = _note(experiment_id)
            text = f"{note}\n\n{ours}" if note.strip() else ours
            if len(text) <= 20_000:  # a longer note is refused; the user's own text comes first
                client.set_experiment_tag(experiment_id, _NOTE_TAG, text)
    except Exception as error:
        logger.warning("The chart view of the experiment could not be saved: %s", scrub(str(error)))
        return False
    return True


def _headline(client: MlflowClient, experiment_id: str) -> str | None:
    runs = client.search_runs([experiment_id], "tags.`slim.quality.metric` != ''", max_results=1)
    return runs[0].data.tags.get("slim.quality.metric") if runs else None


def _differs(found: str, state: str) -> bool:
    try:
        return bool(json.loads(found)["state"] != state)
    except (ValueError, TypeError, KeyError):
        return True


def _note(experiment_id: str) -> str:
    # The UI shows only the first line until the note is opened: the link comes first.
    return (
        f"[Charts: quality against latency, size and energy](#/experiments/{experiment_id}{VIEW_PAGE}) made by "
        "mlflow_slim.\n\nEvery run with the tag `slim.variant` is one point: a baseline (grey) or a "
        "smaller model, measured in the same minutes on the same machine. Runs of one recipe share the tag "
        "`slim.recipe_run`. Verdicts and reasons for missing figures are tags; raw samples are artifacts."
    )


def _state(quality: str) -> dict[str, Any]:
    """The state of the runs page as the UI reads it."""
    return {
        "searchFilter": "tags.`slim.variant` LIKE '%'",
        "orderByKey": f"metrics.`{quality}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "columnOrder": [],
        "columnWidths": {},
        "selectedColumns": [_COLUMNS[0], f"metrics.`{quality}`", *_COLUMNS[1:]],
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": "",
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": [
            _section("slim-tradeoffs", "Quality against what it costs", columns=2),
            _section("slim-bars", "One figure at a time", columns=3),
        ],
        "compareRunCharts": _charts(quality),
    }


def _section(uuid: str, name: str, *, columns: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
    }


def _charts(quality: str) -> Sequence[dict[str, Any]]:
    def chart(uuid: str, section: str, kind: str, **options: Any) -> dict[str, Any]:
        common = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
        return {"uuid": f"slim-{uuid}", "type": kind, "metricSectionId": f"slim-{section}", **common, **options}

    scatters = [
        chart(
            f"scatter-{place}",
            "tradeoffs",
            "SCATTER",
            xaxis={"key": metric, "type": "METRIC"},
            yaxis={"key": quality, "type": "METRIC"},
        )
        for place, metric in enumerate(_TRADE_OFFS)
    ]
    parallel = chart(
        "parallel",
        "tradeoffs",
        "PARALLEL",
        selectedParams=[],
        selectedMetrics=[*_TRADE_OFFS, quality],
        showAllRuns=True,
    )
    bars = [
        chart(f"bar-{place}", "bars", "BAR", metricKey=metric)
        for place, metric in enumerate((quality, "speedup/single", *_TRADE_OFFS, "memory/peak_mib"))
    ]
    return [*scatters, parallel, *bars]
