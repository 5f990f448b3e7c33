"""Every way out of a recipe closes its runs, with the reason on them. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mlflow import MlflowClient
from tracking_store import Store

from mlflow_slim.errors import DataError, TrackingError
from mlflow_slim.tracking import StoppedBySignal, open_recipe_run

Start = Callable[..., "subprocess.Popen[str]"]

# Ready is printed once the runs are open; then the child waits for whatever comes.
WAITS = """
import sys, time
from mlflow_slim.tracking import open_recipe_run
with open_recipe_run({"name": "distill"}) as run:
    run.open_point("baseline").finish()
    run.open_point("distill.logits")
    print("ready", flush=True)
    time.sleep(120)
"""


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        pytest.fail(f"the child did not start: {process.communicate()[1]}")


def endings(store: Store) -> dict[str, str]:
    """Status by variant; the recipe's own run is called "recipe"."""
    return {r.data.tags.get("slim.variant", "recipe"): r.info.status for r in store.runs()}


@pytest.mark.parametrize(
    ("signum", "code", "reason"),
    [
        (signal.SIGTERM, 143, "Stopped by SIGTERM"),
        (signal.SIGINT, -signal.SIGINT, "Stopped by Ctrl-C (SIGINT)"),
    ],
)
def test_a_signal_ends_all_open_runs_as_killed(
    store: Store, start_child: Start, signum: signal.Signals, code: int, reason: str
) -> None:
    child = start_child(WAITS)
    ready(child)
    child.send_signal(signum)
    child.communicate(timeout=60)
    assert child.returncode == code
    assert endings(store) == {"recipe": "KILLED", "baseline": "FINISHED", "distill.logits": "KILLED"}
    for run in store.runs():
        if run.info.status == "KILLED":
            assert run.data.tags["slim.failure"] == reason
            assert store.text(run.info.run_id, "slim/traceback.txt").startswith("Traceback")


class Interrupted:
    """The real client, with a real signal in the middle of its last write."""

    def __init__(self, inner: MlflowClient, signum: int) -> None:
        self._inner, self._signum = inner, signum

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_terminated(self, *args: Any) -> None:
        os.kill(os.getpid(), self._signum)
        self._inner.set_terminated(*args)


@pytest.fixture
def sigterms() -> Iterator[list[int]]:
    """SIGTERMs that reach this process outside the block."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: seen.append(signum))
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_a_closed_terminal_ends_the_runs_as_killed(store: Store) -> None:
    with pytest.raises(StoppedBySignal) as caught, open_recipe_run({"name": "distill"}):
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught.value.code == 129
    assert endings(store) == {"recipe": "KILLED"}
    assert store.runs()[0].data.tags["slim.failure"] == "Stopped by SIGHUP"


def test_a_second_signal_while_the_runs_are_closing_changes_nothing(store: Store, sigterms: list[int]) -> None:
    # What `mlflow run` does on one Ctrl-C: SIGINT from the terminal, SIGTERM from itself.
    with pytest.raises(KeyboardInterrupt), open_recipe_run({"name": "distill"}) as run:
        run.open_point("baseline")
        run.client = Interrupted(run.client, signal.SIGTERM)  # type: ignore[assignment]
        os.kill(os.getpid(), signal.SIGINT)
    assert endings(store) == {"recipe": "KILLED", "baseline": "KILLED"}
    assert store.runs()[0].data.tags["slim.failure"] == "Stopped by Ctrl-C (SIGINT)"
    assert sigterms == []


def test_sigterm_while_finished_is_being_written_leaves_finished(store: Store, sigterms: list[int]) -> None:
    with open_recipe_run({"name": "distill"}) as run:
        run.client = Interrupted(run.client, signal.SIGTERM)  # type: ignore[assignment]
    assert endings(store) == {"recipe": "FINISHED"}
    # The runs are whole, and still the process is told what its sender wanted.
    assert sigterms == [signal.SIGTERM]


def test_a_hangup_that_nohup_ignores_stays_ignored(store: Store) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open_recipe_run({"name": "distill"}):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert endings(store) == {"recipe": "FINISHED"}


def test_an_exception_ends_all_open_runs_as_failed_with_a_scrubbed_traceback(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-value")
    with pytest.raises(DataError), open_recipe_run({"name": "distill"}) as run:
        run.open_point("baseline")
        raise DataError("no column 's3cr3t-value'\nin the file")
    assert endings(store) == {"recipe": "FAILED", "baseline": "FAILED"}
    for found in store.runs():
        assert found.data.tags["slim.failure"] == "DataError: no column '***' in the file"
        text = store.text(found.info.run_id, "slim/traceback.txt")
        assert "Traceback" in text and "test_tracking_endings.py" in text and "s3cr3t" not in text


@pytest.mark.parametrize(("code", "status"), [(0, "FINISHED"), (None, "FINISHED"), (1, "FAILED"), ("no", "FAILED")])
def test_leaving_by_sys_exit_is_judged_by_its_code(store: Store, code: object, status: str) -> None:
    with pytest.raises(SystemExit), open_recipe_run({"name": "distill"}):
        raise SystemExit(code)
    assert endings(store) == {"recipe": status}


def test_signal_handlers_are_put_back(store: Store) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with open_recipe_run({"name": "distill"}):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_point_that_ended_keeps_its_status_when_the_recipe_fails(store: Store) -> None:
    with pytest.raises(ValueError, match="later"), open_recipe_run({"name": "distill"}) as run:
        run.open_point("baseline").finish()
        run.open_point("distill.logits").finish("FAILED", failure="diverged")
        run.open_point("distill.hidden").finish("KILLED")
        raise ValueError("later")
    assert endings(store) == {
        "recipe": "FAILED",
        "baseline": "FINISHED",
        "distill.logits": "FAILED",
        "distill.hidden": "KILLED",
    }
    failures = {r.data.tags.get("slim.variant"): r.data.tags.get("slim.failure") for r in store.runs()}
    assert failures["distill.logits"] == "diverged" and failures["baseline"] is None


def test_an_artifact_root_that_cant_be_written_fails_before_any_work(store: Store) -> None:
    (store.folder / "artifacts").write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match=r"MLflow could not log the recipe \(.*"), open_recipe_run({"name": "d"}):
        pytest.fail("the block must not start")
    assert endings(store) == {"recipe": "FAILED"}
    assert "TrackingError" in store.runs()[0].data.tags["slim.failure"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_artifact_root_fails_before_any_work(store: Store) -> None:
    (store.folder / "artifacts").mkdir(mode=0o500)
    with pytest.raises(TrackingError, match="Permission denied"), open_recipe_run({"name": "d"}):
        pytest.fail("the block must not start")
    assert endings(store) == {"recipe": "FAILED"}
