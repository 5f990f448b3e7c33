"""Models of any MLflow flavor beside ours: taken as they are, so that they can be measured and ranked with the rest.

To load one runs code and unpickles objects that came with it. Nothing here does so before its digest, over every file,
stands in the environment variable `VARIABLE`, which no recipe file and no model can set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__, bundle, manifest
from .artifact import ExportedModel
from .cache import files_digest
from .errors import ModelError, UnsafeModelError
from .runtime.bundle import FORMAT, NAME
from .safety import safe_yaml

__all__ = ["VARIABLE", "adopt", "check_allowed", "is_foreign", "log_model", "model_digest"]

VARIABLE = "MLFLOW_SLIM_ALLOW_CODE"
# What we, and MLflow when it downloads a registered version, put beside a model's own files.
_ADDED = frozenset((NAME, manifest.NAME, "registered_model_meta"))
_OPENED = frozenset(("mlflow_slim", "transformers"))


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds an MLflow model that only its own code can open."""
    path = folder / "MLmodel"
    if not path.is_file() or path.stat().st_size > 2**20:
        return False
    described = safe_yaml(path.read_text(encoding="utf-8"), where=str(path))
    flavors = described.get("flavors") if isinstance(described, dict) else None
    return isinstance(flavors, dict) and "python_function" in flavors and not _OPENED & set(flavors)


def model_digest(folder: Path) -> str:
    """sha256 over names and contents of a model's own files, the first 32 hex digits."""
    return files_digest(folder, without=_ADDED)[:32]


def check_allowed(folder: Path, name: str) -> str:
    """The digest of a folder whose code may be run.

    Raises:
        UnsafeModelError: Nobody allowed it; the message says how to.
    """
    digest = model_digest(folder)
    if digest not in os.environ.get(VARIABLE, "").replace(",", " ").split():
        raise UnsafeModelError(
            f"{name} was made elsewhere, and loading it runs code that came with it. If you trust these very files, "
            f"set {VARIABLE}={digest}"
        )
    return digest


def adopt(folder: Path, name: str, *, task: str, spec: Mapping[str, Any], directory: Path) -> ExportedModel:
    """The model in a downloaded folder as a point's model, in a folder of its own.

    Args:
        folder: What `is_foreign` says yes to.
        name: As the user named it.
        task: Name of the task.
        spec: Of the data: the labels that answers are looked up in.
        directory: Made here.

    Raises:
        UnsafeModelError: Its code isn't allowed, or a file leads out of the folder.
        ModelError: It can't be measured as this task.
    """
    if task != "text-classification" or spec.get("multi_label"):
        raise ModelError(
            f"{name} was made elsewhere; of those only classifiers of texts with one label a row can be measured."
        )
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise UnsafeModelError(f"{name} has links among its files: {', '.join(links[:3])}. Save it without.")
    digest = check_allowed(folder, name)
    shutil.copytree(folder, directory, ignore=shutil.ignore_patterns("registered_model_meta"))
    content = {
        "format": FORMAT,
        "backend": "pyfunc",
        "task": task,
        "spec": dict(spec),
        "inputs": {},
        "lineage": [],
        "parameters": 0,  # it doesn't say
        "nonzero_parameters": 0,
        "notes": {"name": name, "code": digest},
        "mlflow_slim_version": __version__,
    }
    bundle.save(directory, content)
    return bundle.read(directory, verify=False)


@dataclass(frozen=True)
class Logged:
    """What logging gave, as MLflow's ``ModelInfo`` names it."""

    model_uri: str


def log_model(exported: ExportedModel, name: str = "model", *, run_id: str, model_id: str) -> Logged:
    """Logs the files as they are to a LoggedModel that waits for them; it loads in MLflow as the original did.

    Args:
        exported: What `adopt` gave.
        name: Of the LoggedModel.
        run_id: Its run.
        model_id: The LoggedModel.
    """
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

    del name
    client = MlflowClient()
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    client.log_model_artifacts(model_id, str(exported.directory))
    client.set_logged_model_tags(model_id, {"slim.digest": manifest.digest(exported.directory)})
    client.finalize_logged_model(model_id, "READY")
    return Logged(f"models:/{model_id}")
