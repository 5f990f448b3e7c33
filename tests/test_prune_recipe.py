"""The recipe ``prune`` from end to end: narrowed layers survive every format they are logged in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)

import mlflow_slim as slim

TEXTS = ["the movie was good", "a poor plot, it was awful", "nice"]


@pytest.fixture(scope="module")
def pruned(store: Any, reviews: Path, make_tiny_classifier: Callable[..., Path]) -> Any:  # noqa: F811
    model = make_tiny_classifier(labels=("negative", "positive"))
    return slim.run("prune", **options(model, reviews, **{"steps.prune.epochs": 1}))


def test_layers_are_narrower_and_reload_in_a_fresh_process(pruned: Any, store: Any) -> None:  # noqa: F811
    baseline, torch_point, onnx_point = pruned.points
    assert [point.exported.variant for point in (torch_point, onnx_point)] == [
        "prune.width@torch",
        "prune.width@onnxruntime",
    ]
    assert torch_point.exported.parameters < baseline.exported.parameters
    params = store.get_run(torch_point.run_id).data.params
    assert params["slim.steps.0.found.neurons_kept"] == "32"
    for point in pruned.points:
        assert store.get_run(point.run_id).data.tags["slim.reload"] == "same"


def test_they_serve_and_load(pruned: Any) -> None:
    import mlflow

    scores = []
    for point in pruned.points[1:]:
        served = mlflow.pyfunc.load_model(point.model_uri).predict(TEXTS)
        loaded = slim.load_model(point.model_uri).predict(TEXTS)
        assert list(served["label"]) == list(loaded["label"])
        scores.append(np.asarray(served["score"]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-4)


def test_no_flavor_is_named_that_could_not_load_them(pruned: Any) -> None:
    import mlflow

    flavors = [set(mlflow.models.get_model_info(point.model_uri).flavors) for point in pruned.points]
    assert ["transformers" in flavor for flavor in flavors] == [True, False, False]


def test_a_narrowed_model_is_a_model_for_the_next_recipe(pruned: Any, reviews: Path) -> None:  # noqa: F811
    chain = {"name": "again", "steps": [{"technique": "prune.depth", "recovery": "none"}]}
    found = slim.run(chain, **options(pruned.points[1].model_uri, reviews, **{"export.backends": "torch"}))
    first, second = (point.exported for point in found.points)
    assert first.parameters == pruned.points[1].exported.parameters
    assert second.parameters < first.parameters
    before = pruned.reports[1].metrics["quality/accuracy"]
    assert found.reports[0].metrics["quality/accuracy"] == before
