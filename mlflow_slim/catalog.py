"""Names of techniques, tasks and backends, and where each lives; nothing is imported until it is asked for.

Adding a technique is one file and one line in `TECHNIQUES`; a task or a backend is one file, whose name
is its public name. Other packages add theirs by entry points (``mlflow_slim.techniques``,
``mlflow_slim.tasks``, ``mlflow_slim.backends``), whose names are the public names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import cast

from .errors import ConfigError, MissingDependency, did_you_mean
from .interfaces import Backend, Task, Technique

__all__ = [
    "TECHNIQUES",
    "backend_names",
    "find_technique",
    "load_backend",
    "load_task",
    "load_technique",
    "task_names",
    "technique_names",
]

TECHNIQUES = {
    "compile.torch": "mlflow_slim.techniques.compile_torch:CompileTorch",
    "distill.generate": "mlflow_slim.techniques.distill_generate:DistillGenerate",
    "distill.hidden": "mlflow_slim.techniques.distill_hidden:DistillHidden",
    "distill.logits": "mlflow_slim.techniques.distill_logits:DistillLogits",
    "finetune.full": "mlflow_slim.techniques.finetune_full:FinetuneFull",
    "finetune.lora": "mlflow_slim.techniques.finetune_lora:FinetuneLora",
    "prune.depth": "mlflow_slim.techniques.prune_depth:PruneDepth",
    "prune.heads": "mlflow_slim.techniques.prune_heads:PruneHeads",
    "prune.magnitude": "mlflow_slim.techniques.prune_magnitude:PruneMagnitude",
    "prune.vocabulary": "mlflow_slim.techniques.prune_vocabulary:PruneVocabulary",
    "prune.wanda": "mlflow_slim.techniques.prune_wanda:PruneWanda",
    "prune.width": "mlflow_slim.techniques.prune_width:PruneWidth",
    "quantize.cast": "mlflow_slim.techniques.quantize_cast:QuantizeCast",
    "quantize.embedding": "mlflow_slim.techniques.quantize_embedding:QuantizeEmbedding",
    "quantize.dynamic": "mlflow_slim.techniques.quantize_dynamic:QuantizeDynamic",
    "quantize.qat": "mlflow_slim.techniques.quantize_qat:QuantizeQat",
    "quantize.static": "mlflow_slim.techniques.quantize_static:QuantizeStatic",
    "quantize.weight_only": "mlflow_slim.techniques.quantize_weight_only:QuantizeWeightOnly",
    "speculate.assistant": "mlflow_slim.techniques.speculate_assistant:SpeculateAssistant",
    "speculate.lookup": "mlflow_slim.techniques.speculate_lookup:SpeculateLookup",
}


def _in_folder(kind: str, variable: str) -> dict[str, str]:
    """Public name -> ``module:variable`` for each file of a sub-package; ``text_x.py`` is named ``text-x``."""
    folder = Path(__file__).parent / kind
    stems = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return {stem.replace("_", "-"): f"mlflow_slim.{kind}.{stem}:{variable}" for stem in stems}


def _known(kind: str) -> dict[str, str]:
    ours = {
        "techniques": lambda: TECHNIQUES,
        "tasks": lambda: _in_folder("tasks", "TASK"),
        "backends": lambda: _in_folder("backends", "BACKEND"),
    }[kind]()
    others = {point.name: point.value for point in importlib.metadata.entry_points(group=f"mlflow_slim.{kind}")}
    return {**others, **ours}


def technique_names() -> list[str]:
    """Public names of all techniques, sorted."""
    return sorted(_known("techniques"))


def task_names() -> list[str]:
    """Public names of all tasks, sorted."""
    return sorted(_known("tasks"))


def backend_names() -> list[str]:
    """Public names of all backends, sorted."""
    return sorted(_known("backends"))


def _load(kind: str, singular: str, name: str) -> object:
    known = _known(kind)
    if name not in known:
        raise ConfigError(f"Unknown {singular} {name!r}. {did_you_mean(name, known)}")
    module_name, _, attribute = known[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        # One of ours failing to import is a missing package of the core; another package's is its own affair.
        raise MissingDependency(
            f"The {singular} {name!r} can't be loaded: {error}. Install what it needs, "
            "for our own parts with: pip install --upgrade mlflow_slim"
        ) from error
    return getattr(module, attribute)


def load_technique(name: str) -> type[Technique]:
    """The options class of a technique.

    Raises:
        ConfigError: No technique has this name; the nearest known name is suggested.
        MissingDependency: It needs a package that isn't installed.
    """
    return cast("type[Technique]", _load("techniques", "technique", name))


def load_task(name: str) -> Task:
    """A task by its public name; raises as `load_technique` does."""
    return cast("Task", _load("tasks", "task", name))


def load_backend(name: str) -> Backend:
    """A backend by its public name; raises as `load_technique` does.

    Whether it can run here is asked of the backend itself, with ``is_available``.
    """
    return cast("Backend", _load("backends", "backend", name))


def find_technique(name: str) -> str:
    """The full name for a full name or a kind that has one method only, unchanged when unknown.

    >>> find_technique("compile")
    'compile.torch'
    """
    known = technique_names()
    of_kind = [full for full in known if full.split(".")[0] == name]
    return of_kind[0] if name not in known and len(of_kind) == 1 else name
