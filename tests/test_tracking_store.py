"""Reaching the store: quickly refused when it is down, safely made when it is new."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from tracking_store import Store

from mlflow_slim.errors import InputNotFound, TrackingError
from mlflow_slim.tracking import connect, download_artifacts, open_recipe_run, ui_command

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def closed_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_down_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, scheme: str
) -> None:
    uri = f"{scheme}://me:hunter2@127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    started = time.monotonic()
    try:
        with pytest.raises(TrackingError) as caught, open_recipe_run({"name": "distill"}):
            pytest.fail("the block must not start")
    finally:
        mlflow.set_tracking_uri("")
    # MLflow's own retries take 244 s: the bound is the guarantee, not a benchmark.
    assert time.monotonic() - started < 10
    assert f"127.0.0.1:{closed_port}" in str(caught.value) and "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="did not answer within"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 10


def test_two_recipes_that_start_at_once_on_a_fresh_store_both_work(tmp_path: Path, start_child: Start) -> None:
    code = """
    from mlflow_slim.tracking import open_recipe_run
    with open_recipe_run({"name": "distill"}) as run:
        run.open_point("baseline")
    """
    uri = f"sqlite:///{tmp_path}/new/fresh.db"
    children = [start_child(code, MLFLOW_TRACKING_URI=uri) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        assert "alembic" not in errors
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mlflow_slim")
    runs = client.search_runs([experiment.experiment_id])
    assert [r.info.status for r in runs] == ["FINISHED"] * 4


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(TrackingError, match=r"x\.db' can't be used: file is not a database"):
        connect(f"sqlite:///{tmp_path}/x.db")


def test_a_folder_that_cant_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="can't be used"):
        connect(f"sqlite:///{tmp_path}/file/below/x.db")


def test_a_file_store_and_a_memory_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="could not open the tracking store"):
        connect((tmp_path / "mlruns").as_uri())
    with pytest.raises(TrackingError, match="would lose every run"):
        connect("sqlite://")


@pytest.mark.parametrize("uri", ["models:/nobody/1", "models:/nobody@champion", "runs:/0123456789abcdef/model"])
def test_a_model_that_isnt_there_is_named(store: Store, uri: str) -> None:
    with pytest.raises(InputNotFound, match=f"'{uri}' can't be fetched from MLflow"):
        download_artifacts(uri)


def test_a_uri_of_another_kind_is_refused_with_the_known_forms(store: Store) -> None:
    with pytest.raises(InputNotFound, match="Write models:/<name>/<version>"):
        download_artifacts("models:reviews")


def test_artifacts_of_a_run_are_fetched(store: Store, tmp_path: Path) -> None:
    with open_recipe_run({"name": "distill"}) as run:
        pass
    assert "distill" in download_artifacts(f"runs:/{run.run_id}/recipe.yaml").read_text()
    copy = download_artifacts(f"runs:/{run.run_id}/recipe.yaml", into=tmp_path / "here")
    assert copy == tmp_path / "here" / "recipe.yaml"


def test_the_ui_command_is_absolute_quoted_and_free_of_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    link = ui_command("7", tracking_uri="sqlite:///my runs.db", port=5001)
    assert link.command == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs.db' --port 5001"
    assert link.url == "http://127.0.0.1:5001/#/experiments/7/runs?workflowType=machine_learning"
    link = ui_command("7", tracking_uri="https://me:pw@mlflow.example/base/")
    assert link.command is None and link.url.startswith("https://***@mlflow.example/base/#/experiments/7/runs")
    link = ui_command("7", tracking_uri="postgresql://me:pw@db/mlflow")
    assert link.command == 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" --port 5000'
