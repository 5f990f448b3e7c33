"""Files of other tools become points that are listed and never ranked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_slim as slim
from mlflow_slim.cli import main
from mlflow_slim.errors import ConfigError, DataError, InputNotFound
from mlflow_slim.imported import import_points

OLIVE = {
    "a": {"model_id": "a", "metrics": {"value": {"accuracy": 0.9, "latency": 120}}},
    "b": {
        "model_id": "b",
        "parent_model_id": "a",
        "from_pass": "OnnxConversion",
        "metrics": None,
    },
    "c": {
        "model_id": "c",
        "parent_model_id": "b",
        "from_pass": "OnnxDynamicQuantization",
        "metrics": {
            "value": {
                "accuracy-accuracy_score": {"value": 0.89, "priority": 1, "higher_is_better": True},
                "latency-p90": {"value": 3.5, "priority": 2, "higher_is_better": False},
                "latency-avg": {"value": 3.1},
                "odd-nan": {"value": float("nan")},
            }
        },
    },
}
BENCHMARK = {
    "config": {"name": "pytorch_bert", "backend": {"name": "pytorch", "model": "bert-base-uncased"}},
    "report": {
        "load": {"latency": {"unit": "s", "p50": 0.5}, "memory": None},
        "forward": {
            "latency": {"unit": "s", "p50": 0.011, "p90": 0.012, "p99": 0.02},
            "throughput": {"unit": "samples/s", "value": 90.0},
            "memory": {"unit": "MB", "max_ram": 1048.576},
            "energy": {"unit": "kWh", "total": 1e-6},
        },
    },
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("others", artifact_location=(tmp_path / "artifacts").as_uri())
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def write(folder: Path, content: Any) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(content))
    return path


def test_a_footprint_of_olive(store: Any, tmp_path: Path) -> None:
    runs = [store.get_run(i) for i in import_points(write(tmp_path, OLIVE), "olive", experiment="others")]
    assert [run.data.tags["slim.variant"] for run in runs] == [
        "olive: input model",
        "olive: OnnxConversion+OnnxDynamicQuantization",
    ]
    assert runs[0].data.metrics == {"quality/accuracy": 0.9, "imported/latency": 120}
    assert runs[1].data.metrics == {"quality/accuracy": 0.89, "latency/p90_ms": 3.5, "imported/latency-avg": 3.1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = slim.frontier("others")
    assert not found.points
    assert {other.reason for other in found.rest} == {"imported from olive, not measured here"}


def test_a_report_of_optimum_benchmark(store: Any, tmp_path: Path) -> None:
    (run_id,) = import_points(write(tmp_path, BENCHMARK), "optimum-benchmark", experiment="others")
    run = store.get_run(run_id)
    assert run.data.metrics == pytest.approx(
        {
            "latency/p50_ms": 11,
            "latency/p90_ms": 12,
            "latency/p99_ms": 20,
            "throughput/samples_per_s": 90,
            "memory/peak_mib": 1000,
            "imported/load_p50_ms": 500,
            "imported/forward_energy_kwh": 1e-6,
        }
    )
    assert run.data.tags["slim.variant"] == "optimum-benchmark: pytorch_bert"
    assert run.data.params["slim.imported.model"] == "bert-base-uncased"


@pytest.mark.parametrize("kind", ["olive", "optimum-benchmark"])
@pytest.mark.parametrize("content", [[], {}, {"a": 1}, {"a": {"b": 2}}, {"a": {"metrics": {"value": []}}}])
def test_what_tells_nothing_is_refused_and_nothing_logged(kind: str, content: Any, store: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        import_points(write(tmp_path, content), kind, experiment="others")
    assert not store.search_runs([store.get_experiment_by_name("others").experiment_id])


def test_the_command(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, OLIVE)
    assert main(["import", "olive", str(path), "--experiment=others"]) == 0
    assert "2 points" in capsys.readouterr().out
    assert main(["import", "oliv", str(path)]) == 2
    assert "Did you mean 'olive'" in capsys.readouterr().err
    with pytest.raises(InputNotFound):
        import_points(tmp_path / "none.json", "olive")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        import_points(tmp_path / "x.json", "olive")
    with pytest.raises(ConfigError):
        import_points(path, "pruna")
