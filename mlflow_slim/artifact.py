"""What a step returns and what a backend writes: the two values that travel through a recipe.

An `OptimizedModel` lives in memory, as transformers loaded or a technique changed it. An
`ExportedModel` lives in a folder, in the form that one backend runs. Both carry their lineage: which
steps made them, with which options, at what cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["ExportedModel", "OptimizationCost", "OptimizedModel", "StepRecord", "variant_name"]


@dataclass(frozen=True)
class OptimizationCost:
    """What doing one step cost.

    Attributes:
        duration_s: Wall time of the step, seconds.
        energy_kwh: Energy of the step; None when it was not measured.
        grade: Provenance of the energy figure, "A" (counter) to "D" (assumed); None with no energy.
        no_energy: Why the energy was not measured; empty when it was.
        reused: True when the step was not done again but taken from the cache; the figures are of when it was done.
        usd: What was paid to others for it, USD; filled in by the technique.
        teacher_tokens: Tokens that a teacher read and wrote for it; filled in by the technique.
    """

    duration_s: float
    energy_kwh: float | None = None
    grade: str | None = None
    no_energy: str = ""
    reused: bool = False
    usd: float = 0.0
    teacher_tokens: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One step that was applied.

    Attributes:
        technique: Its public name, such as ``distill.logits``.
        options: The options in force, resolved, JSON values only.
        notes: What the technique wants kept (layers chosen, final loss), JSON values only.
        cost: What doing it cost; time and energy are filled in by the pipeline.
    """

    technique: str
    options: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    cost: OptimizationCost | None = None


def variant_name(lineage: tuple[StepRecord, ...], backend: str | None = None) -> str:
    """The name of a point: ``baseline``, or its chain of techniques, and the runtime.

    >>> variant_name((StepRecord("distill.logits", {}), StepRecord("quantize.dynamic", {})), "onnxruntime")
    'distill.logits+quantize.dynamic@onnxruntime'
    >>> variant_name(())
    'baseline'
    """
    chain = "+".join(record.technique for record in lineage) or "baseline"
    return f"{chain}@{backend}" if backend else chain


@dataclass(frozen=True)
class OptimizedModel:
    """A model in memory with what is needed to use it.

    Attributes:
        model: The transformers model (``torch.nn.Module``), in eval mode.
        processor: Its tokenizer (or image processor).
        task: Name of the task, such as ``text-classification``.
        spec: What the task must know to serve the model, JSON values only; the task defines the keys
            (text-classification: ``labels``, ``multi_label``, ``pair``, ``max_length``).
        trained: False when the weights of the task's head are fresh, so that it must be fine-tuned first.
        lineage: The steps that made it from the baseline; empty for the baseline itself.
        source: Where the weights came from, as the user named it.
        builds: Backend -> folder, for a model whose weights exist only in the form of certain runtimes (a quantized
            one); ``model`` is then the one it was built from. Empty when any backend may export ``model``.
    """

    model: Any
    processor: Any
    task: str
    spec: Mapping[str, Any]
    trained: bool = True
    lineage: tuple[StepRecord, ...] = ()
    source: str = ""
    builds: Mapping[str, Path] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        return variant_name(self.lineage)

    def after(self, record: StepRecord, model: Any, **changes: Any) -> OptimizedModel:
        """The outcome of a step: ``model`` with one more line in its lineage."""
        return replace(self, model=model, lineage=(*self.lineage, record), trained=True, **changes)


@dataclass(frozen=True)
class ExportedModel:
    """A model in a folder, in the form that one backend runs.

    Attributes:
        directory: The folder; everything needed to serve is in it, with ``slim.json`` and ``manifest.json``.
        backend: Name of the backend that runs it.
        task: Name of the task.
        spec: As in `OptimizedModel`.
        lineage: As in `OptimizedModel`.
        parameters: Number of weights.
        nonzero_parameters: Number of weights that are not zero.
        notes: What the export wants kept (opset, fused nodes, largest difference from the source).
    """

    directory: Path
    backend: str
    task: str
    spec: Mapping[str, Any]
    lineage: tuple[StepRecord, ...] = ()
    parameters: int = 0
    nonzero_parameters: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        return variant_name(self.lineage, None if not self.lineage and self.backend == "torch" else self.backend)
