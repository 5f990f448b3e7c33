"""Shapes that a transformers configuration has no words for, such as layers that lost some of their heads.

``config.json`` carries them under `KEY`: for each module that differs from what the configuration describes, its
numbers (``num_attention_heads``, ``out_features``) by attribute. The weights themselves say the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KEY = "slim_narrowed"


def shapes_in(directory: Path) -> dict[str, dict[str, Any]]:
    """What ``config.json`` says of narrowed modules; empty for a model that its configuration describes.

    Raises:
        ValueError: It is not a mapping of modules to numbers.
    """
    shapes = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(KEY, {})
    sound = isinstance(shapes, dict) and all(
        isinstance(numbers, dict) and all(is_shape(value) for value in numbers.values()) for numbers in shapes.values()
    )
    if not sound:
        raise ValueError(f"{directory / 'config.json'} has a {KEY} that is no mapping of modules to numbers")
    return dict(shapes)


def is_shape(value: Any) -> bool:
    """True for a number or a sequence of whole numbers: all that tells a narrowed module from a full one."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) in (int, float)


def narrow(
    model: Any, report: Mapping[str, Any], directory: Path, shapes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Gives the modules of ``shapes`` their numbers and their weights, which ``from_pretrained`` left out.

    Args:
        model: What ``from_pretrained(..., ignore_mismatched_sizes=True)`` gave; changed in place.
        report: Its ``output_loading_info``.
        directory: The folder with the weights, safetensors.
        shapes: What `shapes_in` gave.

    Returns:
        ``report`` less the mismatches that were mended.

    Raises:
        ValueError: The model has no such module or attribute, or the folder no such weight.
    """
    import torch

    for name, numbers in shapes.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"{directory} narrows {name!r}, which this model doesn't have") from error
        for attribute, value in numbers.items():
            if not is_shape(getattr(module, attribute, None)):
                raise ValueError(f"{directory} sets {name}.{attribute}, which is no number of this model")
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
    mismatched = [entry for entry in report["mismatched_keys"] if entry[0].rpartition(".")[0] in shapes]
    wanted = {entry[0] for entry in mismatched}
    for name, tensor in _tensors(directory, wanted):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(tensor.to(model.dtype)))
        wanted.discard(name)
    if wanted:
        raise ValueError(f"{directory} has no weights for {', '.join(sorted(wanted))}")
    return {**report, "mismatched_keys": [e for e in report["mismatched_keys"] if e not in mismatched]}


def _tensors(directory: Path, names: set[str]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as weights:
            for name in names & set(weights.keys()):
                yield name, weights.get_tensor(name)
