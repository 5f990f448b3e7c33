"""Questions with their answers: the parts of a context that are right, in the forms that data sets keep them in."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .labels import Missing

__all__ = ["clean_answers", "squad_rows"]

_NUMPY = re.compile(r"\barray\(")


def clean_answers(
    values: Sequence[Any], contexts: Sequence[Any], *, context: str, label: str
) -> list[dict[str, list[Any]] | Missing]:
    """Right answers of each row as ``{"text": [...], "answer_start": [...]}``; lists without items mean "no answer".

    A place that doesn't hold its text, or isn't given, is looked for: the nearest one that does.

    Args:
        values: Such a mapping, a list of ``{"text": ..., "answer_start": ...}``, a list of texts, one text, or one of
            these written as JSON.
        contexts: The texts they are parts of, or `Missing`.
        context: Name of the column, for messages.
        label: Likewise.

    Raises:
        DataError: The column holds something else.
    """
    return [_row(value, text, context, label) for value, text in zip(values, contexts, strict=True)]


def _row(value: Any, text: Any, context: str, label: str) -> dict[str, list[Any]] | Missing:
    given = _answers(value, label)
    if isinstance(given, Missing) or isinstance(text, Missing):
        return given if isinstance(given, Missing) else {"text": [], "answer_start": []}
    placed = [(answer.strip(), _place(answer, start, text)) for answer, start in given if answer.strip()]
    found = [(answer, start) for answer, start in placed if start >= 0]
    if placed and not found:
        return Missing(f"no answer in {label!r} that is a part of {context!r}")
    return {"text": [answer for answer, _ in found], "answer_start": [start for _, start in found]}


def _place(answer: str, start: int | None, text: str) -> int:
    """Where the answer stands, without the space around it: as given, or nearest to that; -1 where it doesn't."""
    bare = answer.strip()
    if start is not None:
        start += len(answer) - len(answer.lstrip())
        if text[max(start, 0) : max(start, 0) + len(bare)] == bare:
            return max(start, 0)
    places = [match.start() for match in re.finditer(f"(?={re.escape(bare)})", text)]
    return min(places, key=lambda place: abs(place - (start or 0)), default=-1)


def _answers(value: Any, label: str) -> list[tuple[str, int | None]] | Missing:
    """Texts and their places as they were given."""
    value = _plain(value)
    if isinstance(value, str) and (text := value.strip())[:1] in "[{" and text[-1:] in "]}":
        if _NUMPY.search(value):
            raise DataError(
                f"Column {label!r} holds answers as numpy prints them: {value!r:.60}. Write the table as JSON lines or "
                "Parquet, which keep them."
            )
        value = _parsed(value)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return Missing(f"no answer in {label!r} (an empty list says that there is none)")
    if isinstance(value, Mapping):
        if "text" not in value:
            raise DataError(f"Column {label!r} holds mappings without text: {', '.join(map(str, value))}.")
        texts, starts = (_listed(_plain(value.get(key))) for key in ("text", "answer_start"))
        starts = starts or [None] * len(texts)
        if len(texts) != len(starts):
            raise DataError(f"Column {label!r} has {len(texts)} texts with {len(starts)} answer_start in a row.")
        return [_one(text, start, label) for text, start in zip(texts, starts, strict=True)]
    found: list[tuple[str, int | None]] = []
    for item in _listed(value):
        if isinstance(item, Mapping):
            found += _answers(item, label)  # type: ignore[arg-type]  # a mapping is never missing
        else:
            found.append(_one(item, None, label))
    return found


def _one(text: Any, start: Any, label: str) -> tuple[str, int | None]:
    if not isinstance(text, (str, int, float)) or isinstance(text, bool):
        raise DataError(f"Column {label!r} holds {type(text).__name__} values. An answer is a text of the context.")
    if start is not None and (isinstance(start, bool) or not isinstance(start, (int, float)) or start != int(start)):
        raise DataError(f"Column {label!r} has answer_start {start!r:.40}, which is no number of characters.")
    return str(text), None if start is None or start < 0 else int(start)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's arrays and numbers


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _parsed(text: str) -> Any:
    """What a text is written as, or the text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def squad_rows(articles: Sequence[Any], path: Any) -> list[dict[str, Any]]:
    """Rows of a file of SQuAD's own form: articles with ``paragraphs``, which have a ``context`` and its ``qas``.

    Raises:
        DataError: Something of it is missing.
    """
    rows = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    none = bool(asked.get("is_impossible"))
                    rows.append(
                        {
                            "id": asked.get("id"),
                            "title": article.get("title"),
                            "question": asked["question"],
                            "context": paragraph["context"],
                            "answers": [] if none else asked["answers"],
                        }
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} looks like a file of SQuAD and lacks {error} somewhere.") from error
    return rows
