"""``sweep``: tries the variants of a space cheaply on validation rows, then measures those worth keeping as points.

Three parts. *Search*: each variant is made and screened (quality on validation rows, a short timing against the
original, size); chains with the same beginning do it once. *Choice*: the front of what was screened, the surest first.
*Certification*: the finalists become points like any other, measured whole, once, on the test rows that nothing was
chosen by. A variant that fails is a line in the table; a sweep that is killed goes on where it was.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import ExportedModel, OptimizedModel
from .cache import StepCache, code_digest, content_key
from .cached_steps import model_digest
from .catalog import load_backend
from .dominance import Candidate, Figure, Placed, place
from .errors import MeasurementError, SlimError
from .inputs import Inputs
from .journal import Journal
from .measure_apart import measure_apart
from .measurement.report import Report
from .pipeline import Flow, Outcome, run_flow
from .samplers import find_optuna, make_sampler
from .schema import HEADLINE, Meaning, meaning, objective
from .search import SCREENED, Sweep
from .space import Variant

if TYPE_CHECKING:
    from .ledger import Line

__all__ = ["sweep"]

logger = logging.getLogger(__name__)
_Spent = tuple[float, "float | None"]
"""Seconds and kWh of one step; None where its energy was not measured."""


def sweep(source: Sweep | str | Path | Mapping[str, Any] = "sweep.small", **overrides: Any) -> Outcome:
    """Searches a space and measures what is worth keeping.

    Args:
        source: A `Sweep`, the path of a YAML file, ``sweep.small``, ``sweep.thorough``, or a mapping.
        **overrides: Values by key; dotted keys through ``**{"search.finalists": 3}``.

    Returns:
        The finalists as points, the original first; ``notes`` say what the search took and wasted.

    Raises:
        ConfigError: The sweep is wrong; nothing was started.
        TrackingError: MLflow can't be reached; nothing was started.
        SlimError: The original could not be made or measured. A variant that fails raises nothing.
    """
    chosen = source if isinstance(source, Sweep) else Sweep.load(source, overrides)
    if chosen.search.sampler in ("tpe", "nsga2"):
        find_optuna()
    return run_flow(
        chosen.recipe,
        lambda *parts: _SweepFlow(chosen, *parts),
        resolved=chosen.resolved(),
        tags={"slim.kind": "sweep"},
    )


@dataclass
class _Trial:
    """One variant that was tried.

    Attributes:
        number: From 0.
        variant: What was tried.
        figures: What screening gave, by metric; empty when it failed.
        failed: Why it failed; empty when it didn't.
        exported: Its folder; None when it was screened by an earlier process or failed.
        seconds: How long it took, screening included.
    """

    number: int
    variant: Variant
    figures: dict[str, Figure] = field(default_factory=dict)
    failed: str = ""
    exported: ExportedModel | None = None
    seconds: float = 0.0


class _SweepFlow(Flow):
    """A recipe's flow whose steps are those of many variants."""

    def __init__(self, sweep: Sweep, *parts: Any) -> None:
        super().__init__(*parts)
        self.sweep = sweep
        self.trials: list[_Trial] = []
        self.made: dict[str, OptimizedModel] = {}  # by the chain's beginning
        self.spent: dict[str, _Spent] = {}  # what was done here, likewise
        self.meanings: tuple[Meaning, ...] = ()

    @property
    def only_measures(self) -> bool:
        """Never: the steps are those of the variants."""
        return False

    def optimize(self, inputs: Inputs) -> None:
        """The original as a point; the search; then the finalists as points."""
        original, _ = self.baseline(inputs)
        self.original = original
        self.add(original, "torch", inputs)
        self._search(inputs)
        finalists = self._finalists()
        self.say(_account(self.trials, finalists, self.spent))
        for trial in finalists:
            try:
                exported = trial.exported or self._make(trial.variant, inputs)
            except Exception as error:  # known from before, and this time it fails: the others are worth having
                self.say(f"Trial {trial.number + 1}, {trial.variant.title}, could not be made again: {error}")
                continue
            self.log(exported, inputs)
            self.logged.runs[-1].set_tags({"slim.trial": str(trial.number + 1), "slim.choices": trial.variant.chosen})
        for trial in self.trials:
            if trial.exported is not None and trial not in finalists:
                shutil.rmtree(trial.exported.directory, ignore_errors=True)

    def screen(self, exported: ExportedModel, inputs: Inputs) -> Report:
        """A short measurement of one variant against the original, on validation rows."""
        # A quick session takes a quarter of the seconds.
        cheap = {
            "quick": True,
            "timing_s": 4 * self.sweep.search.screen_s,
            "energy_s": 0.0,
            "fresh_starts": 0,
            "batch_size": 8,
        }
        pair, rows = [self.logged.exported[0], exported], inputs.data.validation
        with self.stages.time("screen"):
            return measure_apart(pair, self.recipe, inputs, self.threads, self.helper, rows=rows, changes=cheap)[1]

    def measure(self, inputs: Inputs) -> list[Report]:
        """Certifies all finalists together, so that they can be compared; without those that can't be measured."""
        try:
            return super().measure(inputs)
        except MeasurementError as error:
            together = error
        failed: dict[int, str] = {}
        for number, exported in enumerate(self.logged.exported[1:], start=1):
            try:
                self.screen(exported, inputs)
            except MeasurementError as error:
                failed[number] = str(error)
                self.say(f"{exported.variant} can't be measured any more and has no figures: {error}")
        rest = [exported for number, exported in enumerate(self.logged.exported) if number not in failed]
        if not failed or len(rest) < 2:  # then it is none of them by itself
            raise together
        reports = iter(self.measure_together(rest, inputs))
        return [
            Report(exported.variant, {}, {"slim.measure.failed": failed[number]}) if number in failed else next(reports)
            for number, exported in enumerate(self.logged.exported)
        ]

    def _search(self, inputs: Inputs) -> None:
        begun = time.monotonic()
        journal = Journal(self._journal_path(inputs))
        sampler = make_sampler(self.sweep.search, self.sweep.space, self.recipe.seed)
        known = journal.read()
        if known:
            self.say(f"{len(known)} variants of this sweep were screened before and are not tried again.")
        for number, variant in enumerate(sampler.variants()):
            trial = _Trial(number, variant)
            entry = known.get(variant.key)
            if entry is not None:
                trial.figures = {metric: Figure(*ends) for metric, ends in entry.items()}
            else:
                why = self._over_budget(begun)
                if why:
                    self.say(f"{why}; {len(self.trials)} variants were tried.")
                    break
                self._try(trial, inputs)
                if not trial.failed:
                    journal.add(variant.key, trial.figures)
            self.trials.append(trial)
            if not self.meanings and trial.figures:
                self.meanings = self._meanings(trial)
            sampler.tell(self._values(trial))
            self._progress(trial, known=entry is not None)

    def _try(self, trial: _Trial, inputs: Inputs) -> None:
        start = time.monotonic()
        try:
            trial.exported = self._make(trial.variant, inputs)
            report = self.screen(trial.exported, inputs)
            trial.figures = _screened(report)
            trial.failed = self._lacking(report)
        except Exception as error:  # one variant that can't be done is a finding
            trial.failed = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            text = traceback.format_exc()
            level = logging.WARNING if isinstance(error, SlimError) else logging.ERROR
            logger.log(level, "Trial %d, %s, failed: %s", trial.number + 1, trial.variant.title, trial.failed)
            self.recipe_run.log_text(f"trials/{trial.number}.txt", text)
        trial.seconds = time.monotonic() - start

    def _lacking(self, report: Report) -> str:
        """Which objective a screening could not give, and why; empty when it gave all."""
        headline = report.tags.get("slim.quality.metric", "accuracy")
        wanted = [meaning(name, headline=headline) for name in self.sweep.search.objectives]
        missing = [one for one in wanted if one.metric not in report.metrics]
        if not missing:
            return ""
        why = report.tags.get(f"slim.absent.{missing[0].metric}", "the measurement doesn't give it")
        return f"no {missing[0].title.lower()}: {why}"

    def _make(self, variant: Variant, inputs: Inputs) -> ExportedModel:
        """The variant in a folder; the beginning of its chain from memory where an earlier one made it."""
        assert self.original is not None
        current, chain = self.original, ""
        steps = self.sweep.recipe_of(variant).steps
        on = variant.backend if any(getattr(step, "runs_on", ()) for step in steps) else ""
        for given, step in zip(variant.steps, steps, strict=True):
            chain += _link(given, on)
            if chain not in self.made:
                outcome = self.apply(step, current, inputs, backends=(variant.backend,))
                cost = outcome.lineage[-1].cost
                if cost is not None and not cost.reused:
                    self.spent[chain] = (cost.duration_s, cost.energy_kwh)
                if len(self.made) >= 4:  # models take memory; the grid's order keeps what is needed next
                    self.made.pop(next(iter(self.made)))
                self.made[chain] = outcome
            current = self.made[chain]
        backend = load_backend(variant.backend)
        sample = inputs.data.validation.inputs[: inputs.task.check_rows]
        name = f"trial-{len(list(self.folder.glob('trial-*')))}"
        with self.stages.time("export"):
            return backend.export(current, self.folder / name, sample)

    def _over_budget(self, begun: float) -> str:
        """Why no further variant may be begun; empty when one may."""
        search = self.sweep.search
        minutes = (time.monotonic() - begun) / 60
        if search.budget_minutes is not None and minutes >= search.budget_minutes:
            return f"The budget of {search.budget_minutes:g} minutes ended after {minutes:.1f}"
        kwh = sum(energy or 0.0 for _, energy in self.spent.values())
        if search.budget_kwh is not None and kwh >= search.budget_kwh:
            return f"The budget of {search.budget_kwh:g} kWh ended at {kwh:.4g}"
        return ""

    def _journal_path(self, inputs: Inputs) -> Path | None:
        """Where screened variants are kept for a sweep that goes on; None with the step cache off."""
        cache = StepCache.from_environment()
        if cache is None:
            return None
        assert self.original is not None
        content = self.sweep.resolved()
        key = content_key(
            {
                "space": content["space"],
                "backends": list(self.sweep.space.backends),
                "measure": content["measure"],
                "seed": self.recipe.seed,
                "threads": self.threads,
                "original": model_digest(self.original),
                "rows": [inputs.data.train.digest, inputs.data.validation.digest],
                "code": code_digest(),
            }
        )
        folder = cache.root / "sweeps"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{key}.jsonl"

    def _meanings(self, trial: _Trial) -> tuple[Meaning, ...]:
        quality = next((metric for metric in trial.figures if metric.startswith("quality/")), "quality/accuracy")
        return tuple(meaning(name, headline=quality.removeprefix("quality/")) for name in self.sweep.search.objectives)

    def _values(self, trial: _Trial) -> list[float] | None:
        """What a trial came to, in the objectives' order; None when it lacks one of them."""
        if not self.meanings or any(m.metric not in trial.figures for m in self.meanings):
            return None
        return [trial.figures[m.metric].value for m in self.meanings]

    def _placed(self) -> list[tuple[_Trial, Placed]]:
        """Trials that have every figure, with their places."""
        whole = [trial for trial in self.trials if self._values(trial) is not None]
        found = place([Candidate(str(t.number), t.figures) for t in whole], [objective(m) for m in self.meanings])
        return list(zip(whole, found, strict=True))

    def _finalists(self) -> list[_Trial]:
        """The front of what was screened, the likeliest first, no more than asked for."""
        front = [(trial, where) for trial, where in self._placed() if where.on_front]
        front.sort(key=lambda pair: (-pair[1].p_front, pair[0].number))
        chosen = [trial for trial, _ in front[: self.sweep.search.finalists]]
        if not chosen:
            failed = [trial.failed for trial in self.trials if trial.failed]
            first = f", the first with {failed[0]!r}" if failed else ""
            self.say(
                f"No variant could be screened; {len(failed)} of {len(self.trials)} failed{first}. The original is "
                "measured alone."
            )
        return sorted(chosen, key=lambda trial: trial.number)

    def _progress(self, trial: _Trial, *, known: bool) -> None:
        if trial.failed:
            return
        figures = ", ".join(
            f"{m.title.lower()} {trial.figures[m.metric].value:.4g} {m.unit}".rstrip()
            for m in self.meanings
            if m.metric in trial.figures
        )
        how = "known from before" if known else f"{trial.seconds:.0f} s"
        logger.info("Trial %d, %s: %s (%s)", trial.number + 1, trial.variant.title, figures, how)
        front = [str(t.number + 1) for t, where in self._placed() if where.on_front]
        logger.info("  front so far: trials %s", ", ".join(front) or "none")

    def ledger(self, reports: Sequence[Report]) -> list[Line]:
        """None: finalists are rivals and not the steps of one chain."""
        del reports
        return []

    def extra_tables(self) -> dict[str, list[dict[str, Any]]]:
        """All trials, whatever became of them."""
        places = {trial.number: where for trial, where in self._placed()}
        rows = []
        for trial in self.trials:
            where = places.get(trial.number)
            row: dict[str, Any] = {
                "trial": trial.number + 1,
                "variant": trial.variant.title,
                "front": where.front if where else "failed" if trial.failed else "not placed",
                "p_front": where.p_front if where else None,
            }
            for found in self.meanings:
                figure = trial.figures.get(found.metric)
                row[found.metric] = figure.value if figure else None
            rows.append(row | {"seconds": round(trial.seconds, 2), "failed": trial.failed})
        return {"trials": rows} if rows else {}

    def extra_metrics(self) -> dict[str, float]:
        """What the search took and how much of it led nowhere."""
        front = {trial.number for trial, where in self._placed() if where.on_front}
        wasted = _wasted(self.spent, [t for t in self.trials if t.number in front])
        found = {
            "sweep/trials": float(len(self.trials)),
            "sweep/failed": float(sum(bool(trial.failed) for trial in self.trials)),
            "sweep/steps_s": sum(seconds for seconds, _ in self.spent.values()),
            "sweep/waste_s": sum(seconds for seconds, _ in wasted),
        }
        if all(energy is not None for _, energy in self.spent.values()):
            found["sweep/steps_kwh"] = sum(energy or 0.0 for _, energy in self.spent.values())
            found["sweep/waste_kwh"] = sum(energy or 0.0 for _, energy in wasted)
        return found


