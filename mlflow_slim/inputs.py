"""Model and data of a recipe, found, checked and loaded; what a person should know about them as sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import OptimizedModel
from .catalog import load_task
from .config import Recipe
from .data import Tables, read_tables
from .errors import ConfigError, ModelError
from .interfaces import MODEL_OPTIONS, Task, TaskData
from .model_source import resolve_model
from .runtime import tasks
from .tracking.traces import PREFIX, write_traces

__all__ = ["Inputs", "check_output", "load_inputs", "load_model"]

Download = Callable[[str], Path]
"""Fetches an MLflow URI into a local folder."""


@dataclass(frozen=True)
class Inputs:
    """What a recipe works on.

    Attributes:
        task: The task.
        data: The rows as splits.
        source: The model as given; None when models are only measured.
        notes: What a person should know, one sentence each.
        facts: Where model and data came from, as ``slim.`` params of every point.
    """

    task: Task
    data: TaskData
    source: OptimizedModel | None
    notes: tuple[str, ...]
    facts: Mapping[str, str]


def check_output(output: str | None) -> None:
    """Refuses an output folder that exists or can't be made, before any work is done.

    Raises:
        ConfigError: It exists, or its parent is not a folder that can be written.
    """
    if output is None:
        return
    import tempfile

    path = Path(output).expanduser().absolute()
    if path.exists():
        raise ConfigError(
            f"output {str(path)!r} exists already and is not overwritten. Remove it or name another folder."
        )
    try:  # tried and not asked: permissions don't tell what a read-only or special file system allows
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"output {str(path)!r} can't be made: {reason}. Name another folder.") from error


def _check_kind(directory: Path, name: str, task: Task) -> None:
    """Raises ModelError when a folder says that its model writes nothing, and a language model is needed."""
    config = directory / "config.json"
    if tasks.find(task.name).KIND != "generator" or not config.is_file():
        return
    kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    if kinds and not any(part in kind for kind in kinds for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        raise ModelError(f"{name!r} is a {kinds[0]} and no language model, which {task.name} needs. Name another.")


def load_inputs(
    recipe: Recipe,
    folder: Path,
    download: Download,
    *,
    spec: Mapping[str, Any] | None = None,
    with_model: bool = True,
) -> Inputs:
    """Everything a recipe works on.

    Files are looked for and rows are read before the model's weights, so that a wrong name costs seconds.

    Args:
        recipe: What to load.
        folder: A temporary folder for models put together from MLflow artifacts.
        download: Fetches MLflow URIs.
        spec: Only measure: the labels come from a model that is exported already, and none is loaded.
        with_model: False to load none, with the labels that the data has.

    Raises:
        InputNotFound: The model or the data isn't there.
        DataError: The rows can't be used.
        ModelError: The model can't be used.
    """
    task = load_task(recipe.task)
    with_model = with_model and spec is None
    found = resolve_model(recipe.model, download_artifacts=download, workdir=folder) if with_model else None
    others = [getattr(step, option, None) for step in recipe.steps for option in MODEL_OPTIONS]
    for name in others if with_model else []:
        if name is not None:  # looked for now: it is loaded after hours of work perhaps
            other = resolve_model(name, download_artifacts=download, workdir=folder)
            _check_kind(other.directory, name, task)
    source, columns, notes = recipe.data, (recipe.text, recipe.text_pair, recipe.label), list[str]()
    if source.startswith(PREFIX):
        path, note = write_traces(source, recipe.trace_filter, folder)
        source, columns, notes = str(path), ("text", None, "label"), [f"{note}."]
    tables = read_tables(
        source,
        text=columns[0],
        text_pair=columns[1],
        label=columns[2],
        labels=task.labels,
        inputs=task.inputs,
        train_split=recipe.train_split,
        validation_split=recipe.validation_split,
        test_split=recipe.test_split,
        seed=recipe.seed,
        label_separator=recipe.label_separator,
        on_bad_rows=recipe.on_bad_rows,
    )
    options = {**recipe.generate.model_dump(), "embed": recipe.embed.model_dump(), "answer": recipe.answer.model_dump()}
    if found is None:
        data = task.make_data(tables, spec=spec, options=options)
        return Inputs(task, data, None, (*notes, *_describe(tables)), {})
    config = json.loads((found.directory / "config.json").read_text(encoding="utf-8"))
    data = task.make_data(tables, config=config, options=options)
    model = task.load_model(found.directory, data, max_length=recipe.max_length, seed=recipe.seed)
    data = task.complete(data, lambda rows: task.outputs(model.model, model.processor, rows, model.spec))
    facts = {
        "slim.model": recipe.model,
        "slim.model.kind": found.kind,
        "slim.model.revision": found.revision or "",
        "slim.data": recipe.data if source != recipe.data else tables.source,
        "slim.data.revision": tables.revision or "",
    }
    known = {key: value for key, value in facts.items() if value}
    return Inputs(task, data, model, (*notes, *_describe(tables)), known)


def load_model(name: str, recipe: Recipe, inputs: Inputs, folder: Path, download: Download) -> OptimizedModel:
    """Another model for the same data, such as a student, by the name a user would give it."""
    found = resolve_model(name, download_artifacts=download, workdir=folder)
    return inputs.task.load_model(found.directory, inputs.data, max_length=recipe.max_length, seed=recipe.seed)


def _describe(tables: Tables) -> list[str]:
    """What was done to the rows, for people."""
    report = tables.report
    rows = report["rows"]
    lines = [
        f"Data {tables.name}: {rows['train']} rows to train, {rows['validation']} to validate, {rows['test']} to test."
    ]
    made: dict[str, list[str]] = {}
    for name, how in report["made"].items():
        if how != "as given":
            made.setdefault(how, []).append(name)
    lines += [f"Split {', '.join(names)}: {how}." for how, names in made.items()]
    for name, reasons in report["dropped"].items():
        lines.append(
            f"Dropped from {name}: " + ", ".join(f"{count} rows ({reason})" for reason, count in reasons.items()) + "."
        )
    removed = report["removed_as_also_in_a_later_split"]
    for name, count in removed.items():
        lines.append(f"{count} rows were taken out of {name}, because the same text is also in a later split.")
    if report["inputs_with_contradictory_labels"]:
        lines.append(f"{report['inputs_with_contradictory_labels']} texts occur with different labels.")
    return [*lines, *(f"Data {tables.name}: {note}." for note in report["notes"])]
