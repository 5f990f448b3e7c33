"""A whole recipe as straight code: load, baseline, steps, export, log, measure against the baseline, report.

Each point is exported, logged and checked as soon as it exists, and measured last, all together: whatever
fails later, the models that were made are in MLflow. Nothing is sent to MLflow while something is measured.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, bundle, foreign, tracking
from .artifact import ExportedModel, OptimizationCost, OptimizedModel, StepRecord
from .cached_steps import do_cached
from .catalog import load_backend, load_technique
from .config import Recipe
from .errors import ConfigError, MeasurementError, ModelError
from .inputs import Inputs, check_output, load_inputs, load_model
from .interfaces import Conditional, Context, Technique
from .ledger import Line, make_ledger, markdown_ledger
from .measure_apart import measure_apart
from .measure_models import Given, check_comparable, find_given
from .measurement.carbon import carbon_intensity
from .measurement.energy import EnergyMeter
from .measurement.harness import tasks_fault
from .measurement.helper import Helper
from .measurement.host import host
from .measurement.quality_report import headline
from .measurement.report import Report
from .model_source import resolve_model
from .point_log import Point, PointLog
from .ready_graph import adopt_graph, find_graph
from .runtime import tasks
from .session_setup import compute_threads, energy_meter
from .stages import Stages

if TYPE_CHECKING:
    from .tracking import RecipeRun

__all__ = ["Flow", "Outcome", "run", "run_flow"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a recipe gave.

    Attributes:
        recipe: The recipe in force.
        run_id: The recipe's own MLflow run.
        points: The baseline first, then every step's outcome, then the final model per backend.
        reports: What was measured, in the points' order.
        ledger: What each step did, against the point before it.
        seconds: Wall time by stage: load, train, export, log, measure.
        notes: What a person should know: how splits were made, what was fine-tuned first.
        ui_command: How to look at the comparison in the MLflow UI.
    """

    recipe: Recipe
    run_id: str
    points: tuple[Point, ...]
    reports: tuple[Report, ...]
    ledger: tuple[Line, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    ui_command: str


def run(recipe: Recipe | str | Path | Mapping[str, Any], **overrides: Any) -> Outcome:
    """Runs a recipe as MLflow runs.

    Args:
        recipe: A `Recipe`, the path of a YAML file, the name of a shipped recipe, or a mapping.
        **overrides: Values by key; dotted keys through ``**{"steps.distill.temperature": 4}``.

    Raises:
        ConfigError: The recipe is wrong; nothing was started.
        TrackingError: MLflow can't be reached; nothing was started.
        SlimError: Something failed later; the runs are closed as FAILED, what was logged is kept.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe, overrides)
    elif overrides:
        recipe = Recipe.load(recipe.resolved(), overrides)
    check_output(recipe.output)
    _check_machine(recipe)
    if int(os.environ.get("RANK", "0")) > 0:
        return _train_along(recipe, recipe.threads or host().cores)
    return run_flow(recipe, Flow, resolved=recipe.resolved())


def run_flow(
    recipe: Recipe,
    make: Callable[[Recipe, RecipeRun, Path, int, Stages], Flow],
    *,
    resolved: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Runs a flow under a run of its own.

    Args:
        recipe: What it does, or what all it does has in common.
        make: Makes the flow.
        resolved: What the run logs as its recipe.
        tags: Further tags of the run.
    """
    machine = host()
    threads = recipe.threads or machine.cores
    conditions = {"threads": threads, "mlflow_slim_version": __version__, "host": machine.to_dict()}
    stages = Stages()
    with (
        tracking.open_recipe_run(
            resolved,
            experiment=recipe.track.experiment,
            run_name=recipe.track.run_name,
            name=recipe.name,
            conditions=conditions,
            tags={"slim.quick": str(recipe.quick).lower(), **(tags or {})},
        ) as recipe_run,
        tempfile.TemporaryDirectory(prefix="mlflow_slim-", ignore_cleanup_errors=True) as folder,
        compute_threads(threads),
    ):
        return make(recipe, recipe_run, Path(folder), threads, stages).run()


def _train_along(recipe: Recipe, threads: int) -> Outcome:
    """The part of every process but the first under torchrun: the same training, which Trainer splits among them.

    The first one alone opens runs, exports, logs and measures; the outcome of the others is empty.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mlflow_slim-", ignore_cleanup_errors=True) as folder,
        compute_threads(threads),
    ):
        flow = Flow(recipe, None, Path(folder), threads, Stages())
        inputs = load_inputs(recipe, flow.folder, flow.download)
        flow.original, steps = flow.baseline(inputs)
        current = flow.original
        for step in steps:
            current = flow.apply(step, current, inputs)
    return Outcome(recipe, "", (), (), (), {}, (), "")


class Flow:
    """The stages of one recipe over shared state; `run` is the picture."""

    def __init__(
        self, recipe: Recipe, recipe_run: RecipeRun | None, folder: Path, threads: int, stages: Stages
    ) -> None:
        self.recipe, self._recipe_run, self.folder = recipe, recipe_run, folder
        self.threads, self.stages = threads, stages
        self.notes: list[str] = []
        self.meter: EnergyMeter | None = None
        self.meter_reason = ""
        self.prepared: StepRecord | None = None
        self.original: OptimizedModel | None = None
        self.helper = Helper(threads=threads)

    @property
    def recipe_run(self) -> RecipeRun:
        assert self._recipe_run is not None, "only the first process logs"
        return self._recipe_run

    @functools.cached_property
    def logged(self) -> PointLog:
        """What was logged so far; in the first process only."""
        return PointLog(self.recipe_run, self.helper, threads=self.threads, download=self.download)

    @property
    def only_measures(self) -> bool:
        """Whether nothing is done to models, so that those that nothing can be done to may be given, too."""
        return not self.recipe.steps

    def run(self) -> Outcome:
        given: list[Given] = []
        with self.stages.time("load"):
            if self.only_measures:
                names = [name for name in (self.recipe.against, self.recipe.model) if name is not None]
                given = [self.find(name) for name in names]
            inputs = self.inputs(given)
            headline(inputs.task, inputs.data.test, inputs.data.spec, self.recipe.measure.metric)
            self.recipe_run.log_data(inputs.data)
        for line in inputs.notes:
            self.say(line)
        with self.helper:
            with energy_meter(self.recipe) as (self.meter, self.meter_reason):
                if self.recipe.against is not None or not all(one.is_plain for one in given):
                    inputs = self.adopt(inputs, given)
                else:
                    self.optimize(inputs)
            reports = self.measure(inputs)
        return self.report(reports)

    def find(self, name: str) -> Given:
        """A model to measure as it is, by the name that the user gave it."""
        graph = find_graph(name)
        if graph is None:
            return find_given(name, self.download)
        exported = adopt_graph(
            graph,
            name,
            task=self.recipe.task,
            pair=self.recipe.text_pair is not None,
            max_length=self.recipe.max_length,
            directory=Path(tempfile.mkdtemp(prefix="graph-", dir=self.folder)) / "given",
            answer=self.recipe.answer.model_dump(),
        )
        return Given(name, exported)

    def inputs(self, given: Sequence[Given]) -> Inputs:
        """Data and model; where a model is exported already, its labels decide and no other is loaded."""
        spec = next((one.exported.spec for one in given if one.exported is not None), None)
        plain = next((one.name for one in given if one.is_plain), None)
        recipe = self.recipe.model_copy(update={"model": plain}) if plain is not None else self.recipe
        has_model = not given or plain is not None
        return load_inputs(recipe, self.folder, self.download, spec=spec, with_model=has_model and spec is None)

    def adopt(self, inputs: Inputs, given: Sequence[Given]) -> Inputs:
        """The models that are only measured as points: as they are, or exported to torch."""
        loaded = inputs.source
        for one in given:
            exported = one.exported
            if one.foreign is not None:
                directory = self.folder / f"{len(self.logged.points)}-given"
                task, spec = self.recipe.task, inputs.data.spec
                exported = foreign.adopt(one.foreign, one.name, task=task, spec=spec, directory=directory)
            elif exported is None:
                name = one.name
                model = loaded or load_model(name, self.recipe, inputs, self.folder, self.download)
                loaded = None
                if not model.trained:
                    raise ModelError(
                        f"{name!r} has no trained head for the labels of this data, so it can't be measured on it. "
                        "Fine-tune it first: mlflow run . -e finetune."
                    )
                with self.stages.time("export"):
                    sample = inputs.data.validation.inputs[: inputs.task.check_rows]
                    exported = load_backend("torch").export(
                        model, self.folder / f"{len(self.logged.points)}-given", sample
                    )
            if self.logged.points:
                check_comparable(self.logged.exported[0], exported)
            else:
                inputs = self._completed(inputs, exported)
            self.log(exported, inputs)
        return inputs

    def _completed(self, inputs: Inputs, original: ExportedModel) -> Inputs:
        """Inputs with references that only the model knows that all others are measured against."""
        predictor = load_backend(original.backend).load(original.directory, threads=self.threads)
        return replace(inputs, data=inputs.task.complete(inputs.data, predictor.predict))

    def download(self, uri: str) -> Path:
        """An MLflow artifact in a folder that goes with the recipe's others."""
        return tracking.download_artifacts(uri, into=Path(tempfile.mkdtemp(prefix="download-", dir=self.folder)))

    def find_model(self, name: str) -> Path:
        """The folder of a model by the name a user gives it."""
        return resolve_model(name, download_artifacts=self.download, workdir=self.folder).directory

    def say(self, line: str) -> None:
        logger.info("%s", line)
        self.notes.append(line)

    def optimize(self, inputs: Inputs) -> None:
        """Baseline, then every step; each outcome is exported, logged and checked at once."""
        current, steps = self.baseline(inputs)
        self.original = current
        finals = self.recipe.export.backends
        self.add(current, "torch", inputs, is_output=not steps and finals == ("torch",))
        others = [backend for backend in finals if backend != "torch"]
        for backend in others if not steps or self.recipe.export.baseline else ():
            self.add(current, backend, inputs, is_output=not steps and backend == others[-1])
        for step in steps:
            logger.info("Step %d of %d: %s", len(current.lineage) + 1, len(steps), step.name)
            current = self.apply(step, current, inputs)
            is_last = len(current.lineage) == len(steps)
            for backend in finals if is_last else finals[-1:]:
                self.add(current, backend, inputs, is_output=is_last and backend == finals[-1])

    def baseline(self, inputs: Inputs) -> tuple[OptimizedModel, tuple[Technique, ...]]:
        """The model all else is measured against, and the steps that are left to do."""
        source, steps = inputs.source, tuple(self.recipe.steps)
        assert source is not None, "a recipe loads a model"
        _check_fit(steps, source)
        if source.trained:
            return source, steps
        if steps and steps[0].name.split(".")[0] == "finetune":
            first, steps = steps[0], steps[1:]
        else:
            first = load_technique("finetune.full")(**self.recipe.baseline.model_dump())
        known = inputs.data.spec.get("labels")
        labels = f"the {len(known)} labels of this data" if known else "this task"
        self.say(
            f"The model {self.recipe.model!r} has no trained head for {labels}, "
            f"so it is fine-tuned first ({first.name}); the fine-tuned model is the baseline."
        )
        tuned = self.apply(first, source, inputs)
        self.prepared = tuned.lineage[-1]
        return replace(tuned, lineage=()), steps

    def apply(
        self, step: Technique, source: OptimizedModel, inputs: Inputs, *, backends: Sequence[str] | None = None
    ) -> OptimizedModel:
        """One step, with what it cost in its record; ``backends`` are the runtimes it may build for."""
        workdir = Path(tempfile.mkdtemp(prefix="step-", dir=self.folder))
        figures: list[tuple[str, float, int]] = []  # sent after the step: its energy is being measured
        context = Context(
            task=inputs.task,
            data=inputs.data,
            seed=self.recipe.seed,
            threads=self.threads,
            device=_own_device(self.recipe.device),
            workdir=workdir,
            load_model=lambda name: load_model(name, self.recipe, inputs, self.folder, self.download),
            report=lambda *figure: figures.append(figure),
            metric=self.recipe.measure.metric,
            show_progress=sys.stderr.isatty(),
            backends={name: load_backend(name) for name in backends or self.recipe.export.backends},
            original=self.original,
        )

        def work() -> OptimizedModel:
            outcome, cost = self.metered(step.name, lambda: step.apply(source, context))
            record = outcome.lineage[-1]
            if (paid := record.cost) is not None:
                cost = replace(cost, usd=paid.usd, teacher_tokens=paid.teacher_tokens)
            record = replace(record, cost=cost)
            return replace(outcome, lineage=(*outcome.lineage[:-1], record))

        try:
            with self.stages.time("train"):
                outcome = do_cached(step, source, context, work, self.find_model)
        finally:  # the curve of a training that went wrong says why
            for name, value, at in figures if self._recipe_run is not None else ():
                self.recipe_run.log_progress(name, value, at)
        if not outcome.builds:  # they lie in it until they are exported
            shutil.rmtree(workdir, ignore_errors=True)
        for told in ("comparison", "caution"):
            if told in outcome.lineage[-1].notes:
                self.say(str(outcome.lineage[-1].notes[told]))
        return outcome

    def metered(self, name: str, work: Callable[[], OptimizedModel]) -> tuple[OptimizedModel, OptimizationCost]:
        """What ``work`` made and what that cost; the energy is left out when it can't be measured."""
        start = time.perf_counter()
        if self.meter is None:
            outcome = work()
            return outcome, OptimizationCost(time.perf_counter() - start, no_energy=self.meter_reason)
        with self.meter.long_window(name) as window:
            outcome = work()
        try:
            spent = window.result
        except MeasurementError as error:  # the work is done and worth keeping
            logger.warning("The energy of %s was not measured: %s", name, error)
            return outcome, OptimizationCost(time.perf_counter() - start, no_energy=str(error))
        grade = self.meter.provenance.grade([spent])
        return outcome, OptimizationCost(spent.duration_s, spent.energy_kwh, grade)

    def add(self, model: OptimizedModel, backend_name: str, inputs: Inputs, *, is_output: bool = False) -> None:
        """Exports a model and logs it.

        The last model is written into the user's output folder before MLflow is asked to take it.
        """
        backend = load_backend(backend_name)
        sample = inputs.data.validation.inputs[: inputs.task.check_rows]
        variant = model.variant.replace(".", "_")
        with self.stages.time("export"):
            exported = backend.export(
                model, self.folder / f"{len(self.logged.points)}-{variant}-{backend_name}", sample
            )
        if is_output and self.recipe.output is not None:
            self.write_output(exported, Path(self.recipe.output).expanduser())
        self.log(exported, inputs)

    def log(self, exported: ExportedModel, inputs: Inputs) -> None:
        """Makes a point of an exported model."""
        self.logged.add(exported, inputs, self.prepared, self.stages)

    def measure(self, inputs: Inputs) -> list[Report]:
        """One report for each point that was logged."""
        return self.measure_together(self.logged.exported, inputs)

    def measure_together(self, points: Sequence[ExportedModel], inputs: Inputs) -> list[Report]:
        """One report a point, the baseline's first."""
        logger.info("Measuring %d points against the baseline, in turns", len(points))
        with self.stages.time("measure"):
            return measure_apart(
                points,
                self.recipe,
                inputs,
                self.threads,
                self.helper,
                prepared=self.prepared.cost if self.prepared is not None else None,
            )

    def write_output(self, exported: ExportedModel, target: Path) -> None:
        """Copies the last model, which the recipe was for, into the folder the user asked for."""
        with bundle.staged(target) as work:
            shutil.copytree(exported.directory, work, dirs_exist_ok=True)
        self.say(f"{exported.variant} is in {target}")

    def report(self, reports: list[Report]) -> Outcome:
        from . import figures, tables

        ledger = self.ledger(reports)
        with self.stages.time("log"), _printed_if_not_logged(reports):
            for point_run, report in zip(self.logged.runs, reports, strict=True):
                point_run.log_report(report)
                point_run.finish()
            seconds = {f"stage/{name}_s": round(value, 3) for name, value in self.stages.seconds.items()}
            frontier, texts = self.frontier(ledger)
            self.recipe_run.log_summary(
                rows=tables.summary_rows(reports),
                figures={
                    **figures.make_figures(reports),
                    **({"ledger": figures.waterfall_figure(ledger)} if len(ledger) > 1 else {}),
                },
                card=tracking.recipe_card(
                    f"Recipe {self.recipe.name}",
                    f"{tables.markdown_table(reports)}\n\n{markdown_ledger(ledger)}".rstrip(),
                    self.links(),
                    notes=self.notes,
                ),
                tables={
                    **({"ledger": [line.as_row() for line in ledger]} if ledger else {}),
                    **frontier,
                    **self.extra_tables(),
                },
                texts=texts,
                metrics={**seconds, **self.extra_metrics()},
            )
        return Outcome(
            recipe=self.recipe,
            run_id=self.recipe_run.run_id,
            points=tuple(self.logged.points),
            reports=tuple(reports),
            ledger=tuple(ledger),
            seconds=dict(self.stages.seconds),
            notes=tuple(self.notes),
            ui_command=str(self.recipe_run.ui()),
        )

    def ledger(self, reports: Sequence[Report]) -> list[Line]:
        """What each step did."""
        return make_ledger(self.logged.exported, reports)

    def frontier(self, ledger: Sequence[Line]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """The experiment's frontier, this recipe's points in it, as a table and as one HTML page."""
        from .comparison import overview

        try:
            client, experiment = self.recipe_run.client, self.recipe_run.experiment_id
            found, page = overview(
                client, experiment, title=f"Recipe {self.recipe.name}", ledger=[line.as_row() for line in ledger]
            )
        except Exception as error:  # the recipe is done, and `compare` can be run again
            logger.warning("The frontier of the experiment was not made: %s", tracking.scrub(str(error)))
            return {}, {}
        return {"frontier": found.rows()}, {"report.html": page}

    def extra_tables(self) -> dict[str, list[dict[str, Any]]]:
        """Tables that a kind of flow has beside the summary."""
        return {}

    def extra_metrics(self) -> dict[str, float]:
        """Figures of the whole that a kind of flow has beside its stages."""
        return {}

    def links(self) -> dict[str, str]:
        """Markdown links to the points' runs by variant."""
        experiment = self.recipe_run.experiment_id
        return {run.variant: tracking.run_link(experiment, run.run_id, run.variant) for run in self.logged.runs}


def _check_fit(steps: Sequence[Technique], source: OptimizedModel) -> None:
    """Lets every step look at the model before hours of work; up to one that puts another model in its place."""
    for step in steps:
        check = getattr(step, "check", None)
        if check is not None:
            check(source)
        if getattr(step, "student", None) is not None:
            return


@contextlib.contextmanager
def _printed_if_not_logged(reports: list[Report]) -> Iterator[None]:
    """Says what was measured when MLflow can't be told: measuring took minutes."""
    try:
        yield
    except Exception:
        from . import tables

        logger.error("What was measured could not be logged:\n%s", tables.markdown_table(reports))
        raise


def _check_machine(recipe: Recipe) -> None:
    """Refuses what this machine or this start can't do, before a run is opened."""
    carbon_intensity(recipe.region, recipe.carbon_intensity)
    faults = [reason for name in recipe.export.backends if (reason := load_backend(name).is_available())]
    asked = [step.is_available() for step in recipe.steps if isinstance(step, Conditional)]
    faults += [reason for reason in asked if reason]
    if recipe.measure.lm_eval:
        generates = tasks.find(recipe.task).KIND == "generator"
        reason = tasks_fault(recipe.measure.lm_eval) if generates else "measure.lm_eval is for language models only."
        faults += [reason] if reason else []
    if recipe.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            faults.append("device is 'cuda', but torch sees no CUDA device here. Write device=cpu.")
    if faults:
        raise ConfigError(faults)


def _own_device(device: str) -> str:
    """``cuda:<n>`` for the n-th process that torchrun started on this machine, else the device itself."""
    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if device == "cuda" and place else device
