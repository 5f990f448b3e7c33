"""What MLflow calls: a bundle as a python_function that takes what a person would send.

Rows come as a string, a list, a Series, a table (one column, or ``text`` and ``text_pair``), or dicts; answers
are the table that ``mlflow.transformers`` would give for the same task.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import tasks
from .generation import TextGenerator
from .predictor import Predictor, load

THREADS_VARIABLE = "MLFLOW_SLIM_THREADS"


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


def rows_of(data: Any, names: Sequence[str] = ("text", "text_pair"), options: Sequence[str] = ()) -> list[Any]:
    """Rows of any input form, each a value, a pair or a dict.

    Args:
        data: What MLflow was given.
        names: Columns that a table may have; any one column does, too.
        options: Further columns that a table may have beside these.

    >>> rows_of("one"), rows_of(["one", "two"]), rows_of({"text": ["a", "b"], "text_pair": ["c", "d"]})
    (['one'], ['one', 'two'], [{'text': 'a', 'text_pair': 'c'}, {'text': 'b', 'text_pair': 'd'}])

    Raises:
        ValueError: A table with several columns that aren't these.
    """
    if isinstance(data, pd.Series):
        return list(data)
    if isinstance(data, pd.DataFrame):
        if columns := [name for name in names if name in data.columns]:
            if (
                "messages" not in columns
                and len(data) == 1
                and all(isinstance(cell, (list, tuple, np.ndarray)) for cell in data[columns].iloc[0])
            ):
                # mlflow's pyfunc makes one row of lists from {"text": [...], "text_pair": [...]}, its server does not
                data = pd.DataFrame({name: list(data[name].iloc[0]) for name in columns})
            columns += [name for name in options if name in data.columns]
            return [dict(zip(columns, row, strict=True)) for row in data[columns].itertuples(index=False, name=None)]
        if data.shape[1] != 1:
            found = ", ".join(map(str, data.columns))
            raise ValueError(f"The table has the columns {found}. Send one column, or {' and '.join(names)}.")
        return list(data.iloc[:, 0])
    if isinstance(data, np.ndarray):
        return list(data.tolist()) if data.ndim else [data.item()]
    if isinstance(data, Mapping):
        whole = ("messages", *options)  # lists that belong to one row
        if any(isinstance(value, (list, tuple, np.ndarray)) for name, value in data.items() if name not in whole):
            return rows_of(pd.DataFrame(dict(data)), names, options)
        return [data]
    if isinstance(data, (list, tuple)):
        return list(data)
    return [data]


class Served:
    """The model as MLflow sees it."""

    def __init__(self, predictor: Predictor | TextGenerator) -> None:
        self.predictor = predictor
        self._task = tasks.find(predictor.bundle.task)

    def get_raw_model(self) -> Predictor | TextGenerator:
        """The predictor behind it (MLflow's name for this)."""
        return self.predictor

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Answers for ``data``, one row each: a table, or texts, as the task has it.

        Raises:
            ValueError: A row is not what the task takes; the message names it.
        """
        rows = self._task.check_rows(rows_of(data, self._task.COLUMNS, self._task.OPTIONS), self.predictor.bundle.spec)
        return self._task.respond(self.predictor, rows, params or {})


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Served:
    return Served(load(path, threads=serving_threads(model_config)))
