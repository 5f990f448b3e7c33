"""``quantize.qat``: where int8 alone misses the margin, the model is trained with the rounding in it, then quantized.

Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877), with the float model as the teacher. The outcome has
the same integer graph as `quantize.dynamic` or `quantize.static` give, and the notes hold both: with and without it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..artifact import OptimizedModel, StepRecord
from ..fake_quantization import fake_quantized
from ..interfaces import Context, Scheme
from ..learning import learn_logits
from ..lessons import Teaching
from ..precision_search import QuantizeOptions, quantize_for_backends
from ..training import FitOptions

__all__ = ["QuantizeQat"]


class QuantizeQat(QuantizeOptions):
    """Quantizes to int8, training with the rounding where quantizing alone isn't good enough."""

    name: ClassVar[str] = "quantize.qat"
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino", "torch")

    kind: Literal["dynamic", "static"] = Field(
        "dynamic", description="As quantize.dynamic or as quantize.static; openvino has static alone, torch dynamic."
    )
    reduce_range: bool | None = Field(
        None, description="7 bits for weights; default: whichever of 7 and 8 answers closer on calibration rows."
    )
    when_needed: bool = Field(
        True, description="Train only where quantizing alone misses max_drop or min_agreement; false: always."
    )
    temperature: float = Field(2.0, gt=0, le=100, description="Softening of both distributions.")
    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of the float model's answers against the labels; 1: only to answer as before.",
    )
    epochs: float = Field(2.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(
        5e-6,
        gt=0,
        lt=1,
        description="Peak learning rate of AdamW; small, as larger steps change more than rounding does.",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="Decoupled weight decay.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` with a quantized build for each of the context's backends.

        Raises:
            ConfigError: A pattern of ``keep_float`` fits no module, or a backend has no such kind.
            ExportError: The model can't be exported or quantized.
            TrainingDiverged: The loss became NaN or infinite.
        """
        ranges = [False, True] if self.reduce_range is None else [self.reduce_range]
        choices = [[Scheme(self.kind, reduce_range=reduced) for reduced in ranges]]
        plain = quantize_for_backends(self.name, self, choices, source, _into(context, "without"), back_to_float=False)
        before = _figures(plain)
        if self.when_needed and all(map(self._holds, before.values())):
            told = [
                f"{self.name} on {name}: int8 alone {_told(before[name])}, so nothing was trained." for name in before
            ]
            why = {"trained": False, "comparison": " ".join(told)}
            return source.after(self._record({**before, **why}), source.model, builds=plain.builds)
        student = replace(source, model=copy.deepcopy(source.model))
        reduced = all(figures["reduce_range"] for figures in before.values())
        with fake_quantized(student.model, reduce_range=reduced) as modules:
            fitted = learn_logits(
                student,
                source,
                context,
                FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay),
                Teaching(self.temperature, self.alpha),
                label=self.name,
            )
        tuned = quantize_for_backends(self.name, self, choices, student, _into(context, "with"), reference=source)
        after = _figures(tuned)
        builds = {}
        notes: dict[str, Any] = {"trained": True, "modules_that_rounded": len(modules), **fitted.notes()}
        told, cautions = [], []
        for name, build in tuned.builds.items():
            better = self._worth(after[name]) > self._worth(before[name])
            builds[name] = build if better else plain.builds[name]
            chosen = after[name] if better else before[name]
            notes[name] = {
                **chosen,
                "taken": "with training" if better else "without training",
                "without_training": _short(before[name]),
                "with_training": _short(after[name]),
            }
            told.append(
                f"{self.name} on {name}: int8 alone {_told(before[name])}; with training it {_told(after[name])}. "
                f"Taken: {notes[name]['taken']}."
            )
            if not self._holds(chosen):
                cautions.append(
                    f"{self.name} on {name}: what was taken changes more than max_drop or min_agreement allow."
                )
        notes["comparison"] = " ".join(told)
        if cautions:
            notes["caution"] = " ".join(cautions)
        return source.after(self._record(notes), student.model, builds=builds)

    def _record(self, notes: Mapping[str, Any]) -> StepRecord:
        return StepRecord(self.name, self.model_dump(mode="json"), notes)

    def _holds(self, figures: Mapping[str, Any]) -> bool:
        return self.holds(figures["calibration_drop"], figures["calibration_agreement"])

    def _worth(self, figures: Mapping[str, Any]) -> tuple[bool, bool, float]:
        """What is better is larger: the margin holds, all is in integers, the metric."""
        return self._holds(figures), not figures["kept_in_float"], -figures["calibration_drop"]


def _into(context: Context, name: str) -> Context:
    folder = context.workdir / name
    folder.mkdir()
    return replace(context, workdir=folder)


def _figures(quantized: OptimizedModel) -> dict[str, dict[str, Any]]:
    """What was noted for each runtime."""
    return {name: dict(quantized.lineage[-1].notes[name]) for name in quantized.builds}


def _told(figures: Mapping[str, Any]) -> str:
    """What one form does, as the rest of a sentence."""
    in_float = len(figures["kept_in_float"])
    return (
        f"changes the metric by {-figures['calibration_drop']:+.4f} on validation rows and keeps "
        f"{figures['calibration_agreement']:.1%} of the answers"
        + (f", with {in_float} matrices in float" if in_float else "")
    )


def _short(figures: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("calibration_drop", "calibration_agreement", "kept_in_float", "reduce_range")
    return {name: figures[name] for name in shown}
