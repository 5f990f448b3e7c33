"""text-generation: prompts or chats in, texts out, as ``mlflow.transformers`` gives them.

A prompt is answered with the text that follows it, without the prompt. A chat, a list of messages, is answered with
the assistant's text. Logged as ``llm/v1/completions`` or ``llm/v1/chat`` a model answers with OpenAI's dictionaries.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..generation import TextGenerator, Writing

LIBRARY_CLASS = "AutoModelForCausalLM"
OUTPUTS = ("logits",)
KIND = "generator"
COLUMNS = ("prompt", "messages")
_HOW = ("max_new_tokens", "max_tokens", "temperature", "top_p", "seed", "stop")
"""Keys that say how a row is answered; parameters of a call have the same names."""
_ONLY = {
    "n": (1,),
    "stream": (False,),
    "top_k": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "custom_inputs": ({},),
}
"""Further keys of OpenAI's requests, and the values that ask for nothing that isn't done here."""
OPTIONS = (*_HOW, *_ONLY)


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
    """Rows as ``(prompt or messages, options of its own)``.

    Args:
        rows: Strings, ``{"prompt": ...}``, ``{"messages": [...]}`` (both with `OPTIONS`) or lists of messages.
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
        own: dict[str, Any] = {}
        if isinstance(row, Mapping) and "role" not in row:
            row = {name: value for name, value in row.items() if not _is_missing(value)}
            given = [name for name in COLUMNS if name in row]
            if len(given) != 1 or row.keys() - {*COLUMNS, *OPTIONS}:
                known = f"has the keys {sorted(map(str, row))}"
                raise ValueError(f"{where} {known}. Send a text, or one of: prompt, messages.")
            for name in _ONLY.keys() & row.keys():
                value = row[name].tolist() if hasattr(row[name], "tolist") else row[name]
                if value not in _ONLY[name]:
                    raise ValueError(f"{where} asks for {name}={value!r:.40}, which isn't done here. Leave it out.")
            own = {name: row[name] for name in _HOW if name in row}
            row = row[given[0]]
        if hasattr(row, "tolist"):
            row = row.tolist()
        if isinstance(row, (list, tuple)):
            checked.append((_check_messages(row, where), own))
        elif isinstance(row, str) and row.strip():
            checked.append((row, own))
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
    if unknown := sorted(given.keys() - set(_HOW)):
        raise ValueError(f"Unknown params {unknown}. Known: {', '.join(sorted(_HOW))}.")
    stop = given.get("stop", ())
    stop = stop.tolist() if hasattr(stop, "tolist") else stop
    limit = given.get("max_new_tokens", given.get("max_tokens", spec["max_new_tokens"] or 32))
    return Writing(
        max_new_tokens=int(limit),
        temperature=float(given.get("temperature", 0.0)),
        top_p=float(given.get("top_p", 1.0)),
        seed=int(given["seed"]) if "seed" in given else None,
        stop=tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
    )


def respond(model: TextGenerator, rows: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """One text a row, or one dictionary in the form that the model was logged for.

    Args:
        model: Answers.
        rows: What `check_rows` gave.
        params: ``max_new_tokens`` (or ``max_tokens``), ``temperature``, ``top_p``, ``seed``, ``stop``.

    Raises:
        ValueError: A parameter is out of its range, or a chat is sent to a model without a chat template.
    """
    spec = model.bundle.spec
    form = spec.get("serve_as", "text")
    asked = [(prompt, writing(spec, {**params, **own})) for prompt, own in rows]
    if form == "text":
        return [model.answer(prompt, how) for prompt, how in asked]
    return [_as_openai(model, prompt, how, form) for prompt, how in asked]


def _as_openai(model: TextGenerator, prompt: Any, how: Writing, form: str) -> dict[str, Any]:
    """The answer as ``mlflow.transformers`` gives it for the same form."""
    reply = model.reply(prompt, how)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if reply.cut else "stop"}
    if form == "llm/v1/chat":
        choice["message"] = {"role": "assistant", "content": reply.text}
    else:
        choice["text"] = reply.text
    return {
        "id": str(uuid.uuid4()),
        "object": "chat.completion" if form == "llm/v1/chat" else "text_completion",
        "created": int(time.time()),
        "model": "",
        "choices": [choice],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.new_tokens,
            "total_tokens": reply.prompt_tokens + reply.new_tokens,
        },
    }


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
