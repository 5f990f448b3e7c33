"""Values as a user means them: what is a text, what is a label, what is missing; the same whatever the file format.

Labels end as int, bool or str, or as a list of one of them for multi-label data. In a csv everything is text, so a
label column in which every value is a whole number is ints, and one of true and false is bools, just as the same
table in Parquet would have them. Numbers that aren't whole are kept as their text. Where splits or rows disagree
about the kind, all become text.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import DataError

__all__ = ["Missing", "clean_labels", "clean_text", "parse_list"]

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,18}\.[0-9]*([eE][+-]?[0-9]{1,2})?")
_BOOLEANS = {"true": True, "false": False}
_ALWAYS_MISSING = {"", "nan", "NaN", "<NA>", "#N/A"}
# "None" or "NA" may be a class of its own among words, but not among numbers
_MISSING_AMONG_NUMBERS = _ALWAYS_MISSING | {"NA", "N/A", "n/a", "null", "NULL", "None"}


class Missing:
    """Stands for a value that can't be used; ``why`` is counted in the report."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"Missing({self.why!r})"


def clean_text(value: Any, column: str) -> str | Missing:
    """A text as it is, a number as its text; `Missing` when there is none.

    Raises:
        DataError: The column holds lists or objects.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Missing(f"no text in {column!r}")
    if isinstance(value, (list, tuple, dict, bytes)):
        raise DataError(
            f"Column {column!r} holds {type(value).__name__} values, not text. Join them into one text a row first."
        )
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        return Missing(f"no text in {column!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Missing(f"text in {column!r} that isn't valid Unicode")
    return text


def clean_labels(
    splits: Sequence[Sequence[Any]], *, typed: Sequence[bool], separator: str | None, column: str
) -> tuple[list[list[Any]], dict[str, int]]:
    """Labels of all splits in one kind, and counts of what was done to them.

    Args:
        splits: Raw values, one sequence a split; they are looked at together, so that a test split of numbers doesn't
            differ from a train split of words.
        typed: For each split, False when its values come from a csv.
        separator: What stands between the labels of a row in multi-label data; None for one label a row.
        column: Name of the column, for messages.

    Returns:
        The labels, with `Missing` where there is none, and counts by name (empty when nothing was done).

    Raises:
        DataError: The values are neither labels nor lists of labels, or some are lists and some are not.
    """
    missing = Missing(f"no label in {column!r}")
    counts: dict[str, int] = {}
    plain = [[_plain(v, missing) for v in values] for values in splits]
    if separator is not None:
        plain = [[_split(v, separator) for v in values] for values in plain]
    elif _all_look_like_lists(plain, typed):
        plain = [[parse_list(v) if isinstance(v, str) else v for v in values] for values in plain]

    present = [v for values in plain for v in values if not isinstance(v, Missing)]
    lists = sum(isinstance(v, list) for v in present)
    if lists and lists < len(present):
        raise DataError(f"Column {column!r} holds lists in {lists} rows and single labels in {len(present) - lists}.")
    bad = next((x for v in present for x in (v if isinstance(v, list) else [v]) if isinstance(x, (list, dict))), None)
    if bad is not None:
        raise DataError(f"Column {column!r} holds {type(bad).__name__} values. A label is a text, a number or a bool.")

    multi_label = lists > 0
    flat = [x for v in present for x in (v if multi_label else [v])]
    stripped = sum(isinstance(x, str) and x != x.strip() for x in flat)
    if stripped:
        counts["labels with outer whitespace, stripped"] = stripped
    from_text = [isinstance(x, str) for x in flat]
    convert = _conversion(flat, may_parse=(all(from_text) and not any(typed)) or 0 < sum(from_text) < len(from_text))

    def one(value: Any) -> Any:
        if isinstance(value, Missing):
            return value
        if multi_label:
            # a set would lose the order; a gap inside a list is no label
            kept = [convert(x) for x in value]
            return list(dict.fromkeys(x for x in kept if x is not None))
        converted = convert(value)
        return missing if converted is None else converted

    return [[one(v) for v in values] for values in plain], counts


def _plain(value: Any, missing: Missing) -> Any:
    """A label without the wrapping of the library it came from; a float that is whole is an int."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    if isinstance(value, str):
        return missing if value.strip() in _ALWAYS_MISSING else value
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    if isinstance(value, (list, tuple, set)):
        inner = [_plain(v, missing) for v in value]
        return [v for v in inner if not isinstance(v, Missing)]
    return value if isinstance(value, (int, dict)) else str(value)


def _split(value: Any, separator: str) -> Any:
    if not isinstance(value, str):
        return value if isinstance(value, (list, Missing)) else [value]
    if value.strip() == "[]":
        return []
    return [part.strip() for part in value.split(separator) if part.strip()]


def _all_look_like_lists(splits: Iterable[Sequence[Any]], typed: Sequence[bool]) -> bool:
    """Whether the labels are lists that a csv could only keep as their text."""
    if any(typed):
        return False
    present = [v for values in splits for v in values if not isinstance(v, Missing)]
    return bool(present) and all(isinstance(parse_list(v), list) for v in present)


def parse_list(value: str) -> Any:
    """The list that a text is written as, or the text."""
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return parsed if isinstance(parsed, list) else value
    return value


def _conversion(flat: Sequence[Any], *, may_parse: bool) -> Callable[[Any], Any]:
    """How to bring all labels to one kind: ints, bools or texts; None for a value that means "missing" in that kind."""
    kinds = {type(x) for x in flat}
    if kinds <= {int} or kinds <= {bool}:
        return lambda x: x
    words = {x.strip() for x in flat if isinstance(x, str)}
    numbers = words - _MISSING_AMONG_NUMBERS
    if may_parse and bool not in kinds and (numbers or int in kinds):
        whole = all(_INTEGER.fullmatch(w) or (_DECIMAL.fullmatch(w) and float(w).is_integer()) for w in numbers)
        if whole:
            return lambda x: x if isinstance(x, int) else _int(x.strip()) if x.strip() in numbers else None
        if all(_INTEGER.fullmatch(w) or _DECIMAL.fullmatch(w) for w in numbers):
            return lambda x: repr(float(x)) if isinstance(x, int) or x.strip() in numbers else None
    if may_parse and int not in kinds and (numbers or bool in kinds) and all(w.lower() in _BOOLEANS for w in numbers):
        return lambda x: x if isinstance(x, bool) else _BOOLEANS.get(x.strip().lower())
    if kinds == {int, str} and all(_DECIMAL.fullmatch(w) for w in words):
        return lambda x: repr(float(x))  # a float column, whole numbers among others: one spelling for all
    return lambda x: x.strip() if isinstance(x, str) else str(x)


def _int(word: str) -> int:
    return int(word) if _INTEGER.fullmatch(word) else int(float(word))