def _link(given: Mapping[str, Any], on: str) -> str:
    """One step in the name of a chain's beginning; ``on`` is the runtime where the chain depends on it."""
    return json.dumps([dict(given), on], sort_keys=True, default=str)


def _wasted(spent: Mapping[str, _Spent], kept: Sequence[_Trial]) -> list[_Spent]:
    """What the steps took that none of the kept trials stands on."""
    used = _beginnings(kept)
    return [cost for chain, cost in spent.items() if chain not in used]


def _beginnings(trials: Sequence[_Trial]) -> set[str]:
    """Every beginning of the trials' chains, named as `_SweepFlow.spent` is."""
    found = set()
    for trial in trials:
        for on in ("", trial.variant.backend):
            chain = ""
            for given in trial.variant.steps:
                chain += _link(given, on)
                found.add(chain)
    return found


def _account(trials: Sequence[_Trial], finalists: Sequence[_Trial], spent: Mapping[str, _Spent]) -> str:
    """One sentence on the search."""
    wasted = _wasted(spent, finalists)
    all_s = sum(seconds for seconds, _ in spent.values())
    lost_s = sum(seconds for seconds, _ in wasted)
    energies = [energy for _, energy in spent.values()]
    words = f"{len(trials)} variants screened, {len(finalists)} to be measured whole. Steps took {all_s:.0f} s"
    if energies and all(energy is not None for energy in energies):
        words += f" and {1000 * sum(e or 0.0 for e in energies):.3g} Wh"
    if all_s:
        lost_kwh = sum(energy or 0.0 for _, energy in wasted)
        words += f"; {lost_s / all_s:.0%} of the time ({1000 * lost_kwh:.3g} Wh) led to none of them"
    return words + "."


def _screened(report: Report) -> dict[str, Figure]:
    """Figures of a screening with their intervals; quality by the paired difference."""
    headline = f"quality/{report.tags.get('slim.quality.metric', 'accuracy')}"
    found = {}
    for name in SCREENED:
        metric = headline if name == HEADLINE else meaning(name).metric
        value = report.metrics.get(metric)
        if value is None:
            continue
        low, high = (report.metrics.get(f"{metric}_{end}", value) for end in ("lo", "hi"))
        if metric == headline:
            delta = report.metrics.get(f"{metric}_delta", 0.0)
            ends = [report.metrics.get(f"{metric}_delta_{end}", delta) for end in ("lo", "hi")]
            low, high = value - delta + ends[0], value - delta + ends[1]
        found[metric] = Figure(value, min(low, value), max(high, value))
    return found
