from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import make_tokenizer

from mlflow_slim.errors import TrainingDiverged
from mlflow_slim.interfaces import Context
from mlflow_slim.training import FitOptions, fit


class Tiny:
    """A classifier of one weight, its rows and what `fit` asks for."""

    def __init__(self, folder: Path) -> None:
        import torch

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def forward(self, input_ids: Any, **_: Any) -> Any:
                return self.weight

        self.model = Model()
        self.tokenizer = make_tokenizer()
        self.rows = [{"input_ids": [2, 5 + i % 7, 3], "attention_mask": [1, 1, 1], "labels": 1} for i in range(32)]
        self.reported: list[tuple[str, float, int]] = []
        self.context = Context(
            task=SimpleNamespace(),  # type: ignore[arg-type]
            data=SimpleNamespace(),  # type: ignore[arg-type]
            seed=0,
            threads=1,
            device="cpu",
            workdir=folder,
            load_model=lambda _: None,  # type: ignore[arg-type, return-value]
            report=lambda *figure: self.reported.append(figure),
        )

    def fit(self, loss: Any, score: Any, epochs: float = 3) -> Any:
        options = FitOptions(epochs, 0.1, 8)
        return fit(
            self.model, self.tokenizer, self.rows, loss, score, options, self.context, metric="accuracy", label="tiny"
        )


def test_weights_of_the_best_epoch_are_kept(tmp_path: Path) -> None:
    tiny, seen = Tiny(tmp_path), []

    def score(model: Any) -> float:
        seen.append(float(model.weight.detach()))
        return (0.2, 0.9, 0.5)[len(seen) - 1]

    result = tiny.fit(lambda model, inputs, extra: (model(**inputs) - 5) ** 2, score)
    assert result.best_epoch == 2
    assert float(tiny.model.weight.detach()) == seen[1] != seen[2]
    assert result.steps == 12
    assert not tiny.model.training


def test_each_epoch_is_one_line_and_two_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = Tiny(tmp_path)
    with caplog.at_level(logging.INFO, logger="mlflow_slim"):
        tiny.fit(lambda model, inputs, extra: model(**inputs) ** 2, lambda model: 0.5, epochs=2)
    lines = [r.message for r in caplog.records if r.name == "mlflow_slim.training"]
    assert lines == [f"tiny: epoch {i}/2, loss 0.0000, validation accuracy 0.5000" for i in (1, 2)]
    assert [(name, step) for name, _, step in tiny.reported] == [
        ("tiny/loss", 1), ("tiny/validation_accuracy", 1), ("tiny/loss", 2), ("tiny/validation_accuracy", 2),
    ]  # fmt: skip


def test_three_losses_in_a_row_that_are_no_numbers_end_the_training(tmp_path: Path) -> None:
    tiny, steps = Tiny(tmp_path), []

    def loss(model: Any, inputs: Any, extra: Any) -> Any:
        steps.append(0)
        return model(**inputs) * (float("nan") if len(steps) >= 2 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"3 steps in a row, up to step 4 \(learning_rate 0.1\)"):
        tiny.fit(loss, lambda model: 0.5)
    assert len(steps) == 4


def test_one_bad_loss_alone_does_not_end_the_training(tmp_path: Path) -> None:
    tiny, steps = Tiny(tmp_path), []

    def loss(model: Any, inputs: Any, extra: Any) -> Any:
        steps.append(0)
        return model(**inputs) * 0 + (float("inf") if len(steps) == 2 else 1.0)

    assert tiny.fit(loss, lambda model: 0.5).steps == 12


def test_the_loss_gets_the_columns_that_are_not_the_models(tmp_path: Path) -> None:
    tiny, shapes = Tiny(tmp_path), []
    for row in tiny.rows:
        row["teacher_logits"] = [0.1, 0.2, 0.3]

    def loss(model: Any, inputs: Any, extra: Any) -> Any:
        shapes.append((set(inputs), tuple(extra["teacher_logits"].shape), extra["labels"].tolist()))
        return model(**inputs) ** 2

    tiny.fit(loss, lambda model: 0.0, epochs=1)
    assert shapes[0][1:] == ((8, 3), [1] * 8)
    assert "input_ids" in shapes[0][0] and "labels" not in shapes[0][0]


def test_training_reports_to_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would start MLflow's and CodeCarbon's callbacks by itself when both are installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tiny = Tiny(tmp_path / "work")
    tiny.fit(lambda model, inputs, extra: model(**inputs) ** 2, lambda model: 0.0, epochs=1)
    assert not [path.name for path in tmp_path.rglob("*") if path.is_file()]
