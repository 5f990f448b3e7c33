"""What is measured of models that write beside what is of all: divergence, misspelt prompts, benchmarks, tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import ExportedModel
from ..errors import DataError, MeasurementError
from ..interfaces import Predictor
from .arms import arm_names, representative_rows
from .harness import run_task, task_figures
from .host import watch
from .language import ROWS, divergences, misspelt_prompt
from .sheet import QUICK, Session, Sheet
from .stats import Interval, quantile_interval, ratio_interval
from .token_timing import at_once, time_together, time_tokens, timed

__all__ = ["benchmark_quality", "per_token", "time_writing", "writing_quality"]

logger = logging.getLogger(__name__)
_PLACES = 64
"""Places of a row at which whole distributions are compared, at most."""
_PER_TOKEN = {
    "energy/wh_per_1k_samples": "energy/wh_per_1k_tokens",
    "emissions/gco2e_per_1k_samples": "emissions/gco2e_per_1k_tokens",
    "cost/usd_per_1m_samples": "cost/usd_per_1m_tokens",
    "optimize/break_even_samples": "optimize/break_even_tokens",
}


def writing_quality(
    points: Sequence[ExportedModel], predictors: Sequence[Any], sheets: Sequence[Sheet], session: Session
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


def benchmark_quality(predictors: Sequence[Any], sheets: Sequence[Sheet], session: Session) -> None:
    """The tasks of lm-eval that were asked for, of every point, with changes against the original."""
    for task in session.lm_eval:
        original: Mapping[str, Any] | None = None
        logger.info("lm-eval: %s, %d points", task, len(sheets))
        try:
            for predictor, sheet in zip(predictors, sheets, strict=True):
                found = run_task(predictor, task, rows=session.lm_eval_rows, seed=session.seed)
                values, changes = task_figures(found, original)
                sheet.metrics.update(values)
                for key, change in changes.items():
                    sheet.interval(key, change)
                sheet.params["slim.measure.lm_eval_rows"] = str(session.lm_eval_rows or "all")
                original = original or found
        except DataError as error:  # the rest is worth measuring without
            logger.warning("%s", error)
            for sheet in sheets:
                sheet.absent(f"quality/lm_eval/{Path(task).stem}", str(error))


def time_writing(
    points: Sequence[ExportedModel], predictors: Sequence[Predictor], sheets: Sequence[Sheet], session: Session
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
    named: dict[str, Any] = dict(zip(names, predictors, strict=True))
    if (count := session.concurrency) > 1:
        logger.info("Timing %d requests at a time: %d points in turns", count, len(names))
        calls = {name: at_once(partial(one.forward, one.encode(median)), count) for name, one in named.items()}
        _together(calls, sheets, session, count=count, tokens=timings.tokens, kind="concurrent")
        for sheet in sheets:
            sheet.params["slim.measure.concurrency"] = str(count)
    if (count := session.prompts) > 1:
        logger.info("Timing batches of %d prompts: %d points in turns", count, len(names))
        calls = {
            name: timed(partial(one.forward_together, one.encode([*median] * count))) for name, one in named.items()
        }
        _together(calls, sheets, session, count=count, tokens=timings.tokens, kind="batch")
        for sheet in sheets:
            sheet.params["slim.measure.prompts"] = str(count)


def _together(
    calls: Mapping[str, Callable[[], float]],
    sheets: Sequence[Sheet],
    session: Session,
    *,
    count: int,
    tokens: int,
    kind: str,
) -> None:
    """Tokens a second of several answers at a time: of requests as a server gets them, or of prompts in a batch."""
    names = list(calls)
    budget = session.timing_s * (QUICK if session.quick else 1.0) * len(names)
    seconds = time_together(calls, budget_s=budget, seed=session.seed)
    for name, sheet in zip(names, sheets, strict=True):
        took = quantile_interval(seconds[name][:, None], 0.5)
        written = count * tokens
        rate = Interval(written / took.value, written / took.hi, written / took.lo, took.n, took.confidence)
        sheet.interval(f"throughput/{kind}_tokens_per_s", rate)
        sheet.samples[f"tokens/{kind}_s"] = seconds[name].tolist()
        if name != names[0]:
            sheet.interval(f"speedup/{kind}", ratio_interval(seconds[names[0]], seconds[name]))


def per_token(sheet: Sheet) -> None:
    """Energy, emissions, price and break-even by tokens written; a request's prompt is shared out among them."""
    written = int(sheet.params.get("slim.measure.tokens.written_per_call", 0))
    for key, per_token in _PER_TOKEN.items() if written else ():
        for end in ("", "_lo", "_hi"):
            if (value := sheet.metrics.get(f"{key}{end}")) is not None:
                sheet.metrics[f"{per_token}{end}"] = value * written if "break_even" in key else value / written
