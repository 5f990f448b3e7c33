"""Measuring models that are exported already."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import bundle, tracking
from .artifact import ExportedModel
from .catalog import load_backend
from .config import Recipe
from .errors import InputNotFound, ModelError
from .foreign import check_allowed, is_foreign
from .inputs import load_inputs
from .measure_apart import measure_apart
from .measurement.helper import Helper
from .measurement.host import host
from .measurement.report import Report
from .runtime.bundle import NAME
from .runtime.pooling import VECTOR_SETTINGS

__all__ = ["Given", "check_comparable", "find_given", "measure"]


def measure(
    model: str | Path | ExportedModel,
    data: str = "demo",
    *,
    against: str | Path | ExportedModel | None = None,
    **options: Any,
) -> list[Report]:
    """Measures exported models without MLflow runs; the baseline's report comes first.

    Args:
        model: A folder that a recipe exported, the ``models:/`` or ``runs:/`` URI of a logged model, or an
            `ExportedModel`.
        data: As in a recipe; only its test split is used. A file without splits is cut as the recipe cut it when
            ``seed`` is the same.
        against: The baseline; None measures ``model`` alone.
        **options: Keys of a recipe, such as ``text``, ``label``, ``threads``, ``region``, or dotted ones.

    Raises:
        ModelError: The two models don't answer the same question in the same way.
        SlimError: A model or the data can't be used.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow_slim-", ignore_cleanup_errors=True) as name:
        folder = Path(name)

        def download(uri: str) -> Path:
            return tracking.download_artifacts(uri, into=Path(tempfile.mkdtemp(dir=folder)))

        points = [_as_exported(item, download) for item in ((against, model) if against is not None else (model,))]
        first, last = points[0], points[-1]
        check_comparable(first, last)
        recipe = Recipe.load({"name": "measure", "data": data, "task": first.task}, options)
        threads = recipe.threads or host().cores
        inputs = load_inputs(recipe, folder, download, spec=first.spec)
        original = load_backend(first.backend).load(first.directory, threads=threads)
        inputs = replace(inputs, data=inputs.task.complete(inputs.data, original.predict))
        with Helper(threads=threads) as helper:
            return measure_apart(points, recipe, inputs, threads, helper)


def check_comparable(first: ExportedModel, last: ExportedModel) -> None:
    """Raises ModelError unless both answer the same question in the same way."""
    for what, one, other in (("task", first.task, last.task), *_differences(first, last)):
        if one != other:
            raise ModelError(
                f"The models can't be compared, their {what} differ: {one!r} and {other!r}. "
                "Measure models that came from one recipe, or each alone."
            )


@dataclass(frozen=True)
class Given:
    """A model that a user named, as far as it can be told without loading it.

    Attributes:
        name: As the user named it.
        exported: What a recipe exported; None when it is none of that.
        foreign: The folder of an MLflow model that only its own code can open, else None.
    """

    name: str
    exported: ExportedModel | None = None
    foreign: Path | None = None

    @property
    def is_plain(self) -> bool:
        """Whether transformers loads it."""
        return self.exported is None and self.foreign is None


def find_given(name: str, download: Callable[[str], Path]) -> Given:
    """What is in a folder or under an MLflow URI.

    Raises:
        IntegrityError: It was exported, and is not what its manifest says.
        InputNotFound: The URI leads nowhere.
        UnsafeModelError: It was made elsewhere, and running its code isn't allowed.
    """
    is_uri = name.startswith(("models:/", "runs:/"))
    if not is_uri and not Path(name).is_dir():
        return Given(name)
    folder = download(name) if is_uri else Path(name)
    if any((place / NAME).is_file() for place in (folder, folder / "bundle")):
        exported = bundle.read(bundle.find(folder))
        if exported.backend == "pyfunc":
            check_allowed(folder, name)
        return Given(name, exported)
    if is_foreign(folder):
        check_allowed(folder, name)
        return Given(name, foreign=folder)
    return Given(name)


def _differences(first: ExportedModel, last: ExportedModel) -> list[tuple[str, Any, Any]]:
    """What decides the meaning of an answer; how long inputs are read, and how a vector is rounded, may differ."""
    keys = sorted({*first.spec, *last.spec} - {"max_length", "stride", *VECTOR_SETTINGS})
    return [(key, first.spec.get(key), last.spec.get(key)) for key in keys]


def _as_exported(item: str | Path | ExportedModel, download: Any) -> ExportedModel:
    if isinstance(item, ExportedModel):
        return item
    if str(item).startswith(("models:/", "runs:/")):
        return bundle.read(bundle.find(download(str(item))))
    if not Path(item).is_dir():
        raise InputNotFound(
            f"There is no folder {str(Path(item).absolute())!r}. Give a bundle folder or a models:/ URI."
        )
    return bundle.read(bundle.find(Path(item)))
