"""Measures all points of a recipe in one session and gives one `Report` each.

The order is: quality of every point on the test rows; then, with the machine's one measure slot held and after
waiting for quiet, everything that takes time: the arms take turns in one process with the same inputs and the
same threads (timing, energy), then each starts a few times in processes of its own (cold start, memory).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

import numpy as np
import psutil

from ..artifact import ExportedModel, OptimizationCost
from ..errors import MeasurementError
from ..interfaces import Predictor
from .allocator import freed_memory_kept
from .arms import Scenario, is_generator, make_scenarios
from .carbon import NO_INTENSITY, emissions, gco2e_per_1k_samples
from .energy_comparison import ArmEnergy, EnergyComparison, compare_energy
from .host import Readiness, measure_slot, quiet_wait, watch
from .quality_report import headline, quality_report
from .report import Report
from .sheet import QUICK, Session, Sheet
from .size import folder_size
from .stats import Interval
from .timing import FEWEST_ROUNDS, Timings, compare, interleave, latency
from .writing import benchmark_quality, per_token, time_writing, writing_quality

__all__ = ["PROTOCOL", "measure_points"]

logger = logging.getLogger(__name__)
PROTOCOL = "3"
"""Version of the protocol; figures of different versions aren't ranked together."""
COPIES, QUICK_COPIES = 8, 4
"""How often every point is loaded for timing. One load differs from the next by 1 to 2 % for as long as it lasts."""


def measure_points(points: Sequence[ExportedModel], session: Session) -> list[Report]:
    """One report a point, in order; the first point is the baseline of the others.

    Raises:
        MeasurementError: A figure could not be obtained that can't be left out.
    """
    predictors = [session.load(point) for point in points]
    sheets = [Sheet() for _ in points]
    for predictor, sheet in zip(predictors, sheets, strict=True):
        settings = getattr(predictor, "settings", {})
        sheet.params.update({f"slim.engine.{name}": str(value).lower() for name, value in settings.items()})
    _quality(points, predictors, sheets, session)
    if is_generator(predictors[0]):
        writing_quality(points, predictors, sheets, session)
        if session.lm_eval:
            benchmark_quality(predictors, sheets, session)
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
            time_writing(points, predictors, sheets, session)
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
    points: Sequence[ExportedModel], predictors: Sequence[Predictor], sheets: Sequence[Sheet], session: Session
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


def _conditions(sheets: Sequence[Sheet], session: Session, ready: Readiness, waited: float) -> None:
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
    sheets: Sequence[Sheet],
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


def _control_failure(timings: Timings, scenario: Scenario) -> str:
    """Why no ratio of this run may be shown: the baseline differs from its own copy; empty when it doesn't."""
    if len(scenario.arms) < 2 or timings.rounds < FEWEST_ROUNDS:
        return ""
    speed = compare(timings, scenario.arms[1].name)
    return speed.reason if speed.noisy else ""


def _rate(scenario: Scenario, timings: Timings, arm: str, sheet: Sheet, prefix: str) -> None:
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


def _speedup(scenario: Scenario, timings: Timings, arm: str, sheet: Sheet, suffix: str, spoilt: str) -> None:
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


def _energy(scenario: Scenario, points: Sequence[ExportedModel], sheets: Sequence[Sheet], session: Session) -> None:
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


def _saving(found: EnergyComparison, taken: ArmEnergy, sheet: Sheet) -> None:
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


def _fresh_processes(points: Sequence[ExportedModel], sheets: Sequence[Sheet], session: Session) -> None:
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


def _sizes(points: Sequence[ExportedModel], disks_mib: Sequence[float], sheets: Sequence[Sheet]) -> None:
    for point, sheet, disk in zip(points, sheets, disks_mib, strict=True):
        sheet.metrics["size/disk_mib"] = disk
        if point.parameters:
            sheet.metrics["size/parameters_m"] = point.parameters / 1e6
            sheet.metrics["size/nonzero_parameters_m"] = point.nonzero_parameters / 1e6
        else:
            sheet.absent("size/parameters_m", "a model that was made elsewhere doesn't say")
        sheet.metrics["size/compression"] = disks_mib[0] / disk


def _costs(points: Sequence[ExportedModel], sheets: Sequence[Sheet], session: Session) -> None:
    """What serving costs where a price is given, what the steps took, and when that has repaid itself."""
    for point, sheet in zip(points, sheets, strict=True):
        _price(sheet, session)
        spent = [record.cost for record in point.lineage if record.cost is not None]
        if spent:
            _optimization(spent, sheet, session)
            _break_even(sheet, sheets[0], session)
        elif session.prepared is not None:
            _optimization([session.prepared], sheet, session)
        per_token(sheet)


def _price(sheet: Sheet, session: Session) -> None:
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


def _optimization(spent: Sequence[OptimizationCost], sheet: Sheet, session: Session) -> None:
    """What the steps took; for the baseline, what making it from the given model took."""
    duration_s = sum(cost.duration_s for cost in spent)
    sheet.metrics["optimize/duration_s"] = duration_s
    paid = sum(cost.usd for cost in spent)
    if tokens := sum(cost.teacher_tokens for cost in spent):
        sheet.metrics["optimize/teacher_tokens"] = tokens
        sheet.metrics["optimize/teacher_usd"] = paid
    if session.price_per_hour is not None:
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


def _break_even(sheet: Sheet, baseline: Sheet, session: Session) -> None:
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
