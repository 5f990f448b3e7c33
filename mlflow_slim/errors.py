"""Every exception mlflow_slim raises on purpose.

::

    SlimError
    ├── ConfigError (ValueError)          the recipe or an option is wrong; nothing was started
    ├── DataError (ValueError)            the rows can't be used as the recipe says
    ├── ModelError (ValueError)           the model can't be used as the recipe says
    │   └── UnsafeModelError              loading it would run code or unpickle data
    ├── InputNotFound (FileNotFoundError) a file, folder, run or model that was named isn't there
    ├── MissingDependency (ImportError)   an optional package is needed; the message says which extra
    ├── TrainingDiverged (RuntimeError)   the loss became NaN or infinite
    ├── ExportError (RuntimeError)        the exported model could not be made or answers differently
    ├── IntegrityError (RuntimeError)     a saved model isn't what its manifest says
    ├── MeasurementError (RuntimeError)   a figure could not be obtained
    ├── PromotionRefused (RuntimeError)   no point passes the gate; every reason is named
    └── TrackingError (RuntimeError)      MLflow could not be reached or refused what was logged

A message says what is wrong, which value, and what to do, in that order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "InputNotFound",
    "IntegrityError",
    "MeasurementError",
    "MissingDependency",
    "ModelError",
    "PromotionRefused",
    "SlimError",
    "TrackingError",
    "TrainingDiverged",
    "UnsafeModelError",
    "did_you_mean",
    "first_line",
]


class SlimError(Exception):
    """Root of all errors that mlflow_slim raises on purpose."""


class ConfigError(SlimError, ValueError):
    """A recipe or option is wrong. ``faults`` holds every fault found, one sentence each."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        if len(self.faults) == 1:
            text = self.faults[0]
        else:
            text = "\n".join([f"{len(self.faults)} faults in the recipe:", *(f"- {f}" for f in self.faults)])
        super().__init__(text)


class DataError(SlimError, ValueError):
    """The rows can't be used as the recipe says."""


class ModelError(SlimError, ValueError):
    """The model can't be used as the recipe says."""


class UnsafeModelError(ModelError):
    """Loading this model would run code from it or unpickle data."""


class InputNotFound(SlimError, FileNotFoundError):
    """A file, folder, run or model that was named isn't there."""


class MissingDependency(SlimError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class PromotionRefused(SlimError, RuntimeError):
    """No point may be promoted. ``refused`` holds what keeps each one out, by run."""

    def __init__(self, message: str, *, refused: Mapping[str, Sequence[Any]] | None = None) -> None:
        super().__init__(message)
        self.refused = dict(refused or {})


class TrainingDiverged(SlimError, RuntimeError):
    """The loss became NaN or infinite."""


class ExportError(SlimError, RuntimeError):
    """The exported model could not be made, or answers differently from its source."""


class IntegrityError(SlimError, RuntimeError):
    """A saved model isn't what its manifest says."""


class MeasurementError(SlimError, RuntimeError):
    """A figure could not be obtained."""


class TrackingError(SlimError, RuntimeError):
    """MLflow could not be reached, or refused what was logged."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" message: the nearest known name, then all of them.

    >>> did_you_mean("quantise", ["prune", "quantize"])
    "Did you mean 'quantize'? Known: prune, quantize."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}Known: {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line, without colours; its kind where it says nothing."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
