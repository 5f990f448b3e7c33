"""MLflow traces as rows: what an application asked a model and what the model answered, without asking it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, InputNotFound, did_you_mean
from .store import connect

__all__ = ["PREFIX", "write_traces"]

PREFIX = "traces:"
_PAGE = 200


def write_traces(source: str, filter_string: str | None, folder: Path) -> tuple[Path, str]:
    """The traces of an experiment as a file of rows with ``text`` (a prompt, or messages) and ``label`` (the answer).

    Traces that failed, and those in which no prompt or no answer is found, are left out and counted.

    Args:
        source: ``traces:<experiment name>``.
        filter_string: As ``mlflow.search_traces`` takes it; None for all.
        folder: Where the file is made.

    Returns:
        The file, and what a person should know.

    Raises:
        InputNotFound: There is no such experiment.
        DataError: No trace has a prompt and an answer.
    """
    client: Any = connect()
    name = source.removeprefix(PREFIX).strip()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = [one.name for one in client.search_experiments()]
        raise InputNotFound(f"There is no experiment {name!r} to take traces from. {did_you_mean(name, known)}")
    rows, seen = [], 0
    for trace in _pages(client, experiment.experiment_id, filter_string):
        seen += 1
        found = _row(trace)
        if found is not None:
            rows.append(found)
    if not rows:
        raise DataError(
            f"None of {seen} traces of {name!r} has a prompt and an answer. Traces of chat completions have messages "
            "and choices; others a prompt, a question or a query, and a text."
        )
    if any(not isinstance(row["text"], str) for row in rows):  # one column, one kind
        for row in rows:
            if isinstance(row["text"], str):
                row["text"] = [{"role": "user", "content": row["text"]}]
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path, f"{len(rows)} of {seen} traces of {name!r} have a prompt and an answer"


def _pages(client: Any, experiment_id: str, filter_string: str | None) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_traces(
            locations=[experiment_id], filter_string=filter_string, max_results=_PAGE, page_token=token, flush=True
        )
        yield from page
        token = page.token
        if not token:
            return


def _row(trace: Any) -> dict[str, Any] | None:
    if str(trace.info.state).rpartition(".")[2] != "OK":
        return None
    asked, answered = (_decoded(value) for value in (trace.data.request, trace.data.response))
    prompt, answer = _prompt(asked), _answer(answered)
    return {"text": prompt, "label": answer} if prompt and answer else None


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _prompt(asked: Any) -> Any:
    """Messages or a text; what a function was called with is looked through by usual names, or is its only value."""
    if isinstance(asked, str):
        return asked.strip()
    if isinstance(asked, list):
        return _messages(asked)
    if isinstance(asked, Mapping):
        if messages := _messages(asked.get("messages") or asked.get("input")):
            return messages
        for name in ("prompt", "question", "query", "input", "inputs", "text", "model_input", "request"):
            if found := _prompt(asked.get(name)):
                return found
        if len(asked) == 1:
            return _prompt(next(iter(asked.values())))
    return None


def _messages(value: Any) -> list[dict[str, str]] | None:
    if not isinstance(value, list) or not value:
        return None
    found = []
    for part in value:
        if not (isinstance(part, Mapping) and isinstance(part.get("role"), str)):
            return None
        content = part.get("content")
        if isinstance(content, list):  # OpenAI's form with parts
            texts = [piece.get("text") for piece in content if isinstance(piece, Mapping)]
            content = "\n".join(text for text in texts if isinstance(text, str))
        if not isinstance(content, str) or not content.strip():
            return None
        found.append({"role": part["role"], "content": content})
    return found


def _answer(answered: Any) -> str:
    if isinstance(answered, str):
        return answered.strip()
    if isinstance(answered, list):
        return _answer(answered[0]) if len(answered) == 1 else ""
    if isinstance(answered, Mapping):
        if choices := answered.get("choices"):
            return _answer(choices)
        for name in ("message", "content", "text", "answer", "output", "output_text", "response", "generated_text"):
            if found := _answer(answered.get(name)):
                return found
    return ""
