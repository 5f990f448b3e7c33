"""Chats as rows, from files and from MLflow's traces of what production asked and was answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_language_model
from test_text_generation import context_of, recipe_of

from mlflow_slim.errors import DataError, InputNotFound
from mlflow_slim.inputs import Inputs, load_inputs


def messages(i: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be short"}, {"role": "user", "content": f"name river {i}"}]


def chats_file(folder: Path, *, answers: bool, count: int = 40) -> Path:
    path = folder / "chats.jsonl"
    rows = []
    for i in range(count):
        answer = {"role": "assistant", "content": f"river {i * 7}"}
        rows.append({"m": [*messages(i), answer]} if answers else {"m": messages(i), "a": answer["content"]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def load(folder: Path, data: str, **changes: Any) -> Inputs:
    model = folder / "lm"
    if not model.exists():
        make_language_model(model)
    recipe = recipe_of(model, Path(data), **{"text": "m", **changes})
    return load_inputs(recipe, folder, lambda uri: Path(uri))


@pytest.mark.parametrize("answers", [True, False])
def test_a_chat_is_a_prompt_and_its_last_message_the_answer(answers: bool, tmp_path: Path) -> None:
    found = load(tmp_path, str(chats_file(tmp_path, answers=answers)), label=None if answers else "a")
    prompt, text = found.data.test.inputs[0]
    number = int(prompt[-1]["content"].split()[-1])
    assert (prompt, text) == (messages(number), f"river {number * 7}")
    assert found.data.spec["prompted"]


def test_chats_are_scored_and_answered_through_the_template(tmp_path: Path) -> None:
    from mlflow_slim.catalog import load_backend
    from mlflow_slim.runtime.generation import Writing, unpack

    found = load(tmp_path, str(chats_file(tmp_path, answers=True)), label=None)
    assert found.source is not None
    backend: Any = load_backend("torch")
    rows = found.data.test.inputs[:3]
    backend.export(found.source, tmp_path / "out", rows)
    model = backend.load(tmp_path / "out", threads=1)
    scores = unpack(model.predict(rows), found.source.spec)
    assert scores.texts[0] == model.answer(rows[0][0], Writing(8))
    ids = model._start(rows[0], 8)
    template = found.source.processor.apply_chat_template(rows[0][0], add_generation_prompt=True, tokenize=True)
    assert ids == list(getattr(template, "input_ids", template))


def test_a_whole_recipe_on_chats(tmp_path: Path, store: Any) -> None:
    """Through the helper and the fresh processes, which get their inputs as JSON."""
    from mlflow_slim.pipeline import run

    model = make_language_model(tmp_path / "lm")
    recipe = recipe_of(
        model,
        chats_file(tmp_path, answers=True),
        text="m",
        label=None,
        steps=[{"technique": "distill.generate", "mode": "golden", "epochs": 1, "keep_cut": True, "sampling": 1.0}],
        measure={"timing_s": 4, "energy_s": 0, "fresh_starts": 1, "wait_s": 0},
        quick=True,
    )
    outcome = run(recipe)
    final = outcome.reports[-1].metrics
    assert final["optimize/teacher_tokens"] > 0
    assert final["quality/mean_kl"] > 0
    assert final["quality/p99_kl"] >= final["quality/mean_kl"]
    assert {"quality/misspelt_log_likelihood_delta", "quality/worst_slice_delta"} & set(final)
    assert final["load/cold_start_s"] > 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"m": [{"role": "user", "content": "a"}]}, "doesn't end with the assistant's answer"),
        ({"m": "a text"}, "chats in some rows and texts in others"),
        ({"m": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]}, "message without a text"),
        ({"m": [{"content": "x"}, {"role": "assistant", "content": "b"}]}, "message without a role"),
    ],
)
def test_rows_that_are_no_chats_are_named(row: Any, message: str, tmp_path: Path) -> None:
    path = chats_file(tmp_path, answers=True)
    path.write_text(path.read_text() + "\n" + "\n".join([json.dumps(row)] * 20), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(tmp_path, str(path), label=None)


LOGGING = """
import json, sys, mlflow
mlflow.set_experiment("production")
for asked, answered, fails in json.load(open("calls.json")):
    try:
        with mlflow.start_span("call") as span:
            span.set_inputs(asked)
            span.set_outputs(answered)
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
mlflow.flush_trace_async_logging()
"""


def test_traces_are_rows_and_nobody_is_asked_again(tmp_path: Path, store: Any, start_child: Any) -> None:
    calls: list[Any] = []
    for i in range(12):
        answer = {"choices": [{"message": {"role": "assistant", "content": f"river {i}"}}]}
        calls.append(({"messages": messages(i), "temperature": 0}, answer, False))
        calls.append(({"question": f"which river is number {i}"}, f"it is {i}", False))
    calls.append(({"messages": messages(99)}, {"choices": []}, False))
    calls.append(({"messages": messages(98)}, "half", True))
    calls.append(({"a": 1, "b": 2}, "no prompt", False))
    (tmp_path / "calls.json").write_text(json.dumps(calls), encoding="utf-8")
    # In a process of its own: under pytest MLflow gives spans that are not kept.
    child = start_child(LOGGING)
    assert child.wait(timeout=120) == 0
    found = load(tmp_path, "traces:production")
    rows = [*found.data.train.inputs, *found.data.validation.inputs, *found.data.test.inputs]
    assert len(rows) == 24
    assert "24 of 27 traces of 'production' have a prompt and an answer." in found.notes
    assert (messages(3), "river 3") in rows
    assert ([{"role": "user", "content": "which river is number 5"}], "it is 5") in rows
    assert found.facts["slim.data"] == "traces:production"
    from mlflow_slim.catalog import load_technique

    assert found.source is not None
    step: Any = load_technique("distill.generate")(mode="logs", epochs=1, layers=1)
    notes = step.apply(found.source, context_of(found, tmp_path)).lineage[-1].notes
    assert notes["teacher"] == "as logged in the data"
    assert notes["answers_kept"] == len(found.data.train)


def test_an_experiment_or_traces_that_are_not_there_are_named(tmp_path: Path, store: Any) -> None:
    store.client.create_experiment("empty")  # mlflow.set_experiment would leave its id in the environment
    with pytest.raises(InputNotFound, match=r"no experiment 'emty'.*empty"):
        load(tmp_path, "traces:emty")
    with pytest.raises(DataError, match="None of 0 traces"):
        load(tmp_path, "traces:empty")
