"""Measures all points of a recipe in one session and gives one `Report` each.

The order is: quality of every point on the test rows; then, with the machine's one measure slot held and after
waiting for quiet, everything that takes time: the arms take turns in one process with the same inputs and the
same threads (timing, energy), then each starts a few times in processes of its own (cold start, memory).
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil

from ..artifact import ExportedModel, OptimizationCost
from ..errors import MeasurementError
from ..interfaces import Predictor, Task, TaskData
from .allocator import freed_memory_kept
from .arms import Scenario, arm_names, is_generator, make_scenarios, representative_rows
from .carbon import NO_INTENSITY, CarbonIntensity, emissions, gco2e_per_1k_samples
from .energy import EnergyMeter
from .energy_comparison import ArmEnergy, EnergyComparison, compare_energy
from .host import Readiness, measure_slot, quiet_wait, watch
from .language import ROWS, divergences, misspelt_prompt
from .quality_report import headline, quality_report
from .report import Report
from .size import folder_size
from .stats import Interval
from .timing import FEWEST_ROUNDS, Timings, compare, interleave, latency
from .token_timing import time_tokens

__all__ = ["PROTOCOL", "Session", "measure_points"]

logger = logging.getLogger(__name__)
PROTOCOL = "3"
"""Version of the protocol; figures of different versions aren't ranked together."""
QUICK = 0.25
"""Share of the time budgets that a quick measurement has."""
COPIES, QUICK_COPIES = 8, 4
"""How often every point is loaded for timing. One load differs from the next by 1 to 2 % for as long as it lasts."""


_PLACES = 64
"""Places of a row at which whole distributions are compared, at most."""
_PER_TOKEN = {
    "energy/wh_per_1k_samples": "energy/wh_per_1k_tokens",
    "emissions/gco2e_per_1k_samples": "emissions/gco2e_per_1k_tokens",
    "cost/usd_per_1m_samples": "cost/usd_per_1m_tokens",
    "optimize/break_even_samples": "optimize/break_even_tokens",
}


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
    wait_s: float = 60.0
    pue: float = 1.0
    utilisation: float = 0.5
    requests_per_day: float | None = None


@dataclass
class _Sheet:
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


def measure_points(points: Sequence[ExportedModel], session: Session) -> list[Report]:
    """One report a point, in order; the first point is the baseline of the others.

    Raises:
        MeasurementError: A figure could not be obtained that can't be left out.
    """
    predictors = [session.load(point) for point in points]
    sheets = [_Sheet() for _ in points]
    for predictor, sheet in zip(predictors, sheets, strict=True):
        settings = getattr(predictor, "settings", {})
        sheet.params.update({f"slim.engine.{name}": str(value).lower() for name, value in settings.items()})
    _quality(points, predictors, sheets, session)
    if is_generator(predictors[0]):
        _language(points, predictors, sheets, session)
    gc.collect()  # what was made before is not to take memory while something is timed
    with measure_slot() as waited, freed_memory_kept() as kept:
        ready = quiet_wait(session.wait_s)
        if not ready.quiet:
            logger.warning("Other work keeps this machine busy: %s. Figures are flagged as contended.", ready.reason)
        _conditions(sheets, session, ready, waited)
        disks_mib = [folder_size(point.directory).disk_mib for point in points]
        copies, control = _copies(points, disks_mib, session)
        scenarios = make_scenarios(points, predictors, session.data.test.inputs, session.batch_size, copies, control)
        for sheet in sheets:
            sheet.params["slim.measure.copies"] = str(1 + len(copies))
            sheet.params["slim.measure.freed_memory_kept"] = str(kept).lower()
        # What one scenario leaves of its time is the next one's: batches take longer than single texts.
        left_s = 2 * session.timing_s * (QUICK if session.quick else 1.0) * len(points) * len(scenarios)
        for number, scenario in enumerate(scenarios):
            left_s -= _timing(scenario, points, sheets, session, budget_s=left_s / (len(scenarios) - number))
        if is_generator(predictors[0]):
            _token_timing(points, predictors, sheets, session)
        _energy(scenarios[-1], points, sheets, session)
        _fresh_processes(points, sheets, session)
    _sizes(points, disks_mib, sheets)
    _costs(points, sheets, session)
    return [
        Report(point.variant, sheet.metrics, sheet.tags, sheet.params, sheet.tables, sheet.samples)
        for point, sheet in zip(points, sheets, strict=True)
    ]


