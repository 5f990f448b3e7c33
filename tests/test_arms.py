from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlflow_slim.artifact import ExportedModel, StepRecord
from mlflow_slim.measurement.arms import arm_names, make_scenarios, representative_rows
from mlflow_slim.measurement.report import Report


class Recorder:
    """A predictor that remembers what it was asked."""

    threads = 1

    def __init__(self) -> None:
        self.encoded: list[list[Any]] = []
        self.forwarded = 0

    def encode(self, inputs: Any) -> Any:
        self.encoded.append(list(inputs))
        return {"input_ids": np.zeros((len(inputs), 4))}

    def forward(self, batch: Any) -> Any:
        self.forwarded += len(batch["input_ids"])
        return np.zeros((len(batch["input_ids"]), 2))

    def predict(self, inputs: Any, *, batch_size: int = 32) -> Any:
        return self.forward(self.encode(inputs))


def exported(*techniques: str) -> ExportedModel:
    return ExportedModel(Path("x"), "torch", "text-classification", {}, tuple(StepRecord(t, {}) for t in techniques))


def test_representative_rows_have_the_lengths_of_all_rows() -> None:
    rows = ["x" * n for n in np.random.default_rng(0).permutation(np.arange(1, 101))]
    lengths = [len(row) for row in representative_rows(rows, 10)]
    assert lengths == sorted(lengths)
    assert abs(np.mean(lengths) - 50.5) < 1.5
    assert len(representative_rows(rows, 1)[0]) == 51


def test_more_rows_than_there_are_repeat_some() -> None:
    assert representative_rows(["a", "bb"], 4) == ["a", "a", "bb", "bb"]


def test_every_arm_gets_the_same_rows_and_as_many_as_the_scenario_says() -> None:
    predictors = [Recorder(), Recorder()]
    rows = ["x" * n for n in range(1, 60)]
    scenarios = make_scenarios([exported(), exported("distill.logits")], predictors, rows, batch_size=8)
    assert [(s.name, s.rows) for s in scenarios] == [("single", 1), ("offline", 16)]
    assert predictors[0].encoded == predictors[1].encoded
    for scenario in scenarios:
        for arms, from_text in ((scenario.arms, False), (scenario.text_arms, True)):
            for predictor, arm in zip(predictors, arms, strict=True):
                before, encoded = predictor.forwarded, len(predictor.encoded)
                arm.call()
                assert predictor.forwarded - before == scenario.rows
                assert (len(predictor.encoded) > encoded) == from_text


def test_a_model_against_itself_has_two_names() -> None:
    assert arm_names([exported(), exported(), exported("distill.logits")]) == [
        "baseline", "baseline (2)", "distill.logits@torch",
    ]  # fmt: skip


def test_pairs_are_measured_by_both_texts() -> None:
    assert representative_rows([("a" * 9, "b"), ("a", "b"), ("a", "b" * 4)], 1) == [("a", "b" * 4)]


def test_a_report_keeps_no_figure_that_is_not_finite() -> None:
    report = Report("baseline", {"a/b": 1.0, "c/d": float("inf"), "e/f": float("nan")})
    assert dict(report.metrics) == {"a/b": 1.0}
    assert set(report.tags) == {"slim.absent.c/d", "slim.absent.e/f"}
