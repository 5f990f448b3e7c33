"""`mlflow run` itself, as a user types it: names with spaces, dotted options, exit codes, what is on the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import BUDGET, write_reviews

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def mlflow_run(folder: Path, entry_point: str, **parameters: Any) -> tuple[int, str, Any]:
    """Exit code, output, and the runs in the store, the project's own first."""
    import mlflow

    words = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
    uri = f"sqlite:///{folder}/mlflow.db"
    # The project's `python` must be the one that runs this test.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local", *words],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PATH": path},
        capture_output=True,
        text=True,
    )
    runs = mlflow.MlflowClient(uri).search_runs(["0"], order_by=["attributes.start_time ASC"])
    return done.returncode, done.stdout + done.stderr, runs


TRAINED = {
    "baseline": (),
    "compile": (),
    "distill": ("distill",),
    "finetune": ("finetune",),
    "main": ("distill", "prune"),
    "pipeline": ("distill", "prune"),
    "prune": ("prune",),
    "quantize": (),
}


def test_all_entry_points_but_evaluate_are_run_here() -> None:
    from mlflow_slim.config import recipe_names

    of_texts = {name for name in recipe_names() if "-" not in name}  # other tasks run theirs in tests of their own
    assert {*TRAINED, "evaluate"} == of_texts


@pytest.mark.parametrize("entry_point", TRAINED)
def test_an_entry_point_takes_odd_names_and_dotted_options(
    entry_point: str, tmp_path: Path, make_tiny_classifier: Callable[..., Path]
) -> None:
    data = write_reviews(tmp_path / "my reviews; $HOME.csv")
    model = make_tiny_classifier(labels=("a", "b", "c"))
    names = {"text": "the review", "label": "stars/5"}
    shortened = {f"steps.{kind}.epochs": 1 for kind in TRAINED[entry_point]}
    budget = {**BUDGET, "baseline.epochs": 1, **shortened}
    code, said, runs = mlflow_run(tmp_path, entry_point, model=model, data=data, **names, **budget)
    assert code == 0, said[-3000:]
    project, *points = runs
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert project.data.params["recipe.text"] == "the review"
    assert project.data.params["recipe.baseline.epochs"] == "1.0"
    assert {run.data.tags["slim.recipe_run"] for run in points} == {project.info.run_id}
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)


def test_evaluate_measures_two_folders(tmp_path: Path, make_tiny_classifier: Callable[..., Path]) -> None:
    data = write_reviews(tmp_path / "reviews.csv")
    models = [make_tiny_classifier(num_hidden_layers=layers) for layers in (2, 1)]
    names = {"text": "the review", "label": "stars/5", "against": models[0], "model": models[1]}
    code, said, (project, *points) = mlflow_run(tmp_path, "evaluate", data=data, **names, **BUDGET)
    assert code == 0, said[-3000:]
    assert {run.info.status for run in (project, *points)} == {"FINISHED"}
    assert len(points) == 2
    assert points[1].data.tags["slim.baseline_run"] == points[0].info.run_id


def test_a_wrong_option_fails_the_run_and_says_why_on_it(tmp_path: Path) -> None:
    code, said, (run,) = mlflow_run(tmp_path, "distill", **{"steps.distill.temperatur": 4})
    assert code != 0
    assert "Did you mean 'temperature'?" in said
    assert run.info.status == "FAILED"
    assert "temperatur" in run.data.tags["slim.failure"]
