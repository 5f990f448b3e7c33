"""The student of a distillation: fewer layers of the teacher, or another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .artifact import OptimizedModel
from .depth import LayerMap, choose_layers, find_layers, keep_layers
from .errors import ConfigError
from .interfaces import Context

__all__ = ["make_student"]


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
    if student is not None:
        if layers is not None:
            raise ConfigError(f"student {student!r} and layers {layers!r} are both given. Keep one of them.")
        other = context.load_model(student)
        return other, {"student": student, "student_layers": getattr(other.model.config, "num_hidden_layers", None)}
    total = len(find_layers(teacher.model)[1])
    if isinstance(layers, tuple):
        kept = sorted(set(layers))
    else:
        kept = choose_layers(total, layers if layers is not None else max(1, total // 2), layer_map)
    return replace(teacher, model=keep_layers(teacher.model, kept)), {"layers_kept": kept, "layers_of_teacher": total}