def _copies(
    points: Sequence[ExportedModel], disks_mib: Sequence[float], session: Session
) -> tuple[list[list[Predictor]], list[Predictor]]:
    """Every point loaded again, several times, and the baseline as often once more for the control.

    None for a lone point, or where memory might not hold them.
    """
    wanted = QUICK_COPIES if session.quick else COPIES
    # Three times the files: weights, buffers and what the runtime keeps beside them. At most half of what is free.
    room_mib = psutil.virtual_memory().available / 2**20 / 2
    fit = int(room_mib / (3 * (sum(disks_mib) + disks_mib[0])))
    sets = min(wanted, 1 + fit)
    if len(points) < 2 or sets < 3:  # two say nothing about how copies differ
        return [], []
    # Each set in the other direction: what is loaded first must not always be the same point.
    copies, control = [], [session.load(points[0])]
    for number in range(sets - 1):
        places = list(range(len(points)))[:: 1 if number % 2 else -1]
        loaded = {place: session.load(points[place]) for place in places}
        copies.append([loaded[place] for place in range(len(points))])
        control.append(session.load(points[0]))
    return copies, control


def _quality(
    points: Sequence[ExportedModel], predictors: Sequence[Predictor], sheets: Sequence[_Sheet], session: Session
) -> None:
    test, spec = session.data.test, points[0].spec
    metric, why = headline(session.task, test, spec, session.metric)
    baseline: np.ndarray | None = None
    for point, predictor, sheet in zip(points, predictors, sheets, strict=True):
        logger.info("Quality of %s on %d test rows", point.variant, len(test))
        outputs = predictor.predict(test.inputs, batch_size=session.batch_size)
        part = quality_report(
            session.task, test, spec, outputs, baseline, metric=metric, margin=session.quality_margin, seed=session.seed
        )
        sheet.metrics.update(part.metrics)
        sheet.tags.update({"slim.quality.metric": metric, "slim.quality.metric_because": why, **part.tags})
        sheet.tables.update(part.tables)
        baseline = outputs if baseline is None else baseline


