"""The shapes that techniques, tasks and backends fill.

A plug-in needs no base class: it is whatever has these attributes. `catalog` finds it by name, the
shared contract tests check it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from .artifact import ExportedModel, OptimizedModel

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .data.tables import InputKind, LabelKind
    from .measurement.stats import Interval

__all__ = [
    "MODEL_OPTIONS",
    "Backend",
    "Batch",
    "Changes",
    "Conditional",
    "Context",
    "Input",
    "Kind",
    "Predictor",
    "QuantizingBackend",
    "Scheme",
    "Split",
    "Task",
    "TaskData",
    "Technique",
]

Input: TypeAlias = Any
"""One thing a person would send: a string, a pair of strings, image bytes."""

Batch: TypeAlias = Any
"""Encoded inputs in the form one backend computes on; opaque to everybody else."""


@dataclass(frozen=True)
class Split:
    """One split of the data, ready for a task.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
        inputs: One `Input` a row.
        references: What is right, as the task's metrics want it: ``(rows,)`` class ids, or
            ``(rows, labels)`` zeros and ones for multi-label, ``(rows, words)`` ids for words, -100 after the last;
            texts for language models; JSON of the right answers to questions.
        frame: The user's rows and columns, aligned with ``inputs``.
        digest: sha256 over inputs and references, hex, the first 16 digits.
    """

    name: str
    inputs: Sequence[Input]
    references: np.ndarray
    frame: pd.DataFrame
    digest: str

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class TaskData:
    """All splits of one data set, ready for a task.

    Attributes:
        name: Short name for people: file stem, folder name or hub id.
        source: Where it came from, as the user named it.
        train, validation, test: The splits, disjoint.
        spec: What the task learned from the data (labels, multi_label, pair), see `OptimizedModel.spec`.
        report: Counts a person should know: rows read, dropped and why, duplicates across splits.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    spec: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a step gets besides its model.

    Attributes:
        task: The task, for collating and scoring.
        data: The rows; a technique must not look at ``data.test``.
        seed: All randomness of the step comes from it.
        threads: Threads that computing may use, >= 1.
        device: Torch device name, ``cpu`` or ``cuda``.
        workdir: A folder of the step's own, empty, for checkpoints and the like.
        load_model: Loads another model by the name a user would give it (a student, a teacher).
        report: Called as ``report(name, value, step)`` with figures on the way (loss).
        metric: Headline metric that the user chose; None lets the data decide.
        show_progress: True on a terminal.
        backends: The runtimes that the outcome is for, by name; what a technique builds itself, it builds for these.
        original: The model that the whole recipe starts from, the teacher for getting quality back; None outside
            of recipes, where the step's own source is.
    """

    task: Task
    data: TaskData
    seed: int
    threads: int
    device: str
    workdir: Path
    load_model: Callable[[str], OptimizedModel]
    report: Callable[[str, float, int], None]
    metric: str | None = None
    show_progress: bool = False
    backends: Mapping[str, Backend] = field(default_factory=dict)
    original: OptimizedModel | None = None


MODEL_OPTIONS = ("student", "teacher", "assistant")
"""Options of techniques that name another model, as a user would."""


@runtime_checkable
class Technique(Protocol):
    """A frozen options object with one method. Options are its fields, typed and documented (pydantic).

    A technique whose outcome makes sense on certain runtimes alone lists them in a class attribute ``runs_on``; no step
    may follow it but one whose class attribute ``works_on_builds`` is true. If the outcome exists in the form of those
    runtimes only, it puts a folder for each of ``context.backends`` into `OptimizedModel.builds`.
    A technique that knows what to do with language models has a class attribute ``generates`` that is true; others are
    refused for them.
    A technique that can tell early that it doesn't fit a model has a method ``check(source)`` too, which raises; one
    that needs something of the machine is `Conditional`.
    An option of `MODEL_OPTIONS` is a model that the recipe looks for before it starts.
    """

    name: ClassVar[str]
    """Public name, ``<kind>.<method>``."""

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The optimized model; ``source`` stays usable and unchanged."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """What may not work on this machine."""

    def is_available(self) -> str | None:
        """None when it can run here, else a sentence that says what to install."""
        ...


@dataclass(frozen=True)
class Changes:
    """How a candidate's answers differ from the baseline's, beyond the headline metric.

    Attributes:
        metrics: ``agreement``, ``negative_flips`` and ``positive_flips`` (shares of rows, or of tokens) where they can
            be told, and what else the task knows.
        tags: Words, under ``slim.quality.``.
        tables: Rows for people: ``slices``, ``broken_rows``.
        certifiable: Smallest drop of the headline metric that so many flips in so many rows can rule out; 0 where the
            headline isn't a share of right answers.
    """

    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    certifiable: float = 0.0


@runtime_checkable
class Predictor(Protocol):
    """A loaded model that answers. All arms of a measurement go through this shape."""

    threads: int

    def encode(self, inputs: Sequence[Input]) -> Batch:
        """Inputs as the model computes on them: tokenized, truncated, padded to the longest."""
        ...

    def forward(self, batch: Batch) -> np.ndarray:
        """Raw outputs for one encoded batch, float32, ``(rows, ...)`` (logits for classifiers)."""
        ...

    def predict(self, inputs: Sequence[Input], *, batch_size: int = 32) -> np.ndarray:
        """Raw outputs for any number of inputs, in their order; batches are sorted by length inside."""
        ...


class Task(Protocol):
    """What a kind of job means: its data, its model class, its quality, its answers."""

    name: str
    library_class: str
    """The transformers class that loads its models, such as ``AutoModelForSequenceClassification``."""
    labels: LabelKind
    """What its label column holds."""
    inputs: InputKind
    """What its text column holds."""
    check_rows: int
    """Rows on which an export, and the logged model in a fresh process, must answer like their source."""

    def make_data(
        self,
        tables: Any,
        *,
        config: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TaskData:
        """Rows read by `mlflow_slim.data` as splits with inputs and references, in the order of the model's labels."""
        ...

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder with a head for the data's labels; ``trained`` is False when it is fresh."""
        ...

    def encode(self, processor: Any, inputs: Sequence[Input], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The model's inputs row by row, truncated, not padded, for training; with ``labels`` where they are tokens.

        An input that becomes several has its number in each of them, as ``row``.
        """
        ...

    def align(self, row: Mapping[str, Any], values: Any) -> Any:
        """One row's references, or raw outputs, as its training wants them; ``row`` is as `encode` gave it."""
        ...

    def answer(self, outputs: Any, inputs: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
        """The tensor of a torch model's output that is its answer, ``(batch, ...)``, such as ``outputs.logits``."""
        ...

    def complete(self, data: TaskData, answers: Callable[[Sequence[Input]], np.ndarray]) -> TaskData:
        """The data with references that only the original knows; ``answers`` are its raw outputs."""
        ...

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:
        """The task's own (hard-label) loss of raw outputs, a scalar tensor."""
        ...

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Input], spec: Mapping[str, Any]) -> np.ndarray:
        """Raw outputs ``(rows, ...)`` of a transformers model in memory, in eval mode."""
        ...

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """The answers themselves, such as class ids, from raw outputs."""
        ...

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """Every quality metric of the task by name, from raw outputs."""
        ...

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:
        """The metric to judge by on these rows, and the sentence that says why."""
        ...

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that can be the headline; higher is better in all of them."""
        ...

    def training_metric(self, metric: str) -> str:
        """What epochs are chosen by where ``metric`` is the headline: itself, or one that goes with it and is cheap."""
        ...

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of the metrics of `judged_by`, fast enough to be asked after every epoch."""
        ...

    def difference(
        self,
        metric: str,
        baseline: np.ndarray,
        candidate: np.ndarray,
        references: np.ndarray,
        spec: Mapping[str, Any],
        *,
        seed: int,
    ) -> Interval:
        """Candidate less baseline of a headline metric on the same rows, with a 90 % interval."""
        ...

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:
        """Share of answers that are the same."""
        ...

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """How a candidate's answers differ from the baseline's on the same rows."""
        ...

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows,)`` bool: which answers are right. Flips and agreement are built on it."""
        ...


class Backend(Protocol):
    """One runtime."""

    name: str

    def is_available(self) -> str | None:
        """None when it can run here, else a sentence that says what to install."""
        ...

    def export(self, source: OptimizedModel, directory: Path, sample: Sequence[Input]) -> ExportedModel:
        """Writes ``source`` into ``directory`` (made here) and checks its outputs on ``sample``.

        Raises:
            ExportError: The outputs differ by more than the backend's tolerance.
        """
        ...

    def load(self, directory: Path, *, threads: int) -> Predictor:
        """A predictor over an exported folder, with explicit threads."""
        ...


Kind: TypeAlias = Literal["dynamic", "static", "weight_only"]


@dataclass(frozen=True)
class Scheme:
    """How weights and activations become integers.

    Attributes:
        kind: ``dynamic``: int8 weights, activations scaled when the model runs; ``static``: int8 weights and
            activations, scaled as calibration rows say; ``weight_only``: integer weights, computed with as floats.
        per_channel: A scale for every output channel of a weight instead of one for all.
        reduce_range: 7 bits for weights, so that CPUs without VNNI don't saturate when they add products of two.
        keep_float: Names of the modules whose weights stay as they are, of those that `quantizable` lists.
        bits: Bits of a weight, 8 or 4; ``weight_only``.
        embedding_bits: Bits of a weight of an embedding, 8 or 4; ``dynamic`` and ``weight_only``.
        block_size: Weights that share a scale where there are blocks (4 bits, ``weight_only``), a power of 2 >= 16.
        calibrate: How the range of an activation is found in what calibration rows give; ``static``.
        smooth: Share of the difficulty that moves from activations to weights (SmoothQuant's alpha); None for what
            the runtime does by itself; ``static``.
        wide: Names of modules that keep 8 bits where ``bits`` is 4; language models.
        solve: How a weight becomes a code: the nearest one, or one that makes good the errors of those before it
            (GPTQ); language models in 4 bits.
        engine: Which of torch's quantizers; ``dynamic`` on the torch backend.
    """

    kind: Kind
    per_channel: bool = True
    reduce_range: bool = False
    keep_float: frozenset[str] = frozenset()
    bits: int = 8
    embedding_bits: int = 8
    block_size: int = 32
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax"
    smooth: float | None = None
    wide: frozenset[str] = frozenset()
    solve: Literal["nearest", "gptq"] = "nearest"
    engine: Literal["torch.ao", "torchao"] = "torch.ao"


class QuantizingBackend(Backend, Protocol):
    """A runtime that can turn its own exported models into quantized ones."""

    kinds: tuple[Kind, ...]
    """The kinds of `Scheme` it knows."""

    def quantizable(self, exported: ExportedModel, source: OptimizedModel, kind: Kind) -> list[str]:
        """Names of the modules of ``source.model`` whose weights can be quantized, in the order they compute."""
        ...

    def quantize(
        self,
        exported: ExportedModel,
        source: OptimizedModel,
        directory: Path,
        scheme: Scheme,
        rows: Sequence[Input],
    ) -> None:
        """Writes the quantized form of ``exported``, which came from ``source``, into ``directory`` (made here).

        ``rows`` are inputs to calibrate on; only ``static`` looks at them.

        Raises:
            ExportError: The folder exists or can't be written, or the runtime can't quantize this model.
        """
        ...
