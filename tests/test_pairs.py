"""Pairs of texts whose label only the second text decides: a model or runtime that dropped it would sit at chance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import save_tiny_classifier, step_context

from mlflow_slim.catalog import load_backend, load_task, load_technique
from mlflow_slim.data import read_tables
from mlflow_slim.interfaces import Context

TASK = load_task("text-classification")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)
    fillers = ["the", "movie", "was", "film", "plot", "story"]
    rows = []
    for number in range(240):
        good = number % 2 == 0
        decides = draw.choice(("good", "great", "nice") if good else ("bad", "awful", "poor"))
        first = " ".join(draw.choices([*fillers, "good", "bad"], k=4))
        second = " ".join([*draw.choices(fillers, k=2), decides])
        rows.append({"text": f"{first} {number}", "text_pair": second, "label": "yes" if good else "no"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TASK.make_data(read_tables(str(folder / "rows.jsonl"), text_pair="text_pair"))
    source = TASK.load_model(save_tiny_classifier(folder / "model", ("a", "b", "c")), data, max_length=24, seed=0)
    context = step_context(TASK, data, folder, source)
    step = load_technique("finetune.full")(epochs=6, learning_rate=5e-3, batch_size=16)
    return Context(**{**context.__dict__, "original": step.apply(source, context)})


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_second_text_decides_in_training_and_on_every_runtime(
    context: Context, backend: str, tmp_path: Path
) -> None:
    model, test = context.original, context.data.test
    assert model is not None
    exported = load_backend(backend).export(model, tmp_path / "model", test.inputs[:8])
    predictor = load_backend(backend).load(exported.directory, threads=1)
    right = TASK.quality(predictor.predict(test.inputs), test.references, model.spec)["accuracy"]
    other = int(np.flatnonzero(test.references != test.references[0])[0])
    swapped = [(first, test.inputs[0][1]) for first, _ in test.inputs]  # the same second text for all
    same = predictor.predict(swapped).argmax(axis=1)
    turned = predictor.predict([(test.inputs[0][0], test.inputs[other][1])]).argmax()
    assert right > 0.9
    assert (same == test.references[0]).mean() > 0.9, "whatever stands first"
    assert turned == test.references[other]
