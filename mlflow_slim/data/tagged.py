"""Rows of words with a tag for each: lists, as the hub has them, or texts with a space between words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import DataError
from ..runtime.words import joined
from .labels import Missing, parse_list

__all__ = ["clean_tagged", "parse_conll"]

_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_NUMPY_LIST = re.compile(rf"""\[\s*(?:{_QUOTED}\s*,\s*)*{_QUOTED}\s+['"]|\[\s*\d+(?:\s+\d+)+\s*\]$""")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def clean_tagged(
    texts: Sequence[Sequence[Any]], tags: Sequence[Sequence[Any]], *, text: str, label: str
) -> tuple[list[list[str | Missing]], list[list[list[Any] | Missing]]]:
    """Texts with single spaces between words, and their tags, for all splits.

    Args:
        texts: Raw values, one sequence a split: lists of words, or texts in which spaces part them.
        tags: Raw values of the same rows: lists of tags (texts or class ids), or texts in which spaces part them.
        text: Name of the column, for messages.
        label: Likewise.

    Returns:
        Both, with `Missing` where a row can't be used.

    Raises:
        DataError: A column holds something else, or lists that numpy wrote without commas.
    """
    words = [[_pieces(value, text, f"no words in {text!r}") for value in values] for values in texts]
    marks = [[_pieces(value, label, f"no tags in {label!r}") for value in values] for values in tags]
    uneven = Missing(f"another number of tags in {label!r} than of words in {text!r}")
    gap = Missing(f"a word without a tag in {label!r}")
    for own, others in zip(words, marks, strict=True):
        for row, (parts, named) in enumerate(zip(own, others, strict=True)):
            if isinstance(parts, Missing) or isinstance(named, Missing):
                continue
            if len(parts) != len(named):
                others[row] = uneven
            elif any(_is_missing(tag) for tag in named):
                others[row] = gap
    known = [tag for values in marks for row in values if not isinstance(row, Missing) for tag in row]
    are_ids = bool(known) and all(isinstance(tag, int) or _WHOLE.fullmatch(str(tag).strip()) for tag in known)
    return (
        [[v if isinstance(v, Missing) else _text(v, text) for v in values] for values in words],
        [[v if isinstance(v, Missing) else [_tag(tag, are_ids) for tag in v] for v in values] for values in marks],
    )


def _is_missing(tag: Any) -> bool:
    return tag is None or tag != tag or (isinstance(tag, str) and not tag.strip())


def _tag(value: Any, is_id: bool) -> Any:
    return int(value) if is_id else str(value).strip()


def _text(words: Sequence[Any], column: str) -> str | Missing:
    whole = joined([str(word) for word in words])
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError:
        return Missing(f"text in {column!r} that isn't valid Unicode")
    return whole if whole.strip() else Missing(f"no words in {column!r}")


def _pieces(value: Any, column: str, why: str) -> list[Any] | Missing:
    """The items of a list, of one that was written as text, or of a text in which spaces part them."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, str):
        if _NUMPY_LIST.match(value):
            raise DataError(
                f"Column {column!r} holds lists as numpy prints them, without commas: {value!r:.60}. Write the table "
                "as JSON lines or Parquet, which keep lists."
            )
        found = parse_list(value)
        value = found if isinstance(found, list) else value.split()
    elif isinstance(value, int) and not isinstance(value, bool):  # one word's class id in a csv
        value = [value]
    if value is None or value != value:
        return Missing(why)
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"Column {column!r} holds {type(value).__name__} values. It takes lists, or texts with spaces between."
        )
    if any(isinstance(item, (list, tuple, dict)) for item in value):
        raise DataError(f"Column {column!r} holds lists within lists. Write one item for each word.")
    return list(value) or Missing(why)


def parse_conll(text: str, path: Any) -> dict[str, list[Any]]:
    """Sentences of a CoNLL file as columns of lists: a word a line, fields with spaces or tabs, blank lines between.

    The first field is ``tokens`` and the last ``tags``; CoNLL-U's ten are named as it names them, and its lines of
    several words at once are left out. Lines of comments and ``-DOCSTART-`` are none.

    Raises:
        DataError: A line has another number of fields than the first, or only one.
    """
    sentences: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip():
            sentences.append([])
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if fields[0] == "-DOCSTART-" or (line.startswith("#") and (width == len(_CONLLU) or len(fields) != width)):
            continue
        width = width or len(fields)
        if len(fields) != width or width < 2:
            raise DataError(
                f"{path}, line {number} has {len(fields)} fields, the first line {width}; a word and its tag are two "
                "at least, with a space or tab between."
            )
        if width == len(_CONLLU) and not fields[0].isdigit():  # 1-2 stands for two words, 1.1 for none
            continue
        sentences[-1].append(fields)
    kept = [sentence for sentence in sentences if sentence]
    names = _CONLLU if width == len(_CONLLU) else ("tokens", *(f"column_{i}" for i in range(2, width)), "tags")
    return {name: [[fields[i] for fields in sentence] for sentence in kept] for i, name in enumerate(names)}
