"""Measuring models that are exported already, and what every measurement shares: session, meter, threads."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import bundle, tracking
from .artifact import ExportedModel, StepRecord
from .catalog import load_backend
from .config import Recipe
from .errors import InputNotFound, MeasurementError, ModelError
from .inputs import Inputs, load_inputs
from .measurement.carbon import carbon_intensity
from .measurement.energy import EnergyMeter
from .measurement.host import host
from .measurement.report import Report
from .measurement.session import Session, measure_points
from .runtime.bundle import NAME

__all__ = ["check_comparable", "compute_threads", "energy_meter", "find_exported", "make_session", "measure"]

logger = logging.getLogger(__name__)


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
        with compute_threads(threads), energy_meter(recipe) as (meter, reason):
            inputs = load_inputs(recipe, folder, download, spec=first.spec)
            return measure_points(points, make_session(recipe, inputs, threads, meter, reason))


def check_comparable(first: ExportedModel, last: ExportedModel) -> None:
    """Raises ModelError unless both answer the same question in the same way."""
    for what, one, other in (("task", first.task, last.task), *_differences(first, last)):
        if one != other:
            raise ModelError(
                f"The models can't be compared, their {what} differ: {one!r} and {other!r}. "
                "Measure models that came from one recipe, or each alone."
            )


def find_exported(name: str, download: Callable[[str], Path]) -> ExportedModel | None:
    """The exported model in a folder or under an MLflow URI; None when what is there is no model of ours.

    Raises:
        IntegrityError: It is one, and not what its manifest says.
        InputNotFound: The URI leads nowhere.
    """
    is_uri = name.startswith(("models:/", "runs:/"))
    if not is_uri and not Path(name).is_dir():
        return None
    folder = download(name) if is_uri else Path(name)
    if not any((place / NAME).is_file() for place in (folder, folder / "bundle")):
        return None
    return bundle.read(bundle.find(folder))


def _differences(first: ExportedModel, last: ExportedModel) -> list[tuple[str, Any, Any]]:
    """What decides the meaning of an answer; the longest input may differ."""
    keys = sorted({*first.spec, *last.spec} - {"max_length"})
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


@contextlib.contextmanager
def energy_meter(recipe: Recipe) -> Iterator[tuple[EnergyMeter | None, str]]:
    """A running meter, or None and the reason why energy is not measured. Missing energy never ends a recipe."""
    if recipe.measure.energy_s == 0:
        yield None, "energy was not asked for"
        return
    meter = EnergyMeter(cpu_power_w=recipe.measure.cpu_power_w, ram_power_w=recipe.measure.ram_power_w)
    try:
        meter.__enter__()
    except MeasurementError as error:
        logger.warning("Energy is not measured: %s", error)
        yield None, str(error)
        return
    try:
        yield meter, ""
    finally:
        meter.__exit__(None, None, None)


@contextlib.contextmanager
def compute_threads(threads: int) -> Iterator[None]:
    """The thread numbers of torch and of tokenizers are global: set for the block, given back after it.

    The pool of tokenizers is made at its first use and keeps its size; with one thread no pool is used at all.
    """
    import torch

    wanted = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    former = {name: os.environ.get(name) for name in wanted}
    before = torch.get_num_threads()
    os.environ.update(wanted)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_session(
    recipe: Recipe,
    inputs: Inputs,
    threads: int,
    meter: EnergyMeter | None,
    meter_reason: str,
    prepared: StepRecord | None = None,
) -> Session:
    """How to measure, from the recipe.

    Args:
        recipe: Says how long and against which margin.
        inputs: Task and rows.
        threads: Threads of every arm.
        meter: A running energy session, if any.
        meter_reason: Why there is none.
        prepared: The step that made the baseline, if one did.
    """
    wanted = recipe.measure
    return Session(
        task=inputs.task,
        data=inputs.data,
        load=lambda exported: load_backend(exported.backend).load(exported.directory, threads=threads),
        threads=threads,
        seed=recipe.seed,
        meter=meter,
        no_energy=meter_reason,
        prepared=prepared.cost if prepared is not None else None,
        intensity=carbon_intensity(recipe.region, recipe.carbon_intensity),
        price_per_hour=recipe.price_per_hour,
        quick=recipe.quick,
        **{name: getattr(wanted, name) for name in type(wanted).model_fields if not name.endswith("_power_w")},
    )
