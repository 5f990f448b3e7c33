"""The evaluator `slim` through MLflow's own `evaluate`, on a model that isn't ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_slim.errors import ConfigError
from mlflow_slim.evaluator import SlimEvaluator

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow's sklearn flavor and of sklearn, not ours to mend
CHEAP = {"timing_s": 0.3, "energy_s": 0, "fresh_starts": 0, "batch_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A store with two sklearn models of two sizes, and rows with labels."""
    import mlflow
    import mlflow.sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    # Not set_experiment: it writes an environment variable that outlives this store.
    experiment = mlflow.create_experiment("eval", artifact_location=(folder / "artifacts").as_uri())
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(120, 4)), columns=list("abcd"))
    labels = np.where(rows["a"] + rows["b"] > 0, "yes", "no")
    found: dict[str, Any] = {"data": rows.assign(label=labels), "experiment": experiment}
    with mlflow.start_run(experiment_id=experiment):
        for name, model in {
            "large": make_pipeline(PolynomialFeatures(6), LogisticRegression(max_iter=50)),
            "small": LogisticRegression(),
        }.items():
            fitted = model.fit(rows, labels)
            found[name] = mlflow.sklearn.log_model(
                fitted, name=name, input_example=rows[:2], pip_requirements=["scikit-learn"]
            ).model_uri
    yield found
    mlflow.set_tracking_uri(before)


def evaluate(models: dict[str, Any], **config: Any) -> tuple[Any, Any]:
    import mlflow

    with mlflow.start_run(experiment_id=models["experiment"]) as run:
        found = mlflow.models.evaluate(
            models["small"],
            models["data"],
            targets="label",
            model_type="classifier",
            evaluators="slim",
            evaluator_config={**CHEAP, **config},
        )
    return found, mlflow.MlflowClient().get_run(run.info.run_id)


def test_a_model_of_another_library_is_measured_against_another(models: dict[str, Any]) -> None:
    found, run = evaluate(models, baseline=models["large"], price_per_hour=1.0)
    metrics = found.metrics
    for key in ("quality/accuracy", "latency/p50_ms", "throughput/samples_per_s", "size/disk_mib", "speedup/single"):
        if key in metrics:
            assert run.data.metrics[key] == pytest.approx(metrics[key])
            assert metrics[key] > 0
        else:  # a machine too busy to time anything
            assert key.startswith(("latency", "throughput", "speedup"))
            assert run.data.tags[f"slim.absent.{key}"]
    assert metrics["quality/accuracy_delta_lo"] <= metrics["quality/accuracy_delta"]
    assert 0.8 < metrics["quality/agreement"] <= 1
    assert ("cost/usd_per_1m_samples" in metrics) == ("throughput/samples_per_s" in metrics)
    assert run.data.tags["slim.kind"] == "evaluation"
    assert run.data.tags["slim.quality.verdict"] in ("non-inferior", "worse", "not enough data")
    assert "slim.speed.verdict" in run.data.tags or "slim.absent.speedup/single" in run.data.tags
    assert run.data.tags["slim.absent.energy/wh_per_1k_samples"] == "energy was not asked for"
    model = __import__("mlflow").MlflowClient().get_logged_model(models["small"].removeprefix("models:/"))
    assert "quality/accuracy" in {metric.key for metric in model.metrics}


@pytest.mark.slow
def test_cold_start_and_memory_come_from_processes_of_their_own(models: dict[str, Any]) -> None:
    metrics = evaluate(models, fresh_starts=1)[0].metrics
    assert metrics["load/cold_start_s"] > 0
    assert metrics["memory/peak_mib"] > 30


def test_nobody_is_evaluated_who_did_not_ask(models: dict[str, Any]) -> None:
    can = SlimEvaluator.can_evaluate
    assert not can(model_type="classifier", evaluator_config={})
    assert not can(model_type=None, evaluator_config=None)
    assert not can(model_type="text", evaluator_config={"log_model_explainability": False})
    assert can(model_type="slim", evaluator_config={})
    assert can(model_type="classifier", evaluator_config={"slim": True})
    assert can(model_type="classifier", evaluator_config={"baseline": "models:/x/1"})


def test_wrong_options_are_named(models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(models, basline="x", timing_s="long")
    assert "Unknown option 'basline'" in str(caught.value)
    assert "timing_s must be a number" in str(caught.value)


def test_targets_that_are_numbers_are_left_to_others(models: dict[str, Any], tmp_path: Path) -> None:
    import mlflow

    data = models["data"].assign(label=np.linspace(0, 1, 120))
    with mlflow.start_run(experiment_id=models["experiment"]) as run:
        mlflow.models.evaluate(
            models["small"], data, targets="label", model_type="slim", evaluators="slim", evaluator_config=CHEAP
        )
    tags = mlflow.MlflowClient().get_run(run.info.run_id).data.tags
    assert "not labels" in tags["slim.absent.quality/accuracy"]
