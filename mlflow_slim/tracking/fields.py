"""Params and tags as MLflow takes them: legal keys, scrubbed values of a bounded length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow.entities import Param, RunTag

from .scrub import scrub

__all__ = ["MAX_NOTE", "as_params", "as_tags", "flatten", "legal_keys"]

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
    """The name with what MLflow forbids in keys replaced by "_".

    A class called "a/../b" would make a key that resolves to another, which MLflow refuses with its whole batch.
    """
    parts = [part for part in re.sub(r"[^\w\-. :/]", "_", name).split("/") if part]
    return ("/".join("_" if part in (".", "..") else part for part in parts) or "_")[:_MAX_KEY].rstrip("/")


def legal_keys(names: Iterable[str]) -> list[str]:
    """A legal key for each name, all different.

    >>> legal_keys(["quality/f1_R&D", "quality/f1_R+D", "quality/f1_a//b"])
    ['quality/f1_R_D', 'quality/f1_R_D_2', 'quality/f1_a/b']
    """
    keys: list[str] = []
    taken: set[str] = set()
    for name in names:
        key = first = _key(name)
        number = 1
        while key in taken:
            number += 1
            key = f"{first[: _MAX_KEY - 8]}_{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _cut(text: str, limit: int) -> str:
    clean = scrub(text)
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def as_params(values: Mapping[str, Any]) -> list[Param]:
    """Params, scrubbed and cut."""
    keys = legal_keys(values)
    return [Param(key, _cut(str(value), _MAX_PARAM)) for key, value in zip(keys, values.values(), strict=True)]


def as_tags(values: Mapping[str, Any]) -> list[RunTag]:
    """Tags, scrubbed and cut; a note may be longer."""
    return [
        RunTag(key, _cut(str(value), MAX_NOTE if key == "mlflow.note.content" else _MAX_TAG))
        for key, value in zip(legal_keys(values), values.values(), strict=True)
    ]
