"""mlflow_slim: smaller models as MLflow runs, measured honestly against the original.

``run`` does a whole recipe; ``measure`` compares exported models; ``log_model`` and ``load_model`` are the
MLflow flavor. Importing this package imports nothing else: each name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare
    from .config import Recipe
    from .errors import SlimError
    from .flavor import load_model, log_model, save_model
    from .measure_models import measure
    from .pipeline import run
    from .promotion import promote
    from .ranking import frontier
    from .sweeping import sweep

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "SlimError",
    "__version__",
    "compare",
    "frontier",
    "load_model",
    "log_model",
    "measure",
    "promote",
    "run",
    "save_model",
    "sweep",
]

_HOMES = {
    "Recipe": "config",
    "SlimError": "errors",
    "compare": "comparison",
    "frontier": "ranking",
    "load_model": "flavor",
    "log_model": "flavor",
    "measure": "measure_models",
    "promote": "promotion",
    "run": "pipeline",
    "save_model": "flavor",
    "sweep": "sweeping",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
