"""Tasks of EleutherAI's lm-eval, answered by the measured models themselves, on whatever runtime they are; an extra.

Prompts are sent as the tasks write them, without a chat template, as lm-eval does by default.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .stats import Interval, ratio_difference

__all__ = ["run_task", "task_figures", "tasks_fault"]

logger = logging.getLogger(__name__)
_NEW_TOKENS = 256
"""Most tokens of an answer where a task doesn't say; lm-eval's own number."""
_BOOTSTRAPS = 1000
"""For standard errors of what is no mean over rows; lm-eval's own 100,000 take longer than a small task."""


def tasks_fault(tasks: Sequence[str]) -> str | None:
    """None when lm-eval is here and knows all tasks, else a sentence that says what is wrong."""
    if importlib.util.find_spec("lm_eval") is None:
        return "measure.lm_eval needs lm-eval. Install it with: pip install 'mlflow_slim[lm-eval]'; or leave it out."
    try:
        with _quiet():
            _names(tasks)
    except DataError as error:
        return str(error)
    return None


def _names(tasks: Sequence[str]) -> tuple[list[str], Any]:
    """Names of the tasks, and lm-eval's manager that knows them.

    Raises:
        DataError: A file isn't there or names no task, or a name isn't known.
    """
    files = {task: Path(task) for task in tasks if task.endswith((".yaml", ".yml"))}
    if missing := [task for task, file in files.items() if not file.is_file()]:
        raise DataError(f"measure.lm_eval: {', '.join(missing)} isn't there. Write the name of a task, or a YAML file.")
    kinds = {task: _kind_and_name(file) for task, file in files.items()}
    folders = tuple(sorted({str(file.parent.resolve()) for file in files.values()}))
    own = all(task in kinds and kinds[task][0] == "task" for task in tasks)
    manager = _manager(folders, defaults=not own)
    names = [kinds[task][1] if task in kinds else task for task in tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise DataError(f"measure.lm_eval: lm-eval knows no task {', '.join(unknown)}. See: lm-eval ls tasks")
    return names, manager


@functools.cache
def _manager(folders: tuple[str, ...], *, defaults: bool) -> Any:
    """lm-eval's index of tasks; reading its own thousands of files takes most of a minute, so that it is kept."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders) or None, include_defaults=defaults)


def _kind_and_name(file: Path) -> tuple[str, str]:
    """What a YAML file holds, ``task`` or ``group``, and its name.

    Its tags, such as ``!function``, are code of its author and not looked at here.
    """
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key in ("task", "group") and value.strip():
            return key, value.strip().strip("\"'")
    raise DataError(f"measure.lm_eval: {file} names no task. Write a line such as task: my_task")


def run_task(generator: Any, task: str, *, rows: int | None, seed: int) -> Mapping[str, Any]:
    """What lm-eval found for one model: its ``results`` by task (a group has several), and its ``samples``.

    Args:
        generator: A loaded language model.
        task: A name that lm-eval knows, or a YAML file.
        rows: First rows of each task, at most; None for all.
        seed: Of few-shot examples and bootstraps.

    Raises:
        DataError: The task is not known, or its data can't be read (they lie on the hub, as a rule).
    """
    from lm_eval import simple_evaluate

    with _quiet():
        names, manager = _names([task])
        try:
            found = simple_evaluate(
                model=_model(generator.plainly()),
                tasks=list(names),
                limit=rows,
                task_manager=manager,
                log_samples=True,
                bootstrap_iters=_BOOTSTRAPS,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:  # of tasks, and of the data sets they fetch
            raise DataError(f"measure.lm_eval: lm-eval can't do {task}: {error}") from error
    assert found is not None, "only other ranks get None"
    return {"results": found["results"], "samples": found["samples"]}


def task_figures(
    found: Mapping[str, Any], original: Mapping[str, Any] | None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Figures by name, with lm-eval's standard errors, and the changes of those that are means over rows.

    Args:
        found: What `run_task` gave for a model.
        original: The same for the baseline; None for the baseline itself.

    Returns:
        Figures, and paired changes with 90 % intervals.
    """
    values: dict[str, float] = {}
    changes: dict[str, Interval] = {}
    for task, figures in found["results"].items():
        for key, value in figures.items():
            name, _, kind = key.partition(",")
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not kind or not np.isfinite(value):
                continue
            metric = f"quality/lm_eval/{task}/{name}" + ("" if kind == "none" else f"/{kind}")
            values[metric] = float(value)
            if original is None or name.endswith("_stderr"):
                continue
            rows = [_per_row(one["samples"].get(task, ()), name, kind) for one in (original, found)]
            if rows[0] is None or rows[1] is None or len(rows[0]) != len(rows[1]):
                continue
            if np.isclose(rows[1].mean(), value):  # else it is no mean of what the rows say
                weights = np.ones(len(rows[0]))
                changes[f"{metric}_delta"] = ratio_difference(rows[0], rows[1], weights, confidence=0.90)
    return values, changes


def _per_row(samples: Sequence[Mapping[str, Any]], name: str, kind: str) -> np.ndarray | None:
    chosen = [one for one in samples if one.get("filter", "none") == kind]
    values = [one.get(name) for one in sorted(chosen, key=lambda one: one["doc_id"])]
    if len(values) < 2 or not all(isinstance(value, (int, float)) for value in values):
        return None
    return np.array(values, dtype=float)


def _model(generator: Any) -> Any:
    """A model as lm-eval asks it."""
    from lm_eval.api.model import LM

    class Measured(LM):  # type: ignore[misc, unused-ignore]
        """Answers one request after the other."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
            return [generator.likelihood(*generator.seam(*request.args)) for request in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            return [sum(self._windows(*request.args)) for request in requests]

        def _windows(self, text: str) -> Iterator[float]:
            """Of a text that may be longer than the model takes: each part after the one token before it."""
            before, ids = generator.seam("", text)
            room = int(generator.bundle.spec["max_length"]) - 1
            for start in range(0, len(ids), room):
                yield generator.likelihood(ids[start - 1 : start] if start else before, ids[start : start + room])[0]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            asked = [request.args for request in requests]
            most = max(1, int(generator.bundle.spec["max_length"]) // 2)  # the prompt needs room, too
            return [generator.complete(prompt, **_how(options, most)) for prompt, options in asked]

    return Measured()


def _how(options: Mapping[str, Any], most: int) -> dict[str, Any]:
    """How to write, from what a task asks for in lm-eval's words; at most so many tokens."""
    stop = options.get("until") or ()
    drawn = bool(options.get("do_sample", False))
    return {
        "max_new_tokens": min(most, int(options.get("max_gen_toks", _NEW_TOKENS))),
        "temperature": float(options.get("temperature", 1.0)) if drawn else 0.0,
        "stop": tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
        "seed": 0,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval prints and logs what its command line shows."""
    theirs = logging.getLogger("lm_eval")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.setLevel(level)
