"""``sweep``: tries the variants of a space cheaply on validation rows, then measures those worth keeping as points.

Three parts. *Search*: each variant is made and screened (quality on validation rows, a short timing against the
original, size); chains with the same beginning do it once. *Choice*: the front of what was screened, the surest first.
*Certification*: the finalists become points like any other, measured whole, once, on the test rows that nothing was
chosen by. A variant that fails is a line in the table; a sweep that is killed goes on where it was.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator

from .artifact import ExportedModel, OptimizedModel
from .cache import StepCache, code_digest, content_key
from .cached_steps import model_digest
from .catalog import load_backend
from .config import Options, Recipe, describe_faults, find_sweep, split_words
from .dominance import Candidate, Figure, Placed, place
from .errors import ConfigError, MissingDependency, SlimError
from .inputs import Inputs
from .measure_apart import measure_apart
from .pipeline import SAMPLE_ROWS, Flow, Outcome, run_flow
from .safety import safe_yaml
from .schema import HEADLINE, Meaning, check_metrics, meaning, objective
from .space import Range, Space, Variant, plain

if TYPE_CHECKING:
    from .ledger import Line
    from .measurement.report import Report

__all__ = ["Search", "Sweep", "sweep"]

logger = logging.getLogger(__name__)
SCREENED = ("quality", "latency", "throughput", "speedup", "size")
"""Figures that screening gives."""
SCREEN_S = 1.0
"""Seconds of timing per point and scenario when a variant is screened."""


_Spent = tuple[float, "float | None"]
"""Seconds and kWh of one step; None where its energy was not measured."""


class Search(Options):
    """How the space is searched, and when that ends."""

    sampler: Literal["grid", "random", "tpe", "nsga2"] = Field("grid", description="How variants are picked.")
    max_trials: int | None = Field(
        None, ge=1, le=10_000, description="Most variants to try; default: grid all, else 40."
    )
    budget_minutes: float | None = Field(
        None, gt=0, description="No new variant is begun after this long; certifying the finalists comes on top."
    )
    budget_kwh: float | None = Field(
        None, gt=0, description="No new variant is begun once steps took this much energy."
    )
    objectives: tuple[str, ...] = Field(("quality", "latency", "size"), description="Figures to choose finalists by.")
    finalists: int = Field(5, ge=1, le=50, description="Most variants to measure whole in the end.")

    _words = field_validator("objectives", mode="before")(split_words)

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_metrics(value)
        known = {meaning(name).metric for name in SCREENED}
        other = [name for name in value if meaning(name).metric not in known and not name.startswith("quality/")]
        if other:
            raise ValueError(
                f"Screening gives {', '.join(SCREENED)}, not {', '.join(other)}. Compare by them afterwards."
            )
        if len(value) > 3:
            raise ValueError("More than three objectives leave nearly every variant on the front. Name three at most.")
        return value


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        recipe: What all variants share: model, data, columns, measuring; without steps.
        search: How to search.
        space: What to search.
    """

    recipe: Recipe
    search: Search
    space: Space

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Sweep:
        """From a YAML file, the name of a shipped sweep (``sweep.small``) or a mapping, with dotted overrides.

        ``search.<option>``, and ``max_trials``, ``budget_minutes`` and ``budget_kwh`` by themselves, are of the search;
        everything else is as in a recipe.

        Raises:
            ConfigError: Something is wrong, or a variant of the space can't be done; every fault is named.
            InputNotFound: There is no such file.
        """
        if isinstance(source, Mapping):
            content = dict(source)
        else:
            path = find_sweep(source)
            loaded = safe_yaml(path.read_text(encoding="utf-8-sig"))
            if not isinstance(loaded, dict):
                raise ConfigError(f"{path} is no sweep. Write 'space: ...' and so on, one a line.")
            content = {"name": path.stem if path.parent.name != "sweeps" else f"sweep.{path.stem}", **loaded}
        faults: list[str] = []
        short = {"max_trials", "budget_minutes", "budget_kwh"}
        search, rest = dict(content.pop("search", None) or {}), {}
        for key, value in (overrides or {}).items():
            if key.startswith("search.") or key in short:
                if value != "":
                    search[key.removeprefix("search.")] = value
            else:
                rest[key] = value
        raw_space = content.pop("space", None)
        for key in ("steps", "against", "output"):
            if content.pop(key, None) or rest.get(key):
                faults.append(f"A sweep has no {key}. Write chains as space, and promote what it finds.")
        checked: Search | None = None
        try:
            checked = Search.read(search)
        except ConfigError as error:
            faults += [f"search.{fault}" for fault in error.faults]
        recipe: Recipe | None = None
        try:
            recipe = Recipe.load(content, rest)
        except ConfigError as error:
            faults += error.faults
        space: Space | None = None
        try:
            space = Space.read(raw_space, recipe.export.backends if recipe is not None else ("onnxruntime",))
        except ConfigError as error:
            faults += error.faults
        if space is not None and recipe is not None:
            faults += _space_faults(recipe, space)
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        assert checked is not None and recipe is not None and space is not None
        return cls(recipe, checked, space)

    def recipe_of(self, variant: Variant) -> Recipe:
        """The recipe that makes one variant."""
        content = {**self.recipe.resolved(), "steps": [dict(step) for step in variant.steps]}
        content["export"] = {"backends": [variant.backend], "baseline": False}
        return Recipe.load(content)

    def resolved(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            **self.recipe.resolved(),
            "search": self.search.model_dump(mode="json"),
            "space": plain(self.space.chains),
        }