def _language(
    points: Sequence[ExportedModel], predictors: Sequence[Any], sheets: Sequence[_Sheet], session: Session
) -> None:
    """Divergence from the original's probabilities, and what misspelt prompts do to the original and to the others."""
    test, spec = session.data.test, points[0].spec
    some = [test.inputs[at * len(test) // min(ROWS, len(test))] for at in range(min(ROWS, len(test)))]
    typed = [(misspelt_prompt(prompt, seed=session.seed), text) for prompt, text in test.inputs]
    asks = any(prompt for prompt, _ in test.inputs)
    original: tuple[list[Any], np.ndarray] | None = None
    for predictor, sheet in zip(predictors, sheets, strict=True):
        rows = predictor.distributions(some, places=_PLACES)
        scores = predictor.scores(typed) if asks else np.zeros(0)
        if asks:
            worth = session.task.judge("log_likelihood", scores, test.references, spec)
            sheet.metrics["quality/misspelt_log_likelihood"] = worth
        else:
            sheet.absent("quality/misspelt_log_likelihood", "the rows are texts without prompts")
        if original is None:
            original = (rows, scores)
            continue
        if [len(row) for row in rows] == [len(row) for row in original[0]]:
            apart = divergences(original[0], rows)
            sheet.metrics["quality/mean_kl"] = float(apart.mean())
            sheet.metrics["quality/p99_kl"] = float(np.quantile(apart, 0.99))
            sheet.params["slim.measure.kl_places"] = str(len(apart))
        else:
            sheet.absent("quality/mean_kl", "the models have different tokenizers")
        if asks:
            change = session.task.difference(
                "log_likelihood", original[1], scores, test.references, spec, seed=session.seed
            )
            sheet.interval("quality/misspelt_log_likelihood_delta", change)


def _conditions(sheets: Sequence[_Sheet], session: Session, ready: Readiness, waited: float) -> None:
    test = session.data.test
    for sheet in sheets:
        sheet.params.update(
            {
                "slim.measure.protocol": PROTOCOL,
                "slim.measure.quick": str(session.quick).lower(),
                "slim.measure.threads": str(session.threads),
                "slim.measure.batch_size": str(session.batch_size),
                "slim.measure.seed": str(session.seed),
                "slim.measure.test_rows": str(len(test)),
                "slim.measure.test_digest": test.digest,
                "slim.measure.quality_margin": f"{session.quality_margin:g}",
                "slim.measure.waited_s": f"{waited + ready.waited_s:.1f}",
                "slim.measure.foreign_cpu_share": f"{ready.load.foreign_share:.3f}",
            }
        )
        sheet.tags["slim.measure.contended"] = "false"
        if not ready.quiet:
            sheet.contended(f"before timing: {ready.reason}")
        if session.quick:
            sheet.tags["slim.measure.quick"] = "true"


def _timing(
    scenario: Scenario,
    points: Sequence[ExportedModel],
    sheets: Sequence[_Sheet],
    session: Session,
    *,
    budget_s: float,
) -> float:
    """Times one scenario; gives the seconds that it took."""
    logger.info("Timing %s: %d points in turns", scenario.title, len(points))
    kinds = [("", "", scenario.arms)]
    if scenario.text_arms:
        kinds.append(("with_tokenizer_", "_with_tokenizer", scenario.text_arms))
    try:
        with watch() as others:
            timings = interleave(
                [*scenario.arms, *scenario.text_arms],
                budget_s=budget_s,
                min_rounds=min(10 if session.quick else 40, scenario.min_rounds),
                threads=session.threads,
                seed=session.seed,
                control=scenario.control or len(points) > 1,
            )
    except MeasurementError as error:
        logger.warning("%s was not timed: %s", scenario.title, error)
        for prefix, suffix, _ in kinds:
            figure = f"latency/{prefix}p50_ms" if scenario.rows == 1 else f"throughput/{prefix}samples_per_s"
            for point, sheet in zip(points, sheets, strict=True):
                sheet.absent(figure, str(error))
                if point is not points[0]:
                    sheet.absent(f"speedup/{scenario.name}{suffix}", str(error))
        return budget_s
    busy = others.load.disturbance()
    spoilt = _control_failure(timings, scenario)
    for prefix, suffix, arms in kinds:
        for point, sheet, arm in zip(points, sheets, arms, strict=True):
            warmup = f"slim.measure.{scenario.name}{suffix}.warmup"
            sheet.params[f"{warmup}_calls"] = str(timings.warmup_calls[arm.name])
            sheet.params[f"{warmup}_steady"] = str(timings.steady[arm.name]).lower()
            _rate(scenario, timings, arm.name, sheet, prefix)
            sheet.samples[f"{scenario.name}{suffix}/wall_s"] = timings.wall_s[arm.name].tolist()
            sheet.samples[f"{scenario.name}{suffix}/cpu_s"] = timings.cpu_s[arm.name].tolist()
            if point is not points[0]:
                _speedup(scenario, timings.against(arms[0].name), arm.name, sheet, suffix, spoilt)
    for sheet in sheets:
        sheet.params[f"slim.measure.{scenario.name}.rounds"] = str(timings.rounds)
        sheet.params[f"slim.measure.{scenario.name}.rows_per_call"] = str(scenario.rows)
        if scenario.tokens is not None:
            sheet.params[f"slim.measure.{scenario.name}.tokens_per_call"] = str(scenario.tokens)
        sheet.params[f"slim.measure.{scenario.name}.stopped_by"] = timings.stopped
        sheet.params[f"slim.measure.{scenario.name}.load_average"] = ", ".join(f"{load:.2f}" for load in timings.load)
        sheet.params[f"slim.measure.{scenario.name}.foreign_cpu_share"] = f"{others.load.foreign_share:.3f}"
        if busy:
            sheet.contended(f"while timing {scenario.title}: {busy}")
    return timings.duration_s


def _token_timing(
    points: Sequence[ExportedModel], predictors: Sequence[Predictor], sheets: Sequence[_Sheet], session: Session
) -> None:
    """When each token comes, and what follows for tokens a second."""
    median = representative_rows(session.data.test.inputs, 1)
    names = arm_names(points)
    calls: dict[str, Callable[[], Any]] = {}
    for name, predictor in zip(names, predictors, strict=True):
        generator: Any = predictor
        calls[name] = partial(generator.stamps, predictor.encode(median))
    logger.info("Timing each token: %d points in turns", len(points))
    budget = session.timing_s * (QUICK if session.quick else 1.0) * len(points)
    try:
        with watch() as others:
            timings = time_tokens(calls, budget_s=budget, seed=session.seed)
    except MeasurementError as error:
        logger.warning("Single tokens were not timed: %s", error)
        for sheet in sheets:
            sheet.absent("latency/ttft_p50_ms", str(error))
        return
    busy = others.load.disturbance()
    for point, sheet, name in zip(points, sheets, names, strict=True):
        for key, value in timings.figures(name).items():
            sheet.interval(key, value)
        if point is not points[0]:
            for key, value in timings.speedups(name).items():
                sheet.interval(key, value)
        sheet.params["slim.measure.tokens.rounds"] = str(timings.rounds)
        sheet.params["slim.measure.tokens.written_per_call"] = str(timings.tokens)
        sheet.samples["tokens/per_token_s"] = timings.per_token_s(name).tolist()
        sheet.samples["tokens/first_s"] = timings.first_s(name).tolist()
        if busy:
            sheet.contended(f"while timing each token: {busy}")


def _control_failure(timings: Timings, scenario: Scenario) -> str:
    """Why no ratio of this run may be shown: the baseline differs from its own copy; empty when it doesn't."""
    if len(scenario.arms) < 2 or timings.rounds < FEWEST_ROUNDS:
        return ""
    speed = compare(timings, scenario.arms[1].name)
    return speed.reason if speed.noisy else ""


def _rate(scenario: Scenario, timings: Timings, arm: str, sheet: _Sheet, prefix: str) -> None:
    """Latency of one text, or texts a second of batches."""
    found = latency(timings, arm)
    if scenario.rows == 1:
        for name, value in found.items():
            sheet.interval(f"latency/{prefix}{name}_ms", value)
        if not prefix and "p99" not in found:
            sheet.absent("latency/p99_ms", "fewer than 1,000 calls were timed")
        return
    per_call, each = found["p50"], scenario.rows * 1e3
    rate = Interval(each / per_call.value, each / per_call.hi, each / per_call.lo, per_call.n, per_call.confidence)
    sheet.interval(f"throughput/{prefix}samples_per_s", rate)


def _speedup(scenario: Scenario, timings: Timings, arm: str, sheet: _Sheet, suffix: str, spoilt: str) -> None:
    key = f"speedup/{scenario.name}{suffix}"
    tag = "slim.speed" if scenario.name == "single" and not suffix else f"slim.speed.{scenario.name}{suffix}"
    try:
        speed = compare(timings, arm)
    except MeasurementError as error:
        sheet.absent(key, str(error))
        sheet.tags.update({f"{tag}.verdict": "inconclusive", f"{tag}.because": str(error)})
        return
    if spoilt:
        sheet.absent(key, spoilt)
    else:
        sheet.interval(key, speed.wall)
        if speed.cpu is not None:
            sheet.interval(f"{key}_cpu", speed.cpu)
    if speed.control is not None:
        sheet.interval(f"{key}_control", speed.control)
    sheet.tags[f"{tag}.verdict"] = "inconclusive" if spoilt else speed.verdict
    sheet.tags[f"{tag}.because"] = spoilt or speed.reason
    if speed.contended:
        sheet.contended(f"while timing {scenario.title}: the arms did not get the CPU")


def _energy(scenario: Scenario, points: Sequence[ExportedModel], sheets: Sequence[_Sheet], session: Session) -> None:
    keys = ("energy/wh_per_1k_samples", "energy/measured_share", "emissions/gco2e_per_1k_samples")
    key = keys[0]
    if session.meter is None:
        for sheet in sheets:
            for missing in keys:
                sheet.absent(missing, session.no_energy)
        return
    logger.info("Energy: %d arms in turns", len(points))
    # Five windows are the fewest that give an interval; counters need longer ones than a model does.
    budget = max(session.energy_s * (QUICK if session.quick else 1.0), 16.0 if session.meter.has_counter else 6.0)
    try:
        with watch() as others:
            found = compare_energy(scenario.energy_arms, meter=session.meter, budget_s=budget * len(points))
    except MeasurementError as error:
        for sheet in sheets:
            for missing in keys:
                sheet.absent(missing, str(error))
        logger.warning("Energy was not measured: %s", error)
        return
    busy = others.load.disturbance()
    for point, sheet, arm in zip(points, sheets, scenario.energy_arms, strict=True):
        if busy:
            sheet.contended(f"while measuring energy: {busy}")
        taken = found.arms[arm.name]
        sheet.interval(key, taken.wh_per_1k_samples)
        sheet.metrics["energy/measured_share"] = found.measured_share
        sheet.samples["energy/joules_per_sample"] = list(taken.joules_per_sample)
        sheet.tags["slim.energy.grade"] = found.grade
        sheet.params.update({**_energy_params(found), "slim.energy.scenario": scenario.name})
        if session.intensity is not None:
            per_wh = gco2e_per_1k_samples(1.0, session.intensity, pue=session.pue)
            sheet.interval("emissions/gco2e_per_1k_samples", taken.wh_per_1k_samples.scaled(per_wh))
            sheet.params["slim.carbon.intensity_gco2e_per_kwh"] = f"{session.intensity.value_gco2e_per_kwh:g}"
            sheet.params["slim.carbon.source"] = session.intensity.source
            sheet.params["slim.carbon.year"] = str(session.intensity.year or "not given")
            sheet.params["slim.carbon.pue"] = f"{session.pue:g}"
        else:
            sheet.absent("emissions/gco2e_per_1k_samples", NO_INTENSITY)
        if point is not points[0] and taken.saving is not None:
            _saving(found, taken, sheet)
            sheet.tags["slim.energy.claim"] = found.claim(arm.name)
            if taken.disagrees:
                sheet.tags["slim.energy.disagrees"] = "energy and CPU time differ by more than 15 %"


def _saving(found: EnergyComparison, taken: ArmEnergy, sheet: _Sheet) -> None:
    """Who takes less. Assumed power is no ground for a share of energy: then CPU time is what is known."""
    if found.grade != "D":
        assert taken.saving is not None
        sheet.interval("energy/saving", taken.saving)
        sheet.tags["slim.energy.verdict"] = taken.verdict
        return
    sheet.absent("energy/saving", "the energy is estimated from an assumed power (grade D); see energy/cpu_time_saving")
    if taken.cpu_time_saving is not None:
        sheet.interval("energy/cpu_time_saving", taken.cpu_time_saving)
    sheet.tags["slim.energy.verdict"] = f"{taken.verdict} (estimated)"


def _energy_params(found: EnergyComparison) -> dict[str, str]:
    origin = found.provenance
    return {
        "slim.energy.cpu": origin.cpu,
        "slim.energy.gpu": origin.gpu or "none",
        "slim.energy.ram": origin.ram,
        "slim.energy.mode": origin.tracking_mode,
        "slim.energy.detail": origin.detail,
        "slim.energy.windows": str(found.rounds),
        "slim.energy.window_s": f"{found.seconds_per_window:g}",
    }


def _fresh_processes(points: Sequence[ExportedModel], sheets: Sequence[_Sheet], session: Session) -> None:
    """Cold start and peak memory, each point in processes of its own, the points in turns."""
    starts = min(session.fresh_starts, 2) if session.quick else session.fresh_starts
    if starts == 0:
        for sheet in sheets:
            sheet.absent("load/cold_start_s", "fresh processes were not asked for")
            sheet.absent("memory/peak_mib", "fresh processes were not asked for")
        return
    from .fresh_process import fresh_starts

    logger.info("Cold start and memory: %d fresh processes a point", starts)
    inputs = session.data.test.inputs[: min(session.batch_size, session.task.check_rows)]
    try:
        found = fresh_starts([point.directory for point in points], inputs, starts, threads=session.threads)
    except MeasurementError as error:  # one process that died is no reason to lose the rest
        logger.warning("Cold start and memory were not measured: %s", error)
        for sheet in sheets:
            sheet.absent("load/cold_start_s", str(error))
            sheet.absent("memory/peak_mib", str(error))
        return
    for sheet, one in zip(sheets, found, strict=True):
        sheet.interval("load/cold_start_s", one.cold_start_s)
        sheet.interval("memory/peak_mib", one.peak_mib)
        sheet.samples["load/cold_start_s"] = list(one.cold_starts_s)


def _sizes(points: Sequence[ExportedModel], disks_mib: Sequence[float], sheets: Sequence[_Sheet]) -> None:
    for point, sheet, disk in zip(points, sheets, disks_mib, strict=True):
        sheet.metrics["size/disk_mib"] = disk
        if point.parameters:
            sheet.metrics["size/parameters_m"] = point.parameters / 1e6
            sheet.metrics["size/nonzero_parameters_m"] = point.nonzero_parameters / 1e6
        else:
            sheet.absent("size/parameters_m", "a model that was made elsewhere doesn't say")
        sheet.metrics["size/compression"] = disks_mib[0] / disk


def _costs(points: Sequence[ExportedModel], sheets: Sequence[_Sheet], session: Session) -> None:
    """What serving costs where a price is given, what the steps took, and when that has repaid itself."""
    for point, sheet in zip(points, sheets, strict=True):
        _price(sheet, session)
        spent = [record.cost for record in point.lineage if record.cost is not None]
        if spent:
            _optimization(spent, sheet, session)
            _break_even(sheet, sheets[0], session)
        elif session.prepared is not None:
            _optimization([session.prepared], sheet, session)
        _per_token(sheet)


def _per_token(sheet: _Sheet) -> None:
    """Energy, emissions, price and break-even by tokens written; a request's prompt is shared out among them."""
    written = int(sheet.params.get("slim.measure.tokens.written_per_call", 0))
    for key, per_token in _PER_TOKEN.items() if written else ():
        for end in ("", "_lo", "_hi"):
            if (value := sheet.metrics.get(f"{key}{end}")) is not None:
                sheet.metrics[f"{per_token}{end}"] = value * written if "break_even" in key else value / written


def _price(sheet: _Sheet, session: Session) -> None:
    from .cost import usd_per_1m_samples

    key = "cost/usd_per_1m_samples"
    if session.price_per_hour is None:
        sheet.absent(key, "no price_per_hour was given")
        return
    for end in ("", "_lo", "_hi"):
        other = {"": "", "_lo": "_hi", "_hi": "_lo"}[end]  # the highest throughput is the lowest price
        rate = sheet.metrics.get(f"throughput/samples_per_s{other}")
        if rate is not None:
            sheet.metrics[f"{key}{end}"] = usd_per_1m_samples(
                session.price_per_hour, rate, utilisation=session.utilisation
            )
    sheet.params["slim.cost.price_per_hour"] = f"{session.price_per_hour:g}"
    sheet.params["slim.cost.utilisation"] = f"{session.utilisation:g}"


def _optimization(spent: Sequence[OptimizationCost], sheet: _Sheet, session: Session) -> None:
    """What the steps took; for the baseline, what making it from the given model took."""
    duration_s = sum(cost.duration_s for cost in spent)
    sheet.metrics["optimize/duration_s"] = duration_s
    if tokens := sum(cost.teacher_tokens for cost in spent):
        sheet.metrics["optimize/teacher_tokens"] = tokens
        sheet.metrics["optimize/teacher_usd"] = sum(cost.usd for cost in spent)
    if session.price_per_hour is not None:
        paid = sum(cost.usd for cost in spent)
        sheet.metrics["optimize/cost_usd"] = duration_s / 3600 * session.price_per_hour + paid
    else:
        sheet.absent("optimize/cost_usd", "no price_per_hour was given")
    energies = [cost.energy_kwh for cost in spent if cost.energy_kwh is not None]
    if len(energies) < len(spent):
        for missing in ("optimize/energy_kwh", "optimize/emissions_kgco2e"):
            reasons = [cost.no_energy for cost in spent if cost.no_energy]
            sheet.absent(missing, reasons[0] if reasons else "the energy of a step was not measured")
        return
    sheet.metrics["optimize/energy_kwh"] = sum(energies)
    if session.intensity is not None:
        kg = emissions(sum(energies), session.intensity, pue=session.pue)
        sheet.metrics["optimize/emissions_kgco2e"] = kg
    else:
        sheet.absent("optimize/emissions_kgco2e", NO_INTENSITY)


def _break_even(sheet: _Sheet, baseline: _Sheet, session: Session) -> None:
    from .cost import energy_break_even

    key, joules = "optimize/break_even_samples", "energy/joules_per_sample"
    energy_kwh = sheet.metrics.get("optimize/energy_kwh")
    if energy_kwh is None or joules not in sheet.samples or joules not in baseline.samples:
        sheet.absent(key, "the energy of a step or of serving was not measured")
        return
    found = energy_break_even(energy_kwh, baseline.samples[joules], sheet.samples[joules])
    if found.samples is None:
        sheet.absent(key, found.reason)
        return
    sheet.interval(key, found.samples)
    if session.requests_per_day is not None:
        days = found.days(session.requests_per_day)
        assert days is not None
        sheet.interval("optimize/break_even_days", days)
