"""Fetching models that a recipe names by an MLflow URI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.artifacts import download_artifacts as mlflow_download
from mlflow.exceptions import MlflowException

from ..errors import InputNotFound
from .scrub import one_line, scrub
from .store import connect

__all__ = ["download_artifacts"]

_FORM = re.compile(r"(models|runs):/[^/].*")


# In a folder that has to be what its manifest says, a file too many.
_NOTE = "registered_model_meta"


def download_artifacts(uri: str, *, into: Path | None = None) -> Path:
    """The local folder or file behind a ``models:/`` or ``runs:/`` URI.

    Args:
        uri: ``models:/<name>/<version>``, ``models:/<name>@<alias>``, ``models:/m-<id>`` or ``runs:/<id>/<path>``.
        into: Where to put it; by default MLflow decides, and gives local stores' own files without copying.

    Raises:
        InputNotFound: The store has nothing under this URI, or its files are gone.
        TrackingError: The store can't be reached; known within seconds.
    """
    if not _FORM.fullmatch(uri):
        raise InputNotFound(
            f"{scrub(uri)!r} is not an MLflow model URI. Write models:/<name>/<version>, models:/<name>@<alias> or "
            "runs:/<run id>/<path>."
        )
    connect()
    try:
        with _quick_and_quiet():
            path = Path(mlflow_download(uri, dst_path=str(into) if into else None))
    except (MlflowException, OSError, ValueError) as error:
        raise InputNotFound(
            f"{scrub(uri)!r} can't be fetched from MLflow: {one_line(str(error))}. Check the name, the version or "
            "alias, and that MLFLOW_TRACKING_URI names the store that holds it."
        ) from error
    if not path.exists():
        raise InputNotFound(f"{scrub(uri)!r} is known to MLflow but its files are gone from {scrub(str(path))!r}.")
    if into is not None and path.is_dir():  # a copy of our own; MLflow notes in it under which name it was asked for
        (path / _NOTE).unlink(missing_ok=True)
    return path


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Two quick retries instead of MLflow's four minutes: nothing would be lost. And no bar for every file."""
    limits = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