def _space_faults(recipe: Recipe, space: Space) -> list[str]:
    """What is wrong with any choice of any chain; each choice is looked at once, by itself."""
    shared = Sweep(recipe, Search(), space)
    faults: list[str] = []
    bad: set[tuple[int, str]] = set()
    for variant in space.probes():
        try:
            shared.recipe_of(variant)
        except ConfigError as error:
            for fault in error.faults:
                if (variant.chain, fault) not in bad:
                    bad.add((variant.chain, fault))
                    faults.append(f"space[{variant.chain}] on {variant.backend}: {fault}")
        except (TypeError, ValidationError) as error:
            text = describe_faults(error, Recipe) if isinstance(error, ValidationError) else [str(error)]
            faults += [f"space[{variant.chain}]: {fault}" for fault in text]
    return faults


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
        _optuna()
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

    def optimize(self, inputs: Inputs) -> None:
        """The original as a point; the search; then the finalists as points."""
        original, _ = self.baseline(inputs)
        self.original = original
        self.add(original, "torch", inputs)
        baseline = self.points[0][0].exported
        # A quick session takes a quarter of the seconds.
        cheap = {"quick": True, "timing_s": 4 * SCREEN_S, "energy_s": 0.0, "fresh_starts": 0, "batch_size": 8}

        def screen(exported: ExportedModel) -> Report:
            pair, rows = [baseline, exported], inputs.data.validation
            return measure_apart(pair, self.recipe, inputs, self.threads, self.helper, rows=rows, changes=cheap)[1]

        self._search(inputs, screen)
        finalists = self._finalists()
        self.say(_account(self.trials, finalists, self.spent))
        for trial in finalists:
            try:
                exported = trial.exported or self._make(trial.variant, inputs)
            except Exception as error:  # known from before, and this time it fails: the others are worth having
                self.say(f"Trial {trial.number + 1}, {trial.variant.title}, could not be made again: {error}")
                continue
            self.log(exported, inputs)
            self.points[-1][1].set_tags({"slim.trial": str(trial.number + 1), "slim.choices": trial.variant.chosen})
        for trial in self.trials:
            if trial.exported is not None and trial not in finalists:
                shutil.rmtree(trial.exported.directory, ignore_errors=True)

    def _search(self, inputs: Inputs, screen: Callable[[ExportedModel], Report]) -> None:
        begun = time.monotonic()
        journal = _Journal(self._journal_path(inputs))
        sampler = _sampler(self.sweep, self.recipe.seed)
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
                self._try(trial, inputs, screen)
                if not trial.failed:
                    journal.add(variant.key, trial.figures)
            self.trials.append(trial)
            if not self.meanings and trial.figures:
                self.meanings = self._meanings(trial)
            sampler.tell(trial, self.meanings)
            self._progress(trial, known=entry is not None)

    def _try(self, trial: _Trial, inputs: Inputs, screen: Callable[[ExportedModel], Report]) -> None:
        start = time.monotonic()
        try:
            trial.exported = self._make(trial.variant, inputs)
            with self.stages.time("screen"):
                report = screen(trial.exported)
            trial.figures = _screened(report)
        except Exception as error:  # one variant that can't be done is a finding
            trial.failed = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            text = traceback.format_exc()
            level = logging.WARNING if isinstance(error, SlimError) else logging.ERROR
            logger.log(level, "Trial %d, %s, failed: %s", trial.number + 1, trial.variant.title, trial.failed)
            self.recipe_run.log_text(f"trials/{trial.number}.txt", text)
        trial.seconds = time.monotonic() - start

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
        sample = inputs.data.validation.inputs[:SAMPLE_ROWS]
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

    def _placed(self) -> list[tuple[_Trial, Placed]]:
        """Trials that have every figure, with their places."""
        if not self.meanings:
            return []
        whole = [t for t in self.trials if all(m.metric in t.figures for m in self.meanings)]
        found = place([Candidate(str(t.number), t.figures) for t in whole], [objective(m) for m in self.meanings])
        return list(zip(whole, found, strict=True))

    def _finalists(self) -> list[_Trial]:
        """The front of what was screened, the likeliest first, no more than asked for."""
        front = [(trial, where) for trial, where in self._placed() if where.front != "dominated"]
        front.sort(key=lambda pair: (-pair[1].p_front, pair[0].number))
        chosen = [trial for trial, _ in front[: self.sweep.search.finalists]]
        if not chosen:
            failed = sum(bool(trial.failed) for trial in self.trials)
            self.say(
                f"No variant could be screened; {failed} of {len(self.trials)} failed. The original is measured alone."
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
        front = [str(t.number + 1) for t, where in self._placed() if where.front != "dominated"]
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
        front = {trial.number for trial, where in self._placed() if where.front != "dominated"}
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


class _Journal:
    """Screened variants, one JSON line each, so that a killed sweep loses at most the one it was at."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self) -> dict[str, Mapping[str, Sequence[float]]]:
        """Figures by variant; a line cut off by a kill is passed over."""
        found: dict[str, Mapping[str, Sequence[float]]] = {}
        if self.path is None or not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                found[str(entry["variant"])] = {k: [float(x) for x in v] for k, v in entry["figures"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def add(self, variant: str, figures: Mapping[str, Figure]) -> None:
        """Appends one line and sees it on the disk."""
        if self.path is None:
            return
        values = {metric: [figure.value, *figure.ends] for metric, figure in figures.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # The new line goes first: the one before may have been cut off.
                file.write("\n" + json.dumps({"variant": variant, "figures": values}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning("The sweep could not be noted for another time: %s", error)


# --- Samplers -------------------------------------------------------------------------------------------------------


class _Listed:
    """Variants known beforehand."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self._variants = variants

    def variants(self) -> Iterator[Variant]:
        return iter(self._variants)

    def tell(self, trial: _Trial, meanings: Sequence[Meaning]) -> None:
        """Nothing to learn."""


class _Learning:
    """Variants from an Optuna sampler that sees what became of the ones before."""

    def __init__(self, space: Space, sampler: str, count: int, seed: int, objectives: Sequence[str]) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}
        directions = ["maximize" if meaning(name).higher_is_better else "minimize" for name in objectives]
        self._study = optuna.create_study(directions=directions, sampler=kinds[sampler](seed=seed))
        self._space, self._count = space, count
        self._asked: Any = None

    def variants(self) -> Iterator[Variant]:
        seen: set[str] = set()
        for _ in range(4 * self._count):  # a sampler may ask for the same variant again
            if len(seen) >= self._count:
                return
            self._asked = self._study.ask()
            variant = self._space.choose(self._decide)
            if variant.key in seen:
                self._study.tell(self._asked, state=_optuna().trial.TrialState.FAIL)
                continue
            seen.add(variant.key)
            yield variant

    def _decide(self, name: str, choice: Any) -> Any:
        if isinstance(choice, Range):
            if choice.is_whole:
                step = 1 if choice.log else int(choice.step or 1)
                return self._asked.suggest_int(name, int(choice.low), int(choice.high), step=step, log=choice.log)
            return self._asked.suggest_float(
                name, choice.low, choice.high, step=None if choice.log else choice.step, log=choice.log
            )
        # Optuna takes plain values only: a list of layers is chosen by its place.
        return choice[self._asked.suggest_categorical(name, list(range(len(choice))))]

    def tell(self, trial: _Trial, meanings: Sequence[Meaning]) -> None:
        values = [trial.figures[m.metric].value for m in meanings if m.metric in trial.figures]
        if trial.failed or not meanings or len(values) < len(meanings):
            self._study.tell(self._asked, state=_optuna().trial.TrialState.FAIL)
        else:
            self._study.tell(self._asked, values)


def _sampler(sweep: Sweep, seed: int) -> _Listed | _Learning:
    search, space = sweep.search, sweep.space
    if search.sampler == "grid":
        return _Listed(space.grid()[: search.max_trials])
    count = search.max_trials or 40
    if search.sampler == "random":
        import numpy as np

        rng = np.random.default_rng(seed)
        drawn: dict[str, Variant] = {}
        for _ in range(20 * count):
            variant = space.draw(rng)
            drawn.setdefault(variant.key, variant)
            if len(drawn) == count:
                break
        return _Listed(list(drawn.values()))
    return _Learning(space, search.sampler, count, seed, search.objectives)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency(
            "The samplers tpe and nsga2 need optuna. Install it with: pip install 'mlflow_slim[sweep]', or write "
            "search.sampler=random."
        ) from error
    return optuna
