"""What a recipe leaves in the store when all goes well."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from tracking_store import Store

from mlflow_slim.artifact import ExportedModel
from mlflow_slim.errors import TrackingError
from mlflow_slim.interfaces import Split, TaskData
from mlflow_slim.measurement.report import Report
from mlflow_slim.tracking import DEFAULT_EXPERIMENT, install_view, open_recipe_run

RECIPE = {"name": "distill", "seed": 3, "steps": [{"use": "distill.logits", "temperature": 2.0}], "output": None}


class Flavor:
    """The smallest flavor MLflow accepts: the exported folder as it is."""

    __name__ = "mlflow_slim"

    @staticmethod
    def save_model(path: str, mlflow_model: Model, folder: Path) -> None:
        Path(path).mkdir()
        (Path(path) / "weights").write_bytes((folder / "weights").read_bytes())
        mlflow_model.add_flavor("mlflow_slim", data="weights")
        mlflow_model.save(str(Path(path) / "MLmodel"))


def log_model(exported: ExportedModel, *, name: str, run_id: str, model_id: str) -> ModelInfo:
    return Model.log(None, Flavor(), name=name, run_id=run_id, model_id=model_id, folder=exported.directory)


@pytest.fixture
def exported(tmp_path: Path) -> ExportedModel:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    return ExportedModel(folder, "torch", "text-classification", {})


def split(name: str, rows: int) -> Split:
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(rows)], "stars/5": [i % 2 for i in range(rows)]})
    return Split(name, list(frame["text"]), np.zeros(rows, dtype=int), frame, f"{name}-0123456789")


@pytest.fixture
def data() -> TaskData:
    return TaskData("reviews", "u/reviews", split("train", 8), split("validation", 2), split("test", 4), {}, {})


def report(variant: str = "baseline") -> Report:
    return Report(
        variant,
        {"quality/accuracy": 0.8, "latency/p50_ms": 4.0, "size/disk_mib": float("inf")},
        {"slim.quality.metric": "accuracy"},
        {"slim.measure.threads": "2"},
        {"slices": [{"slice": "short", "accuracy": 0.75}], "empty": []},
        {"latency_ms": [4.0, 4.5], "aa_ms": [1.0]},
    )


def test_a_run_carries_its_recipe_and_conditions_and_finishes(store: Store) -> None:
    with open_recipe_run(RECIPE, run_name="mine", conditions={"machine": {"cores": 2}}) as run:
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
    found = store.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "mine"
    assert store.client.get_experiment(found.info.experiment_id).name == DEFAULT_EXPERIMENT
    assert found.data.params == {
        "recipe.name": "distill",
        "recipe.seed": "3",
        "recipe.steps.0.use": "distill.logits",
        "recipe.steps.0.temperature": "2.0",
        "slim.machine.cores": "2",
    }
    assert found.data.tags["slim.recipe"] == "distill"
    assert yaml.safe_load(store.text(run.run_id, "recipe.yaml")) == RECIPE


def test_points_are_top_level_runs_and_several_are_open_at_once(store: Store) -> None:
    with open_recipe_run(RECIPE, run_name="mine") as run:
        base = run.open_point("baseline")
        student = run.open_point("distill.logits@onnxruntime", step=1, baseline_run_id=base.run_id)
        assert mlflow.active_run() is None
        assert [r.info.status for r in store.runs()] == ["RUNNING"] * 3
        student.finish()
    runs = {r.info.run_id: r for r in store.runs()}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert not any("mlflow.parentRunId" in r.data.tags for r in runs.values())
    tags = runs[student.run_id].data.tags
    assert tags["slim.recipe"] == "distill" and tags["slim.recipe_run"] == run.run_id
    assert tags["slim.step"] == "1" and tags["slim.baseline_run"] == base.run_id
    assert tags["slim.variant"] == "distill.logits@onnxruntime"
    assert runs[student.run_id].info.run_name == "distill.logits@onnxruntime · mine"
    assert tags["mlflow.runColor"] != runs[base.run_id].data.tags["mlflow.runColor"]


def test_points_stay_top_level_inside_a_run_of_the_callers(store: Store) -> None:
    other = mlflow.create_experiment("callers", artifact_location=(store.folder / "other").as_uri())
    with mlflow.start_run(experiment_id=other) as outer, open_recipe_run(RECIPE) as run:
        point = run.open_point("baseline")
    for run_id in (run.run_id, point.run_id):
        found = store.client.get_run(run_id)
        assert found.info.experiment_id == store.experiment_id
        assert "mlflow.parentRunId" not in found.data.tags
    assert store.client.get_run(outer.info.run_id).data.params == {}


def test_the_metrics_of_a_point_belong_to_its_model_and_test_split(
    store: Store, exported: ExportedModel, data: TaskData
) -> None:
    with open_recipe_run(RECIPE) as run:
        point = run.open_point("baseline@onnxruntime", data=data)
        info = point.log_model(log_model, exported, params={"temperature": 2})
        point.log_report(report())
    assert point.model_id == info.model_id
    model = store.client.get_logged_model(info.model_id)
    assert str(model.status) == "READY" and model.name == "baseline-onnxruntime"
    assert model.experiment_id == store.experiment_id
    assert model.params["temperature"] == "2"
    assert {m.key: (m.value, m.dataset_name, m.dataset_digest) for m in model.metrics} == {
        "quality/accuracy": (0.8, "reviews (test)", "test-0123456789"),
        "latency/p50_ms": (4.0, "reviews (test)", "test-0123456789"),
    }
    found = store.client.get_run(point.run_id)
    assert [m.model_id for m in found.outputs.model_outputs] == [info.model_id]
    contexts = {i.dataset.name: i.tags[0].value for i in found.inputs.dataset_inputs}
    assert contexts == {
        "reviews (train)": "train",
        "reviews (validation)": "validation",
        "reviews (test)": "test",
    }
    source = mlflow.data.get_source(found.inputs.dataset_inputs[0].dataset)
    assert source.to_dict()["path"] == "u/reviews"
    assert found.data.tags["slim.absent.size/disk_mib"] == "the value was inf"


def test_all_metrics_of_a_point_are_written_by_one_call(store: Store, exported: ExportedModel) -> None:
    with open_recipe_run(RECIPE) as run:
        point = run.open_point("baseline")
        point.log_model(log_model, exported)
        point.log_report(Report("baseline", {f"quality/m{i}": float(i) for i in range(40)}))
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database:
        times = database.execute("SELECT timestamp, count(*) FROM metrics GROUP BY timestamp").fetchall()
    assert [count for _, count in times] == [40]


def test_tables_samples_and_the_card_of_a_point_can_be_read_back(store: Store) -> None:
    with open_recipe_run(RECIPE) as run:
        for variant in ("baseline", "distill.logits"):
            run.open_point(variant).log_report(report(variant))
    table = store.client.load_table(
        store.experiment_id, "tables/slices.json", [p.run_id for p in run.points], ["run_id"]
    )
    assert list(table["accuracy"]) == [0.75, 0.75]
    assert set(table["run_id"]) == {p.run_id for p in run.points}
    path = mlflow.artifacts.download_artifacts(run_id=run.points[0].run_id, artifact_path="samples/samples.parquet")
    samples = pd.read_parquet(path)
    assert samples.groupby("name")["value"].apply(list).to_dict() == {"aa_ms": [1.0], "latency_ms": [4.0, 4.5]}
    note = store.client.get_run(run.points[0].run_id).data.tags["mlflow.note.content"]
    assert "| Latency, median | 4.00 ms |" in note
    assert "- size/disk\\_mib: the value was inf" in note


def test_the_summary_has_its_table_figures_and_card(store: Store) -> None:
    with open_recipe_run(RECIPE) as run:
        rows = [{"variant": "baseline", "quality": 0.8}, {"variant": "x", "quality": None}]
        run.log_summary(rows=rows, figures={"a": Figure()}, card="### Hi", tables={"ledger": [{"step": 1}]})
    assert list(store.client.load_table(store.experiment_id, "summary.json", [run.run_id])["variant"]) == [
        "baseline",
        "x",
    ]
    names = {f.path for f in store.client.list_artifacts(run.run_id, "figures")}
    assert names == {"figures/a.png"}
    assert store.client.get_run(run.run_id).data.tags["mlflow.note.content"] == "### Hi"
    assert "tables/ledger.json" in store.client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]


def test_inside_mlflow_run_the_projects_run_is_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"mlflow.source.name": "https://me:hunter2@git.example/repo#sub"}
    project = store.client.create_run("0", tags=tags)
    store.client.log_param(project.info.run_id, "model", "'a b'")
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    with open_recipe_run(RECIPE, experiment="elsewhere") as run:
        point = run.open_point("baseline")
        assert "MLFLOW_RUN_ID" not in os.environ
    found = store.client.get_run(project.info.run_id)
    assert run.run_id == project.info.run_id and found.info.status == "FINISHED"
    assert found.data.tags["mlflow.source.name"] == "https://***@git.example/repo#sub"
    assert found.data.params["model"] == "'a b'" and found.data.params["recipe.seed"] == "3"
    assert store.client.get_run(point.run_id).info.experiment_id == "0"
    assert store.client.get_experiment_by_name("elsewhere") is None


def test_a_run_resumed_with_another_recipe_keeps_its_params(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        with open_recipe_run({"name": "distill", "seed": seed}) as run:
            pass
        monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    assert [r.info.run_id for r in store.runs()] == [run.run_id]
    assert store.client.get_run(run.run_id).data.params["recipe.seed"] == "1"


def test_secrets_in_the_recipe_reach_neither_params_nor_artifact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct-horse")
    recipe = {"name": "x", "data": "https://me:pw@host/a.csv", "note": "it is correct-horse", "long": "y" * 9000}
    with open_recipe_run(recipe) as run:
        run.open_point("baseline").log_report(Report("baseline", {}, {"slim.absent.x": "correct-horse failed"}))
    everything = "".join(str(r.data.params) + str(r.data.tags) for r in store.runs())
    everything += store.text(run.run_id, "recipe.yaml")
    assert "correct-horse" not in everything and "me:pw" not in everything
    assert len(store.client.get_run(run.run_id).data.params["recipe.long"]) == 500
    assert "y" * 9000 in store.text(run.run_id, "recipe.yaml")


def test_a_model_that_fails_to_log_is_marked_and_the_point_goes_on(store: Store, exported: ExportedModel) -> None:
    def broken(*_: Any, **__: Any) -> ModelInfo:
        raise OSError(28, "No space left on device")

    with open_recipe_run(RECIPE) as run:
        point = run.open_point("baseline")
        with pytest.raises(TrackingError, match=r"could not log the model baseline: a disk is full"):
            point.log_model(broken, exported)
        point.log_report(report())
    models = store.client.search_logged_models([store.experiment_id])
    assert [str(m.status) for m in models] == ["FAILED"]
    assert store.client.get_run(point.run_id).data.metrics["latency/p50_ms"] == 4.0


def test_a_deleted_experiment_is_named_with_the_way_back(store: Store) -> None:
    store.client.delete_experiment(store.experiment_id)
    with (
        pytest.raises(TrackingError, match=r"'mlflow_slim' is deleted. Restore it with `mlflow experiments restore -x"),
        open_recipe_run(RECIPE),
    ):
        pytest.fail("the block must not start")


def test_the_view_and_note_are_written_once_and_the_users_note_is_kept(store: Store) -> None:
    store.client.set_experiment_tag(store.experiment_id, "mlflow.note.content", "My own words.")
    assert install_view(store.client, store.experiment_id) is False  # nothing measured yet
    for _ in range(2):
        with open_recipe_run(RECIPE) as run:
            run.open_point("baseline").log_report(report())
            run.log_summary(card="x")
        tags = dict(store.client.get_experiment(store.experiment_id).tags)
    note = tags["mlflow.note.content"]
    assert note.startswith("My own words.\n\n[Charts")
    assert note.count("viewStateShareKey=slim-tradeoffs") == 1
    view = tags["mlflow.sharedViewState.slim-tradeoffs"]
    assert "quality/accuracy" in view and len(view) < 20_000
    assert run.ui().url.endswith(
        f"#/experiments/{store.experiment_id}/runs?viewStateShareKey=slim-tradeoffs"
        "&compareRunsMode=CHART&workflowType=machine_learning"
    )


def test_names_of_classes_that_mlflow_forbids_in_keys_lose_no_metric(store: Store) -> None:
    names = ["R&D", "R+D", "a//b", "../x", "50 %", "ünï/cödé", ""]
    metrics = {f"quality/f1_{name}": float(place) for place, name in enumerate(names)}
    with open_recipe_run({"name": "x", "labels": {"a,b": 1, "a;b": 2}}) as run:
        point = run.open_point("baseline")
        point.log_report(Report("baseline", metrics, {"slim.absent.quality/f1_100 %": "no rows"}))
    found = store.client.get_run(point.run_id).data
    assert sorted(found.metrics.values()) == sorted(metrics.values())
    assert found.metrics["quality/f1_ünï/cödé"] == 5.0
    params = store.client.get_run(run.run_id).data.params
    assert (params["recipe.labels.a_b"], params["recipe.labels.a_b_2"]) == ("1", "2")
