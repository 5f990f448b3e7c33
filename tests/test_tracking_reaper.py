"""Abandoned runs are closed; what may still be alive is left alone."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest
from tracking_store import Store

from mlflow_slim.tracking import open_recipe_run, reap
from mlflow_slim.tracking.owner import is_gone, this_process

Start = Callable[..., "subprocess.Popen[str]"]

HOLDS = """
import time
from mlflow_slim.tracking import open_recipe_run
with open_recipe_run({"name": "distill"}) as run:
    run.open_point("baseline")
    print("ready", flush=True)
    time.sleep(120)
"""


def owner(**changes: object) -> str:
    return json.dumps({**json.loads(this_process()), **changes})


def test_the_next_command_closes_the_runs_of_a_killed_one(store: Store, start_child: Start) -> None:
    child = start_child(HOLDS)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    assert reap(store.experiment_id) == []  # it is alive
    child.send_signal(signal.SIGKILL)
    # Not waited for yet: a zombie is gone as well.
    while not is_gone(store.runs()[0].data.tags["slim.owner"]):
        pass
    with open_recipe_run({"name": "next"}) as run:
        pass
    child.wait()
    states = {r.info.run_id: r for r in store.runs()}
    assert states.pop(run.run_id).info.status == "FINISHED"
    assert [r.info.status for r in states.values()] == ["KILLED", "KILLED"]
    assert all("ended without closing the run" in r.data.tags["slim.failure"] for r in states.values())


def test_reaping_knows_a_pid_that_was_given_to_another_process() -> None:
    assert not is_gone(this_process())
    assert is_gone(owner(started="1"))


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere", "pid": 2**22 + 1},
        {"machine": "another", "pid": 2**22 + 1},
        {"pids": "pid:[1]", "pid": 2**22 + 1},  # a container on the same host
        {"boot": "another"},  # a twin of this host: its run may have begun at any time
    ],
)
def test_what_cant_be_judged_from_here_is_never_called_gone(changes: dict[str, object]) -> None:
    assert not is_gone(owner(**changes))


@pytest.mark.parametrize("tag", ["", "nonsense", "{}", '{"pid": "x", "started": 1}', "[]", "null"])
def test_a_broken_owner_tag_is_never_called_gone(tag: str) -> None:
    assert not is_gone(tag)


def test_after_a_reboot_runs_from_before_it_are_gone_and_later_ones_are_a_twins() -> None:
    before = owner(boot="the boot before")
    known_machine = bool(json.loads(before)["machine"])
    assert is_gone(before, run_started_ms=1) == known_machine
    assert not is_gone(before, run_started_ms=2**62)


def test_runs_that_arent_ours_are_left_running(store: Store) -> None:
    foreign = store.client.create_run(store.experiment_id)
    mine = store.client.create_run(store.experiment_id, tags={"slim.owner": owner(started="1")})
    far = store.client.create_run(store.experiment_id, tags={"slim.owner": owner(host="far", started="1")})
    assert reap(store.experiment_id) == [mine.info.run_id]
    assert store.client.get_run(foreign.info.run_id).info.status == "RUNNING"
    assert store.client.get_run(far.info.run_id).info.status == "RUNNING"


def test_reaping_never_raises(store: Store) -> None:
    assert reap("no such experiment") == []
