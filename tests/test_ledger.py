from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_slim.artifact import ExportedModel, OptimizationCost, StepRecord
from mlflow_slim.ledger import make_ledger, markdown_ledger
from mlflow_slim.measurement.report import Report

DISTILL = StepRecord("distill.logits", {}, cost=OptimizationCost(60.0, 0.004, "C"))
QUANTIZE = StepRecord("quantize.dynamic", {}, cost=OptimizationCost(5.0))


def point(backend: str, *lineage: StepRecord) -> ExportedModel:
    return ExportedModel(Path("x"), backend, "text-classification", {}, lineage)


def report(model: ExportedModel, quality: float, p50: float, disk: float) -> Report:
    metrics = {"quality/f1": quality, "latency/p50_ms": p50, "size/disk_mib": disk, "throughput/samples_per_s": 9 / p50}
    return Report(model.variant, metrics, {"slim.quality.metric": "f1"})


def test_each_step_is_compared_on_its_own_runtime_and_the_runtime_has_a_line() -> None:
    models = [
        point("torch"),
        point("onnxruntime"),
        point("onnxruntime", DISTILL),
        point("onnxruntime", DISTILL, QUANTIZE),
    ]
    figures = [(0.8, 12.0, 90.0), (0.8, 6.0, 91.0), (0.78, 3.0, 65.0), (0.77, 1.0, 17.0)]
    reports = [report(model, *figure) for model, figure in zip(models, figures, strict=True)]
    runtime, distill, quantize = make_ledger(models, reports)
    assert (runtime.step, runtime.before, runtime.speedup, runtime.duration_s) == (
        "runtime onnxruntime", "baseline", 2.0, None,
    )  # fmt: skip
    assert (distill.step, distill.before, distill.speedup) == ("distill.logits", "baseline@onnxruntime", 2.0)
    assert distill.quality == pytest.approx(-0.02)
    assert (distill.duration_s, distill.energy_kwh) == (60.0, 0.004)
    assert (quantize.before, quantize.speedup) == ("distill.logits@onnxruntime", 3.0)
    assert quantize.offline == pytest.approx(3.0)
    assert quantize.compression == pytest.approx(65 / 17)
    assert quantize.memory is None  # never a guess
    product = runtime.speedup * distill.speedup * quantize.speedup
    assert product == pytest.approx(12.0)


def test_without_a_point_on_the_same_runtime_a_step_is_compared_with_the_one_before() -> None:
    models = [point("torch"), point("torch", DISTILL), point("onnxruntime", DISTILL)]
    reports = [report(model, 0.8, p50, 90.0) for model, p50 in zip(models, (12.0, 6.0, 2.0), strict=True)]
    lines = make_ledger(models, reports)
    assert [(line.variant, line.before, line.speedup) for line in lines] == [
        ("distill.logits@torch", "baseline", 2.0),
        ("distill.logits@onnxruntime", "baseline", 6.0),
    ]


def test_the_table_shows_what_is_missing_as_missing() -> None:
    models = [point("torch"), point("torch", QUANTIZE)]
    text = markdown_ledger(make_ledger(models, [report(models[0], 0.8, 2.0, 9.0), Report("x", {})]))
    row = text.splitlines()[-1]
    assert row.startswith("| quantize.dynamic<br>")
    assert row.count("| - ") == 7
    assert "5 s" in row
    assert markdown_ledger([]) == ""
