"""Taking whole layers out of a transformer: which to keep, and a model that has only those.

Works on any transformers model that keeps its layers in one `ModuleList` as long as
``config.num_hidden_layers``; models that share one layer (ALBERT) have nothing to take out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from .errors import ModelError

__all__ = ["LayerMap", "checked_layers", "choose_layers", "find_layers", "keep_layers"]

LayerMap = Literal["spread", "alternate", "first", "last"]


def choose_layers(total: int, kept: int, layer_map: LayerMap = "spread") -> list[int]:
    """Which of ``total`` layers a model of ``kept`` layers takes over, ascending.

    ``spread`` is even and includes both ends, ``alternate`` is even from the first (as DistilBERT),
    ``first`` and ``last`` are what they say.

    Args:
        total: Layers there are, >= 1.
        kept: Layers to keep, 1 to ``total``.
        layer_map: Which to keep.

    Raises:
        ModelError: ``kept`` is out of range.

    >>> [choose_layers(6, 3, name) for name in ("spread", "alternate", "first", "last")]
    [[0, 2, 5], [0, 2, 4], [0, 1, 2], [3, 4, 5]]
    """
    if not 1 <= kept <= total:
        raise ModelError(f"layers is {kept}, but the model has {total}. Write a number from 1 to {total}.")
    if layer_map == "first":
        return list(range(kept))
    if layer_map == "last":
        return list(range(total - kept, total))
    if layer_map == "alternate" or kept == 1:
        return [i * total // kept for i in range(kept)]
    return [i * (total - 1) // (kept - 1) for i in range(kept)]


def find_layers(model: Any) -> tuple[str, Any]:
    """The dotted name of the model's list of layers, and the list.

    Raises:
        ModelError: The model keeps no such list.
    """
    from torch.nn import ModuleList

    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len(module) == count:
            return name, module
    kind = getattr(model.config, "model_type", type(model).__name__)
    raise ModelError(
        f"Can't take layers out of a {kind!r} model: it has no list of {count} layers (some architectures share one). "
        "Name another model with steps.distill.student=<folder or hub id>."
    )


def checked_layers(kept: Sequence[int], total: int) -> list[int]:
    """``kept`` as a list; ModelError unless each is one of ``total`` layers and there is one at least."""
    wrong = [index for index in kept if not 0 <= index < total]
    if wrong or not kept:
        raise ModelError(f"layers names {wrong or 'none'}, but the model's layers are 0 to {total - 1}.")
    return list(kept)


def keep_layers(model: Any, kept: Sequence[int]) -> Any:
    """A deep copy of ``model`` with only the layers ``kept``, renumbered; the config says so.

    Raises:
        ModelError: The model keeps no list of layers, or an index is out of range.
    """
    from torch.nn import ModuleList

    total = len(find_layers(model)[1])
    checked_layers(kept, total)
    student = copy.deepcopy(model)
    name, layers = find_layers(student)
    parent_name, _, attribute = name.rpartition(".")
    chosen = ModuleList(layers[index] for index in kept)
    setattr(student.get_submodule(parent_name), attribute, chosen)
    try:
        student.config.num_hidden_layers = len(kept)
    except NotImplementedError as error:
        raise ModelError(
            f"Can't take layers out of a {student.config.model_type!r} model: its configuration counts them otherwise."
        ) from error
    types = getattr(student.config, "layer_types", None)
    if isinstance(types, list | tuple) and len(types) == total:
        student.config.layer_types = [types[index] for index in kept]
    for position, layer in enumerate(chosen):  # attention modules address their cache by it
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", position)  # noqa: B010 - torch types attributes of modules as tensors
    return student
