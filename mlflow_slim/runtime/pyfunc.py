"""What MLflow calls: a bundle as a python_function that takes what a person would send.

Rows come as a string, a list, a Series, a table (one column, or ``text`` and ``text_pair``), or dicts; answers
are the table that ``mlflow.transformers`` would give for the same task.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import tasks
from .predictor import Predictor, load

THREADS_VARIABLE = "MLFLOW_SLIM_THREADS"
_BATCH_SIZE = 32


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container where one is set; >= 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity call
        cpus = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return max(1, cpus)


def serving_threads(model_config: Mapping[str, Any] | None = None) -> int:
    """Threads to serve with: ``model_config["threads"]``, else the environment variable, else all CPUs.

    Raises:
        ValueError: The value given is not a whole number of at least 0 (0 means all).
    """
    config = (model_config or {}).get("threads") or 0
    name, value = ("model_config threads", config) if config else (THREADS_VARIABLE, os.environ.get(THREADS_VARIABLE))
    try:
        threads = int(value or 0)
    except (TypeError, ValueError):
        threads = -1
    if threads < 0:
        raise ValueError(
            f"{name} must be a whole number of threads, got {value!r}. Write 1 or more, or 0 for all CPUs."
        )
    return threads or available_cpus()


def rows_of(data: Any) -> list[Any]:
    """Rows of any input form, each a value, a pair or a dict.

    >>> rows_of("one"), rows_of(["one", "two"]), rows_of({"text": ["a", "b"], "text_pair": ["c", "d"]})
    (['one'], ['one', 'two'], [{'text': 'a', 'text_pair': 'c'}, {'text': 'b', 'text_pair': 'd'}])

    Raises:
        ValueError: A table with several columns that aren't ``text`` and ``text_pair``.
    """
    if isinstance(data, pd.Series):
        return list(data)
    if isinstance(data, pd.DataFrame):
        if "text" in data.columns:
            columns = ["text", "text_pair"] if "text_pair" in data.columns else ["text"]
            if len(data) == 1 and all(isinstance(cell, (list, tuple, np.ndarray)) for cell in data[columns].iloc[0]):
                # mlflow's pyfunc makes one row of lists from {"text": [...], "text_pair": [...]}, its server does not
                data = pd.DataFrame({name: list(data[name].iloc[0]) for name in columns})
            return [dict(zip(columns, row, strict=True)) for row in data[columns].itertuples(index=False, name=None)]
        if data.shape[1] != 1:
            names = ", ".join(map(str, data.columns))
            raise ValueError(f"The table has the columns {names}. Send one column, or text and text_pair.")
        return list(data.iloc[:, 0])
    if isinstance(data, np.ndarray):
        return list(data.tolist()) if data.ndim else [data.item()]
    if isinstance(data, Mapping):
        if any(isinstance(value, (list, tuple, np.ndarray)) for value in data.values()):
            return rows_of(pd.DataFrame(dict(data)))
        return [data]
    if isinstance(data, (list, tuple)):
        return list(data)
    return [data]


class Served:
    """The model as MLflow sees it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._task = tasks.find(predictor.bundle.task)

    def get_raw_model(self) -> Predictor:
        """The predictor behind it (MLflow's name for this)."""
        return self.predictor

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Answers for ``data``, one row each.

        Raises:
            ValueError: A row is not what the task takes; the message names it.
        """
        spec = self.predictor.bundle.spec
        rows = self._task.check_rows(rows_of(data), spec)
        outputs = self.predictor.predict(rows, batch_size=_BATCH_SIZE)
        return pd.DataFrame(self._task.answers(outputs, spec, params or {}))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Served:
    return Served(load(path, threads=serving_threads(model_config)))
