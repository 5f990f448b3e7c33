"""Names of classes: those of a trained head, those of the data, and which id is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import DataError

__all__ = ["head_settings", "label_order", "match_labels", "model_labels", "unknown_labels"]


def model_labels(config: Mapping[str, Any] | None, head: str) -> list[str] | None:
    """Names of the classes of a checkpoint's trained head by id; None when it has no such head.

    Args:
        config: The checkpoint's ``config.json``.
        head: How the name of a model class with such a head ends, such as ``ForSequenceClassification``.
    """
    architectures = (config or {}).get("architectures") or []
    if config is None or not any(str(name).endswith(head) for name in architectures):
        return None
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return [f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))]
    return [str(names[key]) for key in sorted(names, key=int)]


def head_settings(names: Sequence[str]) -> dict[str, Any]:
    """What transformers is told about a head for classes of these names."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def label_order(value: Any) -> tuple[int, float, str]:
    """Numbers by value, then the rest by text, so that "10" and 10 both have one place."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def match_labels(in_data: Sequence[Any], of_model: list[str] | None) -> tuple[list[str], dict[Any, int], str]:
    """Class names by id, the id of each label in the data, and who decided: ``model`` or ``data``."""
    if of_model is not None:
        by_name = {name: i for i, name in enumerate(of_model)}
        if all(str(value) in by_name for value in in_data):
            return of_model, {value: by_name[str(value)] for value in in_data}, "model"
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in in_data)
        if whole and all(0 <= value < len(of_model) for value in in_data):
            return of_model, {value: int(value) for value in in_data}, "model"
    names = [str(value) for value in in_data]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"The label {twice!r} occurs as text and as a number. Write it one way.")
    return names, {value: i for i, value in enumerate(in_data)}, "data"


def unknown_labels(unknown: Sequence[str], labels: Sequence[str]) -> DataError:
    """The error for data with labels that an exported model doesn't have."""
    return DataError(
        f"The data has labels that the model doesn't know: {', '.join(unknown[:5])}. Its labels are: "
        f"{', '.join(labels[:20])}. Check the label column."
    )
