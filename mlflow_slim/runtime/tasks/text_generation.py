"""text-generation: prompts or chats in, texts out, as ``mlflow.transformers`` gives them.

A prompt is answered with the text that follows it, without the prompt. A chat, a list of messages, is answered with
the assistant's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..generation import TextGenerator, Writing

LIBRARY_CLASS = "AutoModelForCausalLM"
OUTPUT = "logits"
KIND = "generator"
COLUMNS = ("prompt", "messages")
_PARAMS = {"max_new_tokens", "max_tokens", "temperature", "top_p", "seed", "stop"}


def _check_messages(messages: Sequence[Any], where: str) -> list[dict[str, str]]:
    if not messages:
        raise ValueError(f"{where} has no messages. Send at least one.")
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise ValueError(f"{where} has a message without a role, {message!r:.60}. Send role and content.")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{where} has a message whose content is no text, {message!r:.60}. Send role and content.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def check_rows(rows: Sequence[Any], spec: Mapping[str, Any]) -> list[Any]:  # noqa: ARG001 - as of every task
    """Rows as the model takes them: prompts, or lists of messages.

    Args:
        rows: Strings, ``{"prompt": ...}``, ``{"messages": [...]}`` or lists of messages.
        spec: Nothing in it matters here.

    Raises:
        ValueError: No rows, or a row that is not one of these; the message names the row, counted from 0.
    """
    if not rows:
        raise ValueError("There are no rows: the input is empty. Send at least one prompt.")
    if all(isinstance(row, Mapping) and "role" in row for row in rows):
        rows = [rows]  # the messages of one chat
    checked: list[Any] = []
    for number, row in enumerate(rows):
        where = f"row {number}"
        if isinstance(row, Mapping) and "role" not in row:
            given = [name for name in COLUMNS if row.get(name) is not None]
            if len(given) != 1 or row.keys() - set(COLUMNS):
                known = f"has the keys {sorted(map(str, row))}"
                raise ValueError(f"{where} {known}. Send a text, or one of: prompt, messages.")
            row = row[given[0]]
        if hasattr(row, "tolist"):
            row = row.tolist()
        if isinstance(row, (list, tuple)):
            checked.append(_check_messages(row, where))
        elif isinstance(row, str) and row.strip():
            checked.append(row)
        elif isinstance(row, str):
            raise ValueError(f"{where} is an empty prompt. Leave the row out or give it a text.")
        elif row is None or row != row:
            raise ValueError(f"{where} has no prompt (None or NaN). Leave the row out or give it a text.")
        else:
            raise ValueError(f"{where} is a {type(row).__name__}, {row!r:.40}, not a prompt. Send strings or messages.")
    return checked


def writing(spec: Mapping[str, Any], params: Mapping[str, Any]) -> Writing:
    """How to write, from what a caller asked for.

    Raises:
        ValueError: A value is out of its range, or a name is unknown.
    """
    given = {name: value for name, value in params.items() if value is not None}
    if unknown := sorted(given.keys() - _PARAMS):
        raise ValueError(f"Unknown params {unknown}. Known: {', '.join(sorted(_PARAMS))}.")
    stop = given.get("stop", ())
    limit = given.get("max_new_tokens", given.get("max_tokens", spec["max_new_tokens"] or 32))
    return Writing(
        max_new_tokens=int(limit),
        temperature=float(given.get("temperature", 0.0)),
        top_p=float(given.get("top_p", 1.0)),
        seed=int(given["seed"]) if "seed" in given else None,
        stop=tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
    )


def respond(model: TextGenerator, rows: Sequence[Any], params: Mapping[str, Any]) -> list[str]:
    """One text a row.

    Args:
        model: Answers.
        rows: What `check_rows` gave.
        params: ``max_new_tokens`` (or ``max_tokens``), ``temperature``, ``top_p``, ``seed``, ``stop``.

    Raises:
        ValueError: A parameter is out of its range, or a chat is sent to a model without a chat template.
    """
    how = writing(model.bundle.spec, params)
    return [model.answer(row, how) for row in rows]
