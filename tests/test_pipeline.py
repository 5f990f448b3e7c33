"""Whole recipes on tiny models against a real MLflow store; one run is shared by the tests that only read."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict

import mlflow_slim as slim
from mlflow_slim.artifact import StepRecord
from mlflow_slim.errors import (
    ConfigError,
    DataError,
    InputNotFound,
    MeasurementError,
    ModelError,
    SlimError,
    TrackingError,
)

BUDGET = {
    "measure.timing_s": 1,
    "measure.energy_s": 0,
    "measure.fresh_starts": 0,
    "measure.wait_s": 0,
    "quick": True,
    "threads": 1,
    "export.baseline": False,
}


def write_reviews(path: Path, rows: int = 200, *, labels: tuple[str, str] = ("negative", "positive")) -> Path:
    """A CSV whose label is decided by one word, with column names of its own."""
    rnd = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["the review", "stars/5", "origin"])
        for i in range(rows):
            good = i % 2
            word = rnd.choice(("bad", "awful", "poor")) if not good else rnd.choice(("good", "great", "nice"))
            filler = " ".join(rnd.choices(["the", "movie", "was", "film", "plot", "story"], k=rnd.randint(1, 9)))
            writer.writerow([f"{filler} {word} {i}", labels[good], rnd.choice("ab")])
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of its own, for all tests of this module."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("slim", artifact_location=(folder / "artifacts").as_uri())
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


TORCH_ONLY = {"export.backends": "torch", "steps.0.epochs": 1}


def options(model: Path | str, data: Path, **more: Any) -> dict[str, Any]:
    columns = {"text": "the review", "label": "stars/5", "track.experiment": "slim"}
    return {"model": str(model), "data": str(data), **columns, **BUDGET, **more}


@pytest.fixture(scope="module")
def outcome(store: Any, reviews: Path, make_tiny_classifier: Callable[..., Path], tmp_path_factory: Any) -> Any:
    """`distill` from a model without a head for these labels, with an output folder."""
    model = make_tiny_classifier(labels=("a", "b", "c"))
    target = tmp_path_factory.mktemp("out") / "student"
    more = {
        "steps.distill.epochs": 2,
        "baseline.epochs": 2,
        "region": "FRA",
        "price_per_hour": 1,
        "output": str(target),
    }
    return slim.run("distill", **options(model, reviews, **more))


def test_the_points_are_baseline_and_student_on_both_runtimes(outcome: Any) -> None:
    assert [p.exported.variant for p in outcome.points] == [
        "baseline",
        "distill.logits@torch",
        "distill.logits@onnxruntime",
    ]
    assert any("is fine-tuned first" in note for note in outcome.notes)


def test_every_run_is_finished_top_level_and_grouped_by_tags(outcome: Any, store: Any) -> None:
    recipe_run = store.get_run(outcome.run_id)
    runs = [store.get_run(point.run_id) for point in outcome.points]
    assert {run.info.status for run in [recipe_run, *runs]} == {"FINISHED"}
    for point, run in zip(outcome.points, runs, strict=True):
        tags = run.data.tags
        assert "mlflow.parentRunId" not in tags
        assert tags["slim.variant"] == point.exported.variant
        assert tags["slim.recipe_run"] == outcome.run_id
        assert tags["slim.reload"] == "same"
    assert [run.data.tags.get("slim.baseline_run") for run in runs] == [None, runs[0].info.run_id, runs[0].info.run_id]


def test_metrics_belong_to_the_model_and_to_the_test_split(outcome: Any, store: Any) -> None:
    import mlflow

    inputs = store.get_run(outcome.points[0].run_id).inputs.dataset_inputs
    digests = {entry.tags[0].value: entry.dataset.digest for entry in inputs}
    assert set(digests) == {"train", "validation", "test"} and len(set(digests.values())) == 3
    for point, report in zip(outcome.points, outcome.reports, strict=True):
        model = mlflow.get_logged_model(point.model_uri.removeprefix("models:/"))
        assert {m.key for m in model.metrics} == set(report.metrics)
        assert {m.dataset_digest for m in model.metrics} == {digests["test"]}
        assert str(model.status.value) == "READY" or str(model.status) == "READY"


def test_the_students_report_has_paired_figures_and_the_baselines_has_none(outcome: Any) -> None:
    baseline, student, exported = (report.metrics for report in outcome.reports)
    assert not [key for key in baseline if key.startswith("speedup/") or key.endswith("_delta")]
    for metrics in (student, exported):
        assert (
            metrics["quality/accuracy_delta_lo"]
            <= metrics["quality/accuracy_delta"]
            <= metrics["quality/accuracy_delta_hi"]
        )
        assert 0 <= metrics["quality/agreement"] <= 1
        assert metrics["optimize/duration_s"] > 0
    assert exported["quality/accuracy"] == student["quality/accuracy"]
    assert student["size/parameters_m"] < baseline["size/parameters_m"]


def test_what_was_not_measured_is_absent_with_a_reason(outcome: Any) -> None:
    for report in outcome.reports:
        for key in ("energy/wh_per_1k_samples", "load/cold_start_s", "memory/peak_mib"):
            assert key not in report.metrics
            assert "not asked for" in report.tags[f"slim.absent.{key}"]


def test_the_recipe_can_be_replayed_from_its_artifact(outcome: Any, store: Any, tmp_path: Path) -> None:
    path = store.download_artifacts(outcome.run_id, "recipe.yaml", str(tmp_path))
    assert slim.Recipe.load(path) == outcome.recipe


def test_the_output_folder_holds_the_final_model(outcome: Any) -> None:
    import numpy as np

    from mlflow_slim.catalog import load_backend

    folder = Path(outcome.recipe.output)
    content = json.loads((folder / "slim.json").read_text())
    assert content["backend"] == "onnxruntime"
    assert content["lineage"][0]["technique"] == "distill.logits"
    answers = load_backend("onnxruntime").load(folder, threads=1).predict(["the movie was good", "bad"])
    assert answers.shape == (2, 2) and np.isfinite(answers).all()


def test_a_logged_model_answers_raw_strings(outcome: Any) -> None:
    import mlflow

    answers = mlflow.pyfunc.load_model(outcome.points[-1].model_uri).predict(["the movie was good", "awful plot"])
    assert answers["label"][0] in ("negative", "positive")
    assert answers["score"].between(0, 1).all()


def test_a_logged_student_is_a_model_for_the_next_recipe(outcome: Any, reviews: Path) -> None:
    again = slim.run("distill", **options(outcome.points[1].model_uri, reviews, **TORCH_ONLY))
    assert not any("is fine-tuned first" in note for note in again.notes)
    before, after = outcome.reports[1].metrics, again.reports[0].metrics
    assert after["quality/log_loss"] == pytest.approx(before["quality/log_loss"], rel=1e-4)


def test_finetune_of_a_model_without_head_makes_it_the_baseline(
    store: Any, reviews: Path, make_tiny_classifier: Any
) -> None:
    model = make_tiny_classifier(labels=("x", "y", "z"))
    outcome = slim.run("finetune", **options(model, reviews, **TORCH_ONLY))
    assert [p.exported.variant for p in outcome.points] == ["baseline"]
    assert any("is fine-tuned first (finetune.full)" in note for note in outcome.notes)


def test_hidden_distillation_runs_as_a_step(store: Any, reviews: Path, make_tiny_classifier: Any) -> None:
    recipe = {
        "name": "h",
        "steps": [{"technique": "distill.hidden", "epochs": 1, "layers": 1}],
        "export": {"backends": ["torch"]},
    }
    outcome = slim.run(recipe, **options(make_tiny_classifier(), reviews))
    notes = outcome.points[-1].exported.lineage[0].notes
    assert notes["teacher_layer_of"] == [1]
    assert outcome.points[-1].exported.variant == "distill.hidden@torch"


def newest(store: Any) -> Any:
    experiment = store.get_experiment_by_name("slim").experiment_id
    return store.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]


class Failing(BaseModel):
    """A technique of somebody else's that doesn't work."""

    name: ClassVar[str] = "prune.failing"
    model_config = ConfigDict(frozen=True)

    def apply(self, source: Any, context: Any) -> Any:
        raise RuntimeError("the student is broken")


def test_a_failure_in_the_middle_keeps_what_was_made_and_says_why(
    store: Any, reviews: Path, tiny_classifier_dir: Path
) -> None:
    """The step fails after the baseline was logged: the baseline's model stays, no run stays RUNNING."""
    with pytest.raises(RuntimeError, match="the student is broken"):
        slim.run({"name": "broken", "steps": [Failing()]}, **options(tiny_classifier_dir, reviews))
    experiment = store.get_experiment_by_name("slim").experiment_id
    failed = [r for r in store.search_runs([experiment]) if r.data.tags["slim.recipe"] == "broken"]
    assert {(r.data.tags["slim.kind"], r.info.status) for r in failed} == {("recipe", "FAILED"), ("point", "FAILED")}
    for run in failed:
        assert run.data.tags["slim.failure"] == "RuntimeError: the student is broken"
        assert "slim/traceback.txt" in [a.path for a in store.list_artifacts(run.info.run_id, "slim")]
    models = store.search_logged_models([experiment], filter_string="name = 'baseline'")
    (kept,) = [m for m in models if m.source_run_id in {r.info.run_id for r in failed}]
    assert str(getattr(kept.status, "value", kept.status)) == "READY"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"text": "review"}, DataError, "the review"),
        ({"data": "nowhere.csv"}, InputNotFound, "nowhere.csv"),
        ({"model": "./nowhere"}, InputNotFound, "nowhere"),
        ({"region": "FR"}, ConfigError, "FR"),
        ({"max_length": 4096}, ModelError, "takes 128 tokens at most"),
        ({"output": "."}, ConfigError, "exists already"),
        ({"output": "/proc/x/y"}, ConfigError, "can't be"),
        ({"measure.metric": "acuracy"}, ConfigError, "Did you mean 'accuracy'?"),
        ({"steps.distill.student": "./nobody"}, InputNotFound, "nobody"),
        ({"steps.distill.layers": 9}, ModelError, "layers is 9, but the model has 2"),
        ({"steps.distill.layers": [0, 7]}, ModelError, "layers names [7]"),
    ],
)
def test_bad_input_is_told_before_any_training(
    change: dict[str, Any], error: type[Exception], words: str, store: Any, reviews: Path, tiny_classifier_dir: Path
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        slim.run("distill", **{**options(tiny_classifier_dir, reviews), **change})
    experiment = store.get_experiment_by_name("slim").experiment_id
    assert not [r for r in store.search_runs([experiment]) if r.info.status == "RUNNING"]


def one_class(rows: list[list[str]]) -> None:
    for row in rows:
        row[1] = "positive"


def an_empty_text(rows: list[list[str]]) -> None:
    rows[7][0] = "  "


def no_label(rows: list[list[str]]) -> None:
    rows[7][1] = ""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (one_class, "has one class only"),
        (an_empty_text, "on_bad_rows=drop"),
        (no_label, "on_bad_rows=drop"),
    ],
)
def test_rows_that_cannot_be_used_end_the_run_and_change_no_file(
    spoil: Callable[[list[list[str]]], None], words: str, store: Any, tmp_path: Path, tiny_classifier_dir: Path
) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    spoil(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    before = path.read_bytes()
    with pytest.raises(DataError, match=re.escape(words)):
        slim.run("distill", **options(tiny_classifier_dir, path))
    assert path.read_bytes() == before
    assert_failed_and_explained(store, words)


def test_labels_that_training_never_saw_are_counted_and_refused(
    store: Any, tmp_path: Path, tiny_classifier_dir: Path
) -> None:
    write_reviews(tmp_path / "train.csv")
    write_reviews(tmp_path / "test.csv", rows=20, labels=("negative", "splendid"))
    with pytest.raises(DataError, match="splendid"):
        slim.run("distill", **options(tiny_classifier_dir, tmp_path))
    assert_failed_and_explained(store, "splendid")


@pytest.mark.parametrize(
    ("file", "words"), [("tokenizer.json", "tokenizer"), ("model.safetensors", "pytorch_model.bin")]
)
def test_a_model_folder_without_tokenizer_or_with_pickled_weights_is_refused(
    file: str, words: str, store: Any, tmp_path: Path, reviews: Path, tiny_classifier_dir: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_classifier_dir, model)
    if file == "model.safetensors":
        (model / file).rename(model / "pytorch_model.bin")
    else:
        for path in model.glob("*token*"):
            path.unlink()
        (model / "vocab.txt").unlink(missing_ok=True)
    left = sorted(path.name for path in model.iterdir())
    with pytest.raises(SlimError, match=words):
        slim.run("distill", **options(model, reviews))
    assert sorted(path.name for path in model.iterdir()) == left
    assert_failed_and_explained(store, words)


@pytest.mark.slow
def test_texts_of_five_thousand_words_are_cut_and_go_through(
    store: Any, tmp_path: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    path = tmp_path / "pairs.jsonl"
    words = "the movie was a good film and the plot was great " * 455
    rows = [{"text": words + str(i), "other": words[::-1] + str(i), "label": i % 2} for i in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    more = {"text": "text", "text_pair": "other", "label": "label", "steps.distill.epochs": 1, "baseline.epochs": 1}
    found = slim.run("distill", **options(make_tiny_classifier(labels=("a", "b", "c")), path, **more))
    assert [point.exported.backend for point in found.points] == ["torch", "torch", "onnxruntime"]


def test_a_multi_label_recipe_runs_from_text_cells_to_a_logged_model(
    store: Any, tmp_path: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    import mlflow

    rnd = random.Random(0)
    rows = ["say;topics"]
    for i in range(120):
        chosen = rnd.sample(["film", "food", "book"], k=1 + i % 2)
        rows.append(f"the {' and the '.join(chosen)} was nice {i};{'|'.join(chosen)}")
    path = tmp_path / "topics.csv"
    path.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    more = {"text": "say", "label": "topics", "label_separator": "|", "steps.distill.epochs": 1, "baseline.epochs": 1}
    found = slim.run("distill", **options(make_tiny_classifier(labels=("a", "b")), path, **more))
    assert found.points[-1].exported.spec["multi_label"] is True
    assert found.reports[-1].tags["slim.quality.metric"] == "f1_micro"
    answers = mlflow.pyfunc.load_model(found.points[-1].model_uri).predict(["the film was nice"])
    assert answers["label"][0] in {"film", "food", "book"}


class Sabotage(BaseModel):
    """A technique that trains nothing, reports a figure and then takes the artifact store away."""

    name: ClassVar[str] = "prune.sabotage"
    model_config = ConfigDict(frozen=True)
    store: str

    def apply(self, source: Any, context: Any) -> Any:
        shutil.rmtree(self.store)
        Path(self.store).write_text("no folder any more")
        return source.after(StepRecord(self.name, {}), source.model)


@pytest.fixture
def own_store(tmp_path: Path, store: Any) -> tuple[str, Path]:
    """An experiment whose artifacts lie in a folder that a test may take away."""
    folder = tmp_path / "own-artifacts"
    folder.mkdir()
    store.create_experiment(f"own {tmp_path.name}", artifact_location=folder.as_uri())
    return f"own {tmp_path.name}", folder


def test_a_model_that_mlflow_does_not_take_is_kept_and_written_to_output(
    own_store: tuple[str, Path],
    reviews: Path,
    tiny_classifier_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    experiment, folder = own_store
    more = {"track.experiment": experiment, "output": str(tmp_path / "out"), "export.backends": "torch"}
    with pytest.raises(TrackingError):
        slim.run(
            {"name": "lost", "steps": [Sabotage(store=str(folder))]}, **options(tiny_classifier_dir, reviews, **more)
        )
    assert (tmp_path / "out" / "slim.json").is_file()
    (line,) = [r.getMessage() for r in caplog.records if "It is kept in" in r.getMessage()]
    assert (Path(line.split("It is kept in ")[1]) / "slim.json").is_file()


def test_figures_that_mlflow_does_not_take_are_printed(
    own_store: tuple[str, Path],
    reviews: Path,
    tiny_classifier_dir: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow_slim import pipeline

    experiment, folder = own_store
    measure = pipeline.measure_apart

    def measure_then_sabotage(*args: Any, **kwargs: Any) -> Any:
        reports = measure(*args, **kwargs)
        shutil.rmtree(folder)
        folder.write_text("no folder any more")
        return reports

    monkeypatch.setattr(pipeline, "measure_apart", measure_then_sabotage)
    more = {"track.experiment": experiment, "export.backends": "torch", "steps.distill.epochs": 1}
    with pytest.raises(TrackingError):
        slim.run("distill", **options(tiny_classifier_dir, reviews, **more))
    (text,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("What was measured")]
    assert "distill.logits@torch" in text


class Diverging(BaseModel):
    """A technique that reports its loss and then gives up."""

    name: ClassVar[str] = "prune.diverging"
    model_config = ConfigDict(frozen=True)

    def apply(self, source: Any, context: Any) -> Any:
        context.report("prune.diverging/loss", 7.5, 1)
        raise RuntimeError("the loss is no number")


def test_the_curve_of_a_training_that_went_wrong_is_logged(
    store: Any, reviews: Path, tiny_classifier_dir: Path
) -> None:
    with pytest.raises(RuntimeError, match="the loss is no number"):
        slim.run({"name": "diverged", "steps": [Diverging()]}, **options(tiny_classifier_dir, reviews))
    assert newest_recipe(store).data.metrics["prune.diverging/loss"] == 7.5


def test_a_recipe_that_mlflow_run_started_in_vain_says_why_on_that_run(
    store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow_slim.cli import main

    run = store.create_run(store.get_experiment_by_name("slim").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert main(["run", "distill", "--region=FR"]) == 2
    assert "FR" in capsys.readouterr().err
    assert "FR" in store.get_run(run.info.run_id).data.tags["slim.failure"]
    assert [a.path for a in store.list_artifacts(run.info.run_id, "slim")] == ["slim/traceback.txt"]


@pytest.mark.slow
def test_a_model_measured_against_itself_is_never_faster_and_every_figure_is_there(
    outcome: Any, reviews: Path, tmp_path: Path
) -> None:
    folder = outcome.recipe.output
    budget = {"measure.timing_s": 2, "measure.fresh_starts": 1, "measure.wait_s": 0, "quick": True, "threads": 1}
    reports = slim.measure(
        folder, str(reviews), against=folder, text="the review", label="stars/5", region="FRA", **budget
    )
    # A machine too busy to time anything leaves the verdict out, with the reason in the figure's place.
    assert reports[1].tags.get("slim.speed.verdict", "inconclusive") in ("equivalent", "inconclusive")
    for report in reports:
        for key in (
            "energy/wh_per_1k_samples", "emissions/gco2e_per_1k_samples", "load/cold_start_s", "memory/peak_mib",
            "latency/p50_ms", "throughput/samples_per_s", "size/disk_mib", "quality/accuracy",
        ):  # fmt: skip
            assert (key in report.metrics) != (f"slim.absent.{key}" in report.tags), key


def test_a_fresh_process_that_dies_costs_its_own_figures_only(
    outcome: Any, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_slim.measure_apart import measure_request
    from mlflow_slim.measurement import fresh_process
    from mlflow_slim.measurement.helper import Helper

    def dies(*args: Any, **kwargs: Any) -> Any:
        raise MeasurementError("The process was killed by SIGKILL.")

    monkeypatch.setattr(fresh_process, "fresh_starts", dies)
    monkeypatch.setattr(Helper, "call", lambda self, function, request, what: measure_request(request))
    (report,) = slim.measure(
        outcome.recipe.output, str(reviews), text="the review", label="stars/5", **{**BUDGET, "measure.fresh_starts": 1}
    )
    assert "quality/accuracy" in report.metrics
    assert "SIGKILL" in report.tags["slim.absent.load/cold_start_s"]
    assert "SIGKILL" in report.tags["slim.absent.memory/peak_mib"]


def assert_failed_and_explained(store: Any, words: str) -> None:
    """The newest run of a recipe is FAILED and says why; none is RUNNING."""
    run = newest_recipe(store)
    assert run.info.status == "FAILED"
    assert words in run.data.tags["slim.failure"]
    assert [a.path for a in store.list_artifacts(run.info.run_id, "slim")] == ["slim/traceback.txt"]
    assert not [r for r in store.search_runs([run.info.experiment_id]) if r.info.status == "RUNNING"]


def newest_recipe(store: Any) -> Any:
    experiment = store.get_experiment_by_name("slim").experiment_id
    return store.search_runs([experiment], "tags.`slim.kind` = 'recipe'", order_by=["attributes.start_time DESC"])[0]


def test_a_tracking_server_that_is_down_stops_the_recipe_before_any_work(
    reviews: Path, tiny_classifier_dir: Path
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
            slim.run("distill", **options(tiny_classifier_dir, reviews))
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("sign", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_stopped_recipe_is_killed_in_mlflow_and_its_models_stay(
    sign: signal.Signals, code: int, tmp_path: Path, reviews: Path, tiny_classifier_dir: Path
) -> None:
    import mlflow

    words = [f"--{k}={v}" for k, v in options(tiny_classifier_dir, reviews, **{"steps.distill.epochs": 500}).items()]
    command = [sys.executable, "-m", "mlflow_slim.cli", "run", "distill", *words]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "epoch 2/" in line:
            break
    child.send_signal(sign)
    rest = child.communicate(timeout=120)[1]
    assert child.returncode == code, "".join([*lines, rest])
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("slim").experiment_id])
    assert {r.info.status for r in runs} == {"KILLED"}
    assert len(runs) == 2
    models = client.search_logged_models([runs[0].info.experiment_id])
    assert len(models) == 1


@pytest.mark.slow
def test_processes_under_torchrun_train_together_and_the_first_alone_logs(
    store: Any, tmp_path: Path, reviews: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    import mlflow

    model = make_tiny_classifier(labels=("a", "b", "c"))
    more = {"baseline.epochs": 1, "export.backends": "torch", "steps.distill.epochs": 1}
    words = [f"--{key}={value}" for key, value in options(model, reviews, **more).items()]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [*launch, "mlflow_slim.cli", "run", "distill", *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("slim").experiment_id])
    assert sorted(run.data.tags["slim.kind"] for run in runs) == ["point", "point", "recipe"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    student = next(run for run in runs if run.data.tags.get("slim.variant") == "distill.logits@torch")
    models = client.search_logged_models([student.info.experiment_id])
    (model_id,) = [m.model_id for m in models if m.source_run_id == student.info.run_id]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    folder = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(tmp_path / "student"))
    notes = json.loads((Path(folder) / "bundle" / "slim.json").read_text())["lineage"][0]["notes"]
    mlflow.set_tracking_uri(before)
    # 160 rows in batches of 32 are five steps for one process, and three when two share them.
    assert notes["training_steps"] == 3


def test_two_logged_models_are_measured_as_they_are(outcome: Any, store: Any, reviews: Path) -> None:
    """`evaluate`: the second is an ONNX model, which nothing could be done to."""
    first, last = outcome.points[0].model_uri, outcome.points[-1].model_uri
    found = slim.run("evaluate", **options(last, reviews, against=first))
    assert [point.exported.variant for point in found.points] == ["baseline", "distill.logits@onnxruntime"]
    run = store.get_run(found.points[1].run_id)
    assert run.data.tags["slim.baseline_run"] == found.points[0].run_id
    assert run.data.metrics["quality/accuracy"] == outcome.reports[-1].metrics["quality/accuracy"]
    assert run.data.metrics["size/disk_mib"] > 0


def test_a_folder_is_measured_against_a_logged_model(
    outcome: Any, reviews: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    folder = make_tiny_classifier(labels=("negative", "positive"))
    more = {"against": outcome.points[-1].model_uri}
    found = slim.run("evaluate", **options(folder, reviews, **more))
    assert [point.exported.backend for point in found.points] == ["onnxruntime", "torch"]


def test_a_model_without_a_head_for_these_labels_is_not_measured(
    outcome: Any, reviews: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    other = make_tiny_classifier(labels=("a", "b", "c"))
    with pytest.raises(SlimError, match="no trained head"):
        slim.run("evaluate", **options(other, reviews, against=outcome.points[-1].model_uri))


def test_against_and_steps_together_are_refused(reviews: Path) -> None:
    with pytest.raises(ConfigError, match=r"against .* and steps are both given"):
        slim.run("distill", **options("demo", reviews, against="demo"))
