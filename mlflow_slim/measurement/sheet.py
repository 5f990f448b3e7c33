"""How a session measures, and the sheet that each part of it writes its figures on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..artifact import ExportedModel, OptimizationCost
from ..interfaces import Predictor, Task, TaskData
from .carbon import CarbonIntensity
from .energy import EnergyMeter
from .stats import Interval

__all__ = ["QUICK", "Session", "Sheet"]

QUICK = 0.25
"""Share of the time budgets that a quick measurement has."""


@dataclass(frozen=True)
class Session:
    """How to measure.

    Attributes:
        task, data: What the models do, and the rows; only the test split is measured on.
        load: Opens an exported model with the session's threads.
        threads: Threads of every arm.
        seed: Order of arms, bootstrap.
        meter: A running energy session; None measures no energy.
        no_energy: Why there is no meter.
        prepared: What making the baseline took, when the given model had to be fine-tuned first.
        intensity: Carbon intensity; None leaves emissions out, with the reason.
        price_per_hour: USD per hour of this machine; None leaves cost out.
        quick: A quarter of the time budgets, labelled.
        metric: Headline metric; None lets the data decide.
        quality_margin: Largest drop of the headline metric that is non-inferior.
        batch_size: Of the offline scenario.
        timing_s, energy_s: Largest seconds per point (and scenario) for timing, and per point for energy.
        fresh_starts: Fresh processes per point; 0 for none.
        concurrency: Requests at a time in a further timing of language models; 1 for none.
        lm_eval: Tasks of lm-eval for language models.
        lm_eval_rows: First rows of each, at most; None for all.
        prompts: Prompts in one batch in a further timing of language models; 1 for none.
        wait_s: Longest wait for quiet, seconds.
        pue, utilisation, requests_per_day: For emissions, cost and break-even.
    """

    task: Task
    data: TaskData
    load: Callable[[ExportedModel], Predictor]
    threads: int
    seed: int = 0
    meter: EnergyMeter | None = None
    no_energy: str = "energy was not asked for"
    prepared: OptimizationCost | None = None
    intensity: CarbonIntensity | None = None
    price_per_hour: float | None = None
    quick: bool = False
    metric: str | None = None
    quality_margin: float = 0.01
    batch_size: int = 32
    timing_s: float = 12.0
    energy_s: float = 10.0
    fresh_starts: int = 3
    concurrency: int = 1
    lm_eval: Sequence[str] = ()
    lm_eval_rows: int | None = None
    prompts: int = 1
    wait_s: float = 60.0
    pue: float = 1.0
    utilisation: float = 0.5
    requests_per_day: float | None = None


@dataclass
class Sheet:
    """A report on the way: what each part of the session adds to."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: dict[str, Sequence[float]] = field(default_factory=dict)

    def interval(self, key: str, value: Interval) -> None:
        """The figure, and where they are known the ends of its interval, as ``_lo`` and ``_hi``."""
        self.metrics[key] = value.value
        for end, number in (("lo", value.lo), ("hi", value.hi)):
            if math.isfinite(number):
                self.metrics[f"{key}_{end}"] = number

    def contended(self, because: str) -> None:
        """Flags the figures as disturbed by other work; the first reason is kept."""
        self.tags["slim.measure.contended"] = "true"
        self.tags.setdefault("slim.measure.contended_because", because)

    def absent(self, key: str, reason: str) -> None:
        self.tags[f"slim.absent.{key}"] = reason
