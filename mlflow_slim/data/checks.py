"""What can't be used or should be known about rows: missing columns and values, contradictions, lone classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import DataError

__all__ = [
    "check_columns",
    "contradictions",
    "describe_rows",
    "input_key",
    "label_names",
    "refuse",
    "require_classes",
    "require_labels_that_repeat",
    "require_tags",
]

_SHOWN = 5


def describe_rows(numbers: Sequence[int]) -> str:
    """Row numbers for a message, the first few.

    >>> describe_rows([4]), describe_rows([1, 2, 3, 4, 5, 6])
    ('row 4', 'rows 1, 2, 3, 4, 5, ...')
    """
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    return f"row{'s' if len(numbers) > 1 else ''} {shown}"


def refuse(faults: Sequence[tuple[str, str, Sequence[int]]], source: str) -> DataError:
    """The error for rows that can't be used.

    Args:
        faults: Split, reason, row numbers.
        source: The data as the user named them.
    """
    count = len({(split, number) for split, _, numbers in faults for number in numbers})
    parts = [f"{split}: {len(numbers)} with {why} ({describe_rows(numbers)})" for split, why, numbers in faults]
    return DataError(
        f"{count} row{'s' if count > 1 else ''} of {source} can't be used. {'; '.join(parts)}. "
        "Rows are counted from 1, without the header. Correct them, or write on_bad_rows=drop to leave them out and "
        "have them counted in the report."
    )


def check_columns(found: Iterable[str], wanted: Mapping[str, str], where: str, *, header_hint: bool) -> None:
    """Every named column is there, under exactly that name.

    Args:
        found: Columns of the table.
        wanted: Column name by the option that names it.
        where: The table in words.
        header_hint: True for files whose first line might not be a header.

    Raises:
        DataError: Not so; names the columns found and the nearest.
    """
    names = list(found)
    faults = []
    for option, name in wanted.items():
        if name in names:
            continue
        near = next((n for n in names if n.strip().casefold() == name.strip().casefold()), None)
        hint = f" Did you mean {near!r}? Case and spaces count." if near else ""
        if not near:
            close = get_close_matches(name.casefold(), [n.casefold() for n in names], n=1)
            near = next((n for n in names if close and n.casefold() == close[0]), None)
            hint = f" Did you mean {near!r}?" if near else ""
        faults.append(f"{where} has no column {name!r} ({option}={name}).{hint}")
    if faults:
        # A file without a header has a first row for names; long names would drown the message.
        listed = ", ".join(repr(n if len(n) <= 60 else n[:57] + "...") for n in names[:30]) or "none"
        header = " If the first line is not a header, add one." if header_hint else ""
        option = next(iter(wanted))
        raise DataError(f"{' '.join(faults)} Columns found: {listed}. Name yours with {option}=<column>.{header}")


def input_key(text: str, pair: str | None) -> tuple[str, str | None]:
    """What makes two inputs the same: outer whitespace doesn't count.

    >>> input_key("a ", None) == input_key("a", None)
    True
    """
    return text.strip(), None if pair is None else pair.strip()


def label_names(labels: Iterable[Any]) -> Counter[Any]:
    """How many rows have each label; the rows of a list of labels count for each."""
    return Counter(x for label in labels for x in (label if isinstance(label, list) else [label]))


def contradictions(keys: Sequence[Any], labels: Sequence[Any]) -> int:
    """How many inputs occur with more than one label (or set of labels)."""
    seen: dict[Any, set[str]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        seen[key].add(repr(sorted(map(repr, label)) if isinstance(label, list) else label))
    return sum(len(s) > 1 for s in seen.values())


def require_classes(labels: Sequence[Any], column: str, where: str) -> None:
    """There is something to tell apart.

    Raises:
        DataError: All rows have the same label.
    """
    counts = label_names(labels)
    multi_label = any(isinstance(label, list) for label in labels)
    if multi_label and any(0 < n < len(labels) for n in counts.values()):
        return
    if multi_label or len(counts) < 2:
        only = repr(next(iter(counts))) if counts else "no label"
        raise DataError(
            f"Column {column!r} has one class only in {where}: all {len(labels)} rows have {only}. "
            "A classifier needs at least two; check label=<column> and how the rows were chosen."
        )


def require_tags(labels: Sequence[Any], column: str, where: str) -> None:
    """Words have different tags.

    Raises:
        DataError: All words have the same.
    """
    counts = label_names(labels)
    if len(counts) < 2:
        only = repr(next(iter(counts))) if counts else "no tag"
        raise DataError(f"Column {column!r} has one tag only in {where}: all words have {only}. Check label=<column>.")


def require_labels_that_repeat(labels: Sequence[Any], column: str, where: str) -> None:
    """The column is one of classes and not of ids, texts or measurements.

    Raises:
        DataError: Nearly every row has a label of its own.
    """
    counts = label_names(labels)
    if len(labels) >= 20 and len(counts) > 0.9 * len(labels) and not any(isinstance(label, list) for label in labels):
        raise DataError(
            f"Column {column!r} has {len(counts)} different values in the {len(labels)} rows of {where}, so it holds "
            "no classes. Check label=<column>."
        )
