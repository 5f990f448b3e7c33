"""Params and tags as MLflow takes them: legal keys, scrubbed values of a bounded length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow.entities import Param, RunTag

from .scrub import scrub

__all__ = ["MAX_NOTE", "as_params", "as_tags", "flatten"]

# MLflow 3 takes 6,000 characters, servers from before 2.8 only 500; the whole text is in the artifacts.
_MAX_PARAM = 500
_MAX_KEY = 250
_MAX_TAG = 5000
# A run's note is a tag: 8,000 bytes, counted in characters by some stores and in bytes by others.
MAX_NOTE = 7000


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf under its dotted name, as text. Lists of plain values stay one leaf; None is left out.

    >>> dict(flatten({"data": {"text": "review"}, "steps": [{"use": "distill.logits"}], "layers": [0, 5]}, "recipe."))
    {'recipe.data.text': 'review', 'recipe.steps.0.use': 'distill.logits', 'recipe.layers': '[0, 5]'}
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            yield from flatten({str(place): item for place, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, json.dumps(list(value), default=str, ensure_ascii=False)
        elif value is not None:
            yield name, str(value)


def _key(name: str) -> str:
    """The name with what MLflow forbids in keys replaced by "_"."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_MAX_KEY]


def _cut(text: str, limit: int) -> str:
    clean = scrub(text)
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def as_params(values: Mapping[str, Any]) -> list[Param]:
    """Params, scrubbed and cut."""
    return [Param(_key(name), _cut(str(value), _MAX_PARAM)) for name, value in values.items()]


def as_tags(values: Mapping[str, Any]) -> list[RunTag]:
    """Tags, scrubbed and cut; a note may be longer."""
    return [
        RunTag(_key(name), _cut(str(value), MAX_NOTE if name == "mlflow.note.content" else _MAX_TAG))
        for name, value in values.items()
    ]
