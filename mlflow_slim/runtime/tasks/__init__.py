"""One file per task: which class loads it, what a row may be, how raw outputs become answers.

Another task is another file, found by the task's name with dashes as underscores. It has ``LIBRARY_CLASS``,
``OUTPUTS``, ``KIND`` (which loader opens it, see `predictor`), ``COLUMNS`` of a table and ``OPTIONS`` beside them,
``check_rows(rows, spec)`` and ``respond(model, rows, params)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

# All at once: MLflow may load this package from a folder that is gone when a later model asks for another task.
_TASKS = {
    module.name.replace("_", "-"): importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
}


def find(name: str) -> ModuleType:
    """The file of a task.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in _TASKS:
        raise ValueError(f"The task {name!r} can't be served. Known: {', '.join(sorted(_TASKS))}.")
    return _TASKS[name]
