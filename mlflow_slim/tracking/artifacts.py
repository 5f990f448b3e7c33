"""Artifacts of a run, written to a folder first and sent in one go."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from .fields import as_params, as_tags, legal_keys
from .scrub import scrub_value

__all__ = ["log_tree", "write_samples", "write_table"]


def write_table(root: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a table as `mlflow.log_table` does, so that the UI compares it across runs; gives back ``name``.

    `log_table` itself would cost five requests a table.
    """
    import pandas as pd

    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([scrub_value(dict(row)) for row in rows])
    frame.to_json(path, orient="split", index=False, date_format="iso", default_handler=str)
    return name


def write_samples(root: Path, name: str, samples: Mapping[str, Sequence[float]]) -> None:
    """Writes raw samples as parquet: columns ``name``, ``index``, ``value``; one row a sample."""
    import numpy as np
    import pandas as pd

    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        pd.DataFrame({"name": key, "index": np.arange(len(values)), "value": np.asarray(values, dtype=np.float64)})
        for key, values in samples.items()
        if len(values)
    ]
    if parts:
        pd.concat(parts, ignore_index=True).to_parquet(path, index=False)


def log_tree(
    client: MlflowClient,
    run_id: str,
    root: Path,
    *,
    tables: Sequence[str] = (),
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    model_id: str | None = None,
    dataset: tuple[str, str] | None = None,
) -> None:
    """Sends a folder of artifacts, then metrics, params and tags in one batch.

    Args:
        client: Client of the store.
        run_id: Run that gets everything.
        root: The folder; its tree becomes the run's.
        tables: Which of its files are tables; the UI finds them by a tag.
        tags: Tags of the batch.
        params: Params of the batch.
        metrics: Metrics of the batch; all share one timestamp.
        model_id: The logged model that the metrics belong to.
        dataset: Name and digest of the data set that the metrics were measured on.
    """
    if any(root.iterdir()):
        client.log_artifacts(run_id, str(root))
    tags, metrics = dict(tags or {}), metrics or {}
    if tables:
        known = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entries = known + [entry for name in tables if (entry := {"path": name, "type": "table"}) not in known]
        tags["mlflow.loggedArtifacts"] = json.dumps(entries)
    now = int(time.time() * 1000)
    dataset_name, dataset_digest = dataset or (None, None)
    client.log_batch(
        run_id,
        metrics=[
            Metric(
                key,
                value,
                now,
                0,
                model_id=model_id,
                dataset_name=dataset_name,
                dataset_digest=dataset_digest,
                run_id=run_id,
            )
            for key, value in zip(legal_keys(metrics), metrics.values(), strict=True)
        ],
        params=as_params(params or {}),
        tags=as_tags(tags),
    )
