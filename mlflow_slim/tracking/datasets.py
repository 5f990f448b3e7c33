"""Splits of the user's data as MLflow data set entries, under our own digests.

The entries are built field by field: `mlflow.data.from_pandas` would hash every row again, guess what kind
of place the source is, and warn about integer columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.entities import Dataset, DatasetInput, InputTag

from .scrub import scrub

if TYPE_CHECKING:
    import pandas as pd

    from ..interfaces import Split, TaskData

__all__ = ["data_inputs", "dataset_name"]

_MLFLOW_TYPES: Mapping[str, str] = {"i": "long", "u": "long", "f": "double", "b": "boolean", "M": "datetime"}
_MOST_COLUMNS = 200


def dataset_name(data: TaskData, split: Split) -> str:
    """What a split is called in MLflow, such as ``reviews (test)``."""
    return f"{scrub(data.name)[:480]} ({split.name})"


def data_inputs(data: TaskData) -> list[DatasetInput]:
    """The three splits, each with the context it was used in: train, validation or test."""
    kind, source = _source(data.source)
    return [
        DatasetInput(
            dataset=Dataset(
                name=dataset_name(data, split),
                digest=split.digest[:36],
                source_type=kind,
                source=source,
                schema=_schema(split.frame),
                profile=json.dumps({"num_rows": len(split), "num_elements": int(split.frame.size)}),
            ),
            tags=[InputTag(key="mlflow.data.context", value=split.name)],
        )
        for split in (data.train, data.validation, data.test)
    ]


def _source(source: str) -> tuple[str, str]:
    """MLflow's type of a source and its JSON, so that ``mlflow.data.get_source`` can read it back."""
    clean = scrub(source)
    if re.match(r"https?://", clean):
        return "http", json.dumps({"url": clean})
    if Path(source).exists() or "://" in clean or clean.startswith((".", "/", "~")):
        return "local", json.dumps({"uri": clean})
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", clean):
        path, _, revision = clean.partition("@")
        return "hugging_face", json.dumps({"path": path, "revision": revision or None})
    return "local", json.dumps({"uri": clean})


def _schema(frame: pd.DataFrame) -> str:
    columns = [
        {"type": _MLFLOW_TYPES.get(dtype.kind, "string"), "name": str(name), "required": True}
        for name, dtype in list(zip(frame.columns, frame.dtypes, strict=True))[:_MOST_COLUMNS]
    ]
    return json.dumps({"mlflow_colspec": columns})
