"""The student of a distillation: fewer layers of the teacher, or another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .artifact import OptimizedModel
from .depth import LayerMap, checked_layers, choose_layers, find_layers, keep_layers
from .errors import ConfigError
from .interfaces import Context

__all__ = ["check_student", "make_student"]


def check_student(
    teacher: OptimizedModel, *, student: str | None, layers: int | tuple[int, ...] | None, layer_map: LayerMap
) -> None:
    """Raises what `make_student` would, without making one.

    Raises:
        ConfigError: ``student`` and ``layers`` are both given.
        ModelError: The teacher has no such layers, or no list of layers at all.
    """
    if student is not None and layers is not None:
        raise ConfigError(f"student {student!r} and layers {layers!r} are both given. Keep one of them.")
    if student is None:
        chosen_layers(teacher, layers, layer_map)


def chosen_layers(teacher: OptimizedModel, layers: int | tuple[int, ...] | None, layer_map: LayerMap) -> list[int]:
    """The layers of the teacher that the student takes over, ascending."""
    total = len(find_layers(teacher.model)[1])
    if not isinstance(layers, tuple):
        return choose_layers(total, layers if layers is not None else max(1, total // 2), layer_map)
    return checked_layers(sorted(set(layers)), total)


def make_student(
    teacher: OptimizedModel,
    context: Context,
    *,
    student: str | None,
    layers: int | tuple[int, ...] | None,
    layer_map: LayerMap,
) -> tuple[OptimizedModel, Mapping[str, Any]]:
    """An untrained student, and what was chosen, for the step's notes.

    Warm-starting from the teacher's layers keeps its embeddings and head, which is most of what a short
    distillation can reach (Sanh et al. 2019, arXiv:1910.01108, section 3).

    Raises:
        ConfigError: ``student`` and ``layers`` are both given.
        ModelError: The student can't be made or loaded.
    """
    check_student(teacher, student=student, layers=layers, layer_map=layer_map)
    if student is not None:
        other = context.load_model(student)
        return other, {"student": student, "student_layers": getattr(other.model.config, "num_hidden_layers", None)}
    kept = chosen_layers(teacher, layers, layer_map)
    total = len(find_layers(teacher.model)[1])
    return replace(teacher, model=keep_layers(teacher.model, kept)), {"layers_kept": kept, "layers_of_teacher": total}
