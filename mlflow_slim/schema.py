"""What the figures of a point mean: unit, direction, and the difference that doesn't matter.

Names are those that MLflow shows (``group/name_unit``). Tolerances are MEASURE's: quality 0.2 points, times 2 %, energy
5 % (10 % when it is estimated), size 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .dominance import Objective
from .errors import ConfigError, did_you_mean

__all__ = ["ALIASES", "HEADLINE", "Meaning", "check_metrics", "known_meaning", "meaning", "objective"]

HEADLINE = "quality"
"""Stands for the headline quality metric, whichever the data asked for."""


@dataclass(frozen=True)
class Meaning:
    """What a figure is.

    Attributes:
        metric: Its name.
        title: For people.
        unit: Shown after a value; may be empty.
        higher_is_better: The direction.
        tolerance: The difference that doesn't matter; a share, or with ``absolute`` in the figure's unit.
        absolute: See ``tolerance``.
        of_a_session: It depends on the machine's mood, so that figures of two sessions are compared through their
            baselines alone.
        of_energy: It stands on measured or estimated energy, and on the provenance grade of it.
    """

    metric: str
    title: str
    unit: str
    higher_is_better: bool
    tolerance: float
    absolute: bool = False
    of_a_session: bool = False
    of_energy: bool = False


_TIME, _SIZE, _ENERGY, _QUALITY = 0.02, 0.01, 0.05, 0.002


def _of_energy(metric: str, words: str, unit: str) -> Meaning:
    """Of what serving uses."""
    return Meaning(metric, words, unit, False, _ENERGY, of_a_session=True, of_energy=True)


_MEANINGS = {
    m.metric: m
    for m in (
        Meaning("latency/p50_ms", "Median latency", "ms", False, _TIME, of_a_session=True),
        Meaning("latency/p90_ms", "Latency, 90th percentile", "ms", False, _TIME, of_a_session=True),
        Meaning("latency/p99_ms", "Latency, 99th percentile", "ms", False, _TIME, of_a_session=True),
        Meaning("latency/ttft_p50_ms", "Time to first token", "ms", False, _TIME, of_a_session=True),
        Meaning("latency/tpot_p50_ms", "Time per output token", "ms", False, _TIME, of_a_session=True),
        Meaning("throughput/tokens_per_s", "Throughput", "tokens/s", True, _TIME, of_a_session=True),
        Meaning("throughput/decode_tokens_per_s", "Decoding", "tokens/s", True, _TIME, of_a_session=True),
        Meaning("speedup/decode", "Speed-up of decoding", "x", True, _TIME),
        Meaning("speedup/first_token", "Speed-up of the first token", "x", True, _TIME),
        Meaning("throughput/samples_per_s", "Throughput", "samples/s", True, _TIME, of_a_session=True),
        Meaning("speedup/single", "Speed-up, one at a time", "x", True, _TIME),
        Meaning("speedup/offline", "Speed-up in batches", "x", True, _TIME),
        Meaning("size/disk_mib", "Size on disk", "MiB", False, _SIZE),
        Meaning("size/parameters_m", "Parameters", "M", False, _SIZE),
        Meaning("memory/peak_mib", "Peak memory", "MiB", False, _TIME),
        Meaning("load/cold_start_s", "Cold start", "s", False, _ENERGY, of_a_session=True),
        _of_energy("energy/wh_per_1k_samples", "Energy per 1,000 samples", "Wh"),
        _of_energy("emissions/gco2e_per_1k_samples", "Emissions per 1,000 samples", "gCO2e"),
        Meaning("cost/usd_per_1m_samples", "Cost per million samples", "USD", False, _TIME, of_a_session=True),
        _of_energy("energy/wh_per_1k_tokens", "Energy per 1,000 written tokens", "Wh"),
        _of_energy("emissions/gco2e_per_1k_tokens", "Emissions per 1,000 written tokens", "gCO2e"),
        Meaning("cost/usd_per_1m_tokens", "Cost per million written tokens", "USD", False, _TIME, of_a_session=True),
        Meaning("optimize/energy_kwh", "Energy of making it", "kWh", False, _ENERGY, of_energy=True),
        Meaning("optimize/duration_s", "Time of making it", "s", False, _ENERGY),
        Meaning("optimize/teacher_usd", "Paid for a teacher's answers", "USD", False, _ENERGY),
        Meaning("quality/mean_kl", "Divergence from the original", "nats", False, _QUALITY, absolute=True),
        Meaning("quality/agreement", "Agreement with the original", "", True, _QUALITY, absolute=True),
        Meaning("quality/negative_flips", "Answers that became wrong", "", False, _QUALITY, absolute=True),
        Meaning("quality/worst_slice_delta", "Change of the worst slice", "", True, _QUALITY, absolute=True),
    )
}

ALIASES = {
    "latency": "latency/p50_ms",
    "throughput": "throughput/samples_per_s",
    "speedup": "speedup/single",
    "size": "size/disk_mib",
    "memory": "memory/peak_mib",
    "energy": "energy/wh_per_1k_samples",
    "emissions": "emissions/gco2e_per_1k_samples",
    "cost": "cost/usd_per_1m_samples",
}
"""Short names that a user may write."""


@lru_cache(maxsize=4096)
def known_meaning(metric: str) -> Meaning | None:
    """What a figure is, by its whole name; None for what is none of the schema."""
    return _MEANINGS.get(metric) or _quality(metric)


def meaning(metric: str, *, headline: str = "accuracy", grade: str | None = None) -> Meaning:
    """What a figure is, by its name or alias.

    Args:
        metric: A name of the schema, an alias, or `HEADLINE`.
        headline: The metric that ``quality`` stands for.
        grade: Provenance of energy; estimates (C, D) have twice the tolerance.

    Raises:
        ConfigError: No figure has this name.
    """
    name = f"quality/{headline}" if metric == HEADLINE else ALIASES.get(metric, metric)
    found = known_meaning(name)
    if found is None:
        raise ConfigError(f"There is no figure {metric!r}. {did_you_mean(metric, [HEADLINE, *ALIASES, *_MEANINGS])}")
    if found.of_energy and grade in ("C", "D"):
        found = replace(found, tolerance=2 * found.tolerance)
    return found


def _quality(name: str) -> Meaning | None:
    from .errors import MeasurementError
    from .measurement.quality import higher_is_better

    group, _, metric = name.partition("/")
    if group != "quality" or not metric:
        return None
    try:
        up = higher_is_better(metric)
    except MeasurementError:
        return None
    return Meaning(name, metric.replace("_", " ").capitalize(), "", up, _QUALITY, absolute=True)


def objective(found: Meaning) -> Objective:
    """The figure as something to optimize."""
    return Objective(found.metric, found.higher_is_better, found.tolerance, found.absolute)


def check_metrics(names: Sequence[str]) -> None:
    """Raises ConfigError with every name that is no figure or stands twice."""
    faults: list[str] = []
    for name in names:
        try:
            meaning(name)
        except ConfigError as error:
            faults.extend(error.faults)
    full = [ALIASES.get(name, name) for name in names]
    faults += [f"{name!r} is given twice." for name in sorted({name for name in full if full.count(name) > 1})]
    if not names:
        faults.append("No figure is named. Write for instance objectives=quality,latency,size.")
    if faults:
        raise ConfigError(faults)
