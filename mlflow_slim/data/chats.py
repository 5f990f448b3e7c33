"""Chats in a column: lists of messages, each with a role and a text. Inside tables they are JSON, one text a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .labels import Missing

__all__ = ["chat_text", "is_chat", "messages_of"]


def is_chat(value: Any) -> bool:
    """Whether a cell is meant as a chat: a list of objects with a role."""
    return isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) and "role" in part for part in value)


def chat_text(value: Any, column: str) -> str | Missing:
    """A chat as JSON, or what is wrong with it."""
    for part in value:
        if not (isinstance(part, Mapping) and isinstance(part.get("role"), str)):
            return Missing(f"a message without a role in {column!r}")
        if not isinstance(part.get("content"), str) or not part["content"].strip():
            return Missing(f"a message without a text in {column!r}")
    return json.dumps([{"role": part["role"], "content": part["content"]} for part in value], ensure_ascii=False)


def messages_of(text: str) -> list[dict[str, str]]:
    """The chat that `chat_text` made a text of."""
    found: list[dict[str, str]] = json.loads(text)
    return found
