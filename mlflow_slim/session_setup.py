"""How a recipe wants to be measured: its session, meter and threads. Without MLflow: measuring has a process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .catalog import load_backend
from .config import Recipe
from .errors import MeasurementError
from .measurement.carbon import carbon_intensity
from .measurement.energy import EnergyMeter
from .measurement.sheet import Session

if TYPE_CHECKING:
    from .inputs import Inputs

__all__ = ["compute_threads", "energy_meter", "make_session"]

logger = logging.getLogger(__name__)


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
) -> Session:
    """How to measure, from the recipe.

    Args:
        recipe: Says how long and against which margin.
        inputs: Task and rows.
        threads: Threads of every arm.
        meter: A running energy session, if any.
        meter_reason: Why there is none.
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
        intensity=carbon_intensity(recipe.region, recipe.carbon_intensity),
        price_per_hour=recipe.price_per_hour,
        quick=recipe.quick,
        **{name: getattr(wanted, name) for name in type(wanted).model_fields if not name.endswith("_power_w")},
    )
