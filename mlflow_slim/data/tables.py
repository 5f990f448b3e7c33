"""`read_tables`: from what the user named to three clean, disjoint tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import DataError
from . import checks
from .answered import clean_answers
from .chats import chat_text, is_chat
from .images import clean_image
from .labels import Missing, clean_labels, clean_text
from .sources import SPLITS, Located, locate
from .splitting import cut
from .tagged import clean_tagged

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["InputKind", "LabelKind", "Tables", "digest_rows", "read_tables"]

InputKind: TypeAlias = Literal["texts", "images"]
"""What the column of inputs holds; images become base64 of their files."""
LabelKind: TypeAlias = Literal["classes", "tags", "texts", "scores", "answers"]
"""What a label column holds: classes that repeat, a class for each word of the text, texts of their own, numbers, or
parts of the second text."""

_CUT = 0.1
"""Share that is cut for validation, and for test, when the user has none."""


@dataclass(frozen=True)
class Tables:
    """Three disjoint tables.

    Attributes:
        train, validation, test: Columns ``text``, ``text_pair`` (for pairs only), ``label`` (int, bool or str, or a
            list of one of them; of answers as `clean_answers` gives them; absent where none was named) and every other
            column of the user's. The index counts from 0.
        name: Short name for people: file stem, folder name or data set name.
        source: What the user named.
        report: Counts and words about what was read, dropped, cut and found, JSON values only.
        revision: Commit of a hub data set, else None.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    name: str
    source: str
    report: Mapping[str, Any]
    revision: str | None = None


@dataclass(frozen=True)
class _Split:
    """One split on the way: usable rows as columns, with their numbers in the file."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    others: dict[str, list[Any]]
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def keys(self) -> list[tuple[str, str | None]]:
        pairs: Sequence[str | None] = self.pairs or [None] * len(self.texts)
        return [checks.input_key(t, p) for t, p in zip(self.texts, pairs, strict=True)]

    def take(self, indices: Sequence[int]) -> _Split:
        return _Split(
            [self.texts[i] for i in indices],
            None if self.pairs is None else [self.pairs[i] for i in indices],
            [self.labels[i] for i in indices],
            {name: [values[i] for i in indices] for name, values in self.others.items()},
            [self.numbers[i] for i in indices],
        )


def read_tables(
    source: str,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = "label",
    labels: LabelKind = "classes",
    inputs: InputKind = "texts",
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    seed: int = 0,
    label_separator: str | None = None,
    on_bad_rows: Literal["refuse", "drop"] = "refuse",
    revision: str | None = None,
) -> Tables:
    """Three disjoint tables with columns ``text``, ``text_pair`` and ``label``.

    Rows of train or validation whose input is also in test, and rows of train that are also in validation, are taken
    out of the former and counted, whatever ``on_bad_rows`` says: otherwise the test would not be one.

    Args:
        source: ``demo``, a file (csv, tsv, json, jsonl, parquet; also .gz), a folder with files named train*,
            validation* and test*, a folder of ``datasets.save_to_disk``, or a hub data set id
            (``owner/name``, ``owner/name:configuration``, ``owner/name@revision``). May be empty when ``train_split``
            is a file.
        text: Column of the text.
        text_pair: Column of the second text, for pairs; None or empty for single texts.
        label: Column of the label; None only where labels are texts, for rows of a text alone.
        labels: What they are. With ``tags`` the texts are words with single spaces between, and the labels lists.
        inputs: What the column ``text`` holds. With ``images`` paths, bytes, arrays or what ``datasets`` keeps.
        train_split: Name of the split, or a file; None for what is usual.
        validation_split: As above; cut from train when there is none.
        test_split: As above; cut from train when there is none.
        seed: For cutting only.
        label_separator: What stands between labels of one row in multi-label data kept as text.
        on_bad_rows: ``refuse`` raises at rows without text or label, malformed rows, and labels that train lacks;
            ``drop`` leaves them out; both count.
        revision: Commit, branch or tag of a hub data set.

    Raises:
        InputNotFound: Nothing of that name is there.
        DataError: The rows can't be used as asked.
    """
    wanted = {"text": text, **({"text_pair": text_pair} if text_pair else {})}
    if label is not None or labels in ("classes", "tags", "answers"):
        wanted["label"] = label or ""
    _check_options(wanted, on_bad_rows)
    asked = {"train": train_split, "validation": validation_split, "test": test_split}
    located = locate(source, asked, wanted=list(wanted.values()), revision=revision)
    shown = source or str(train_split)
    for split, rows in located.tables.items():
        where = shown if split == "all" else f"{split} of {shown}"
        checks.check_columns(rows.columns, wanted, where, header_hint=not rows.typed)
        if not len(rows) and not rows.malformed:
            raise DataError(f"{where} has columns but no rows. Give a file with at least ten rows.")
    if label is not None:
        located = _without_withheld_labels(located, label)

    if labels == "tags" and text_pair:
        raise DataError("text_pair is for pairs of texts, and words are tagged in one. Leave it out.")
    if labels == "answers" and not text_pair:
        raise DataError(
            "Questions are answered from a context: name its column with text_pair=... (text=question "
            "text_pair=context label=answers, as in SQuAD)."
        )
    are_classes = labels in ("classes", "tags")
    splits, faults, dropped, counts = _usable(located, wanted, label_separator, labels, inputs)
    if "train" in splits and are_classes:
        splits = _drop_unseen(splits, wanted["label"], faults, dropped)
    if faults and on_bad_rows == "refuse":
        raise checks.refuse(faults, shown)
    for name, own in splits.items():
        if not len(own):
            raise DataError(f"{name} of {shown} has no usable row left: {_in_words(dropped.get(name, {}))}.")

    whole = splits.get("all") or splits["train"]
    require = checks.require_tags if labels == "tags" else checks.require_classes
    if are_classes:
        checks.require_labels_that_repeat(whole.labels, wanted["label"], shown)
        require(whole.labels, wanted["label"], shown)

    made: dict[str, str] = {}
    splits = _complete(splits, seed, shown, made, labels)
    overlap = _overlap(splits)
    contradictory = checks.contradictions(
        [key for name in SPLITS for key in splits[name].keys], [x for name in SPLITS for x in splits[name].labels]
    )
    before = {name: len(split) for name, split in splits.items()}
    splits = _disjoint(splits, shown)
    removed = {
        name: before[name] - len(splits[name]) for name in ("train", "validation") if before[name] > len(splits[name])
    }
    late: list[tuple[str, str, Sequence[int]]] = []
    if are_classes:
        splits = _drop_unseen(splits, wanted["label"], late, dropped)
    if late and on_bad_rows == "refuse":
        raise checks.refuse(late, shown)
    _require_sound(splits, shown)
    if are_classes:
        require(splits["train"].labels, wanted["label"], f"train of {shown}")

    report: dict[str, Any] = {
        "source_kind": located.kind,
        "formats": {name: rows.kind for name, rows in located.tables.items()},
        "files": dict(located.files),
        "columns": wanted,
        "chats": labels == "texts"
        and any(is_chat(v) for t in located.tables.values() for v in t.columns[wanted["text"]]),
        "rows_read": {name: len(rows) + len(rows.malformed) for name, rows in located.tables.items()},
        "rows": {name: len(splits[name]) for name in SPLITS},
        "dropped": {name: dict(reasons) for name, reasons in dropped.items() if reasons},
        "made": {name: made.get(name, "as given") for name in SPLITS},
        "inputs_shared_between_splits": overlap,
        "removed_as_also_in_a_later_split": removed,
        "repeated_inputs_within_split": {n: len(splits[n]) - len(set(splits[n].keys)) for n in SPLITS},
        "inputs_with_contradictory_labels": contradictory,
        "label_counts": {
            name: {
                str(k): n for k, n in sorted(checks.label_names(splits[name].labels).items(), key=lambda kn: str(kn[0]))
            }
            for name in (SPLITS if are_classes else ())
        },
        "notes": [
            *located.notes,
            *dict.fromkeys(note for rows in located.tables.values() for note in rows.notes),
            *(f"{what}: {count}" for what, count in counts.items()),
        ],
        "seed": seed,
    }
    frames = {name: _frame(splits[name], with_label="label" in wanted) for name in SPLITS}
    return Tables(**frames, name=located.name, source=shown, report=report, revision=located.revision)


def digest_rows(frame: pd.DataFrame) -> str:
    """sha256 over text, pair and label of every row in order, 64 hex digits; the same on every version of pandas.

    >>> import pandas as pd
    >>> digest_rows(pd.DataFrame({"text": ["a"], "label": [1]}))[:16]
    'd211b25c93f1f20b'
    """
    sha = hashlib.sha256()
    pairs = frame["text_pair"].tolist() if "text_pair" in frame else [None] * len(frame)
    for row in zip(frame["text"].tolist(), pairs, frame["label"].tolist(), strict=True):
        sha.update(json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n")
    return sha.hexdigest()


def _check_options(wanted: Mapping[str, str], on_bad_rows: str) -> None:
    if on_bad_rows not in ("refuse", "drop"):
        raise DataError(f"on_bad_rows must be refuse or drop, got {on_bad_rows!r}.")
    nameless = [option for option, name in wanted.items() if not name]
    if nameless:
        raise DataError(f"{nameless[0]} must name a column, got nothing. Write {nameless[0]}=<column>.")
    doubled = [name for name, count in Counter(wanted.values()).items() if count > 1]
    if doubled:
        options = " and ".join(option for option, name in wanted.items() if name == doubled[0])
        raise DataError(f"{options} both name the column {doubled[0]!r}. Name different columns.")


def _without_withheld_labels(located: Located, label: str) -> Located:
    """Without validation or test splits that have no label at all, as benchmarks ship theirs, unless named."""
    empty = [
        name
        for name, rows in located.tables.items()
        if name in ("validation", "test")
        and name not in located.named
        and all(_is_blank(v) for v in rows.columns[label])
    ]
    if not empty:
        return located
    tables = {name: rows for name, rows in located.tables.items() if name not in empty}
    notes = tuple(
        f"the {name} split has no label in any of its {len(located.tables[name])} rows: not used" for name in empty
    )
    return replace(located, tables=tables, notes=(*located.notes, *notes))


def _is_blank(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _usable(
    located: Located, wanted: Mapping[str, str], separator: str | None, kind: LabelKind, inputs: InputKind
) -> tuple[dict[str, _Split], list[tuple[str, str, Sequence[int]]], dict[str, Counter[str]], dict[str, int]]:
    """Usable rows of each table, what was wrong with the others, how many by reason, what was done to labels."""
    tables = located.tables
    column = wanted.get("label")
    labels: list[list[Any]]
    counts: dict[str, int] = {}
    texts = [rows.columns[wanted["text"]] for rows in tables.values()]
    if inputs == "images":
        folders = [Path(file).parent for files in located.files.values() for file in files.split(", ")]
        texts = [[clean_image(value, wanted["text"], folders) for value in values] for values in texts]
    elif kind != "tags":
        texts = [_texts(values, wanted["text"], may_be_chats=kind == "texts") for values in texts]
    if column is None:
        labels = [[""] * len(rows) for rows in tables.values()]
    elif kind == "tags":
        tags = [rows.columns[column] for rows in tables.values()]
        texts, labels = clean_tagged(texts, tags, text=wanted["text"], label=column)
    elif kind == "answers":
        contexts, own = wanted["text_pair"], [rows.columns[column] for rows in tables.values()]
        whole = [[clean_text(value, contexts) for value in rows.columns[contexts]] for rows in tables.values()]
        labels = [
            clean_answers(values, parts, context=contexts, label=column)
            for values, parts in zip(own, whole, strict=True)
        ]
    elif kind == "scores":
        labels = [[_number(value, column) for value in rows.columns[column]] for rows in tables.values()]
    elif kind == "texts":
        labels = [[clean_text(value, column) for value in rows.columns[column]] for rows in tables.values()]
    else:
        labels, counts = clean_labels(
            [rows.columns[column] for rows in tables.values()],
            typed=[rows.typed for rows in tables.values()],
            separator=separator or None,
            column=column,
        )
    splits: dict[str, _Split] = {}
    faults: list[tuple[str, str, Sequence[int]]] = []
    dropped: dict[str, Counter[str]] = {}
    for (name, rows), own_texts, own_labels in zip(tables.items(), texts, labels, strict=True):
        pair = wanted.get("text_pair")
        pairs = [clean_text(v, pair) for v in rows.columns[pair]] if pair else None
        by_reason: dict[str, list[int]] = {}
        if rows.malformed:
            by_reason[f"another number of fields than the {len(rows.columns)} of the header"] = rows.malformed
        keep = []
        for index in range(len(rows)):
            values = (own_texts[index], *((pairs[index],) if pairs else ()), own_labels[index])
            bad = next((v for v in values if isinstance(v, Missing)), None)
            if bad is None:
                keep.append(index)
            else:
                by_reason.setdefault(bad.why, []).append(rows.numbers[index])
        faults += [(name, why, numbers) for why, numbers in by_reason.items()]
        dropped[name] = Counter({why: len(numbers) for why, numbers in by_reason.items()})
        others = {n: v for n, v in rows.columns.items() if n not in wanted.values()}
        splits[name] = _Split(own_texts, pairs, own_labels, others, rows.numbers).take(keep)  # type: ignore[arg-type]
    return splits, faults, dropped, counts


def _number(value: Any, column: str) -> float | Missing:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return Missing(f"no number in {column!r}")
    return number if math.isfinite(number) else Missing(f"no number in {column!r}")


def _texts(values: Sequence[Any], column: str, *, may_be_chats: bool) -> list[str | Missing]:
    """Texts of a column; of chats, their JSON, where models are asked."""
    if not may_be_chats or not any(map(is_chat, values)):
        return [clean_text(value, column) for value in values]
    if others := [value for value in values if isinstance(value, str) and value.strip()]:
        raise DataError(
            f"Column {column!r} holds chats in some rows and texts in others, such as {others[0]!r:.60}. Write the "
            'texts as chats too: [{"role": "user", "content": ...}].'
        )
    return [chat_text(v, column) if is_chat(v) else clean_text(v, column) for v in values]


def _drop_unseen(
    splits: Mapping[str, _Split],
    column: str,
    faults: list[tuple[str, str, Sequence[int]]],
    dropped: dict[str, Counter[str]],
) -> dict[str, _Split]:
    """Without rows whose label train lacks; they are added to ``faults`` and ``dropped``."""
    known = set(checks.label_names(splits["train"].labels))
    result = dict(splits)
    for name in ("validation", "test"):
        if name not in splits:
            continue
        split = splits[name]
        unseen = [[x for x in (v if isinstance(v, list) else [v]) if x not in known] for v in split.labels]
        numbers = [split.numbers[i] for i, names in enumerate(unseen) if names]
        if not numbers:
            continue
        names = sorted({repr(x) for row in unseen for x in row})
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        faults.append((name, f"a label in {column!r} that train has in no row: {listed}", numbers))
        dropped.setdefault(name, Counter())["label not in train"] += len(numbers)
        result[name] = split.take([i for i, row in enumerate(unseen) if not row])
    return result


def _complete(
    splits: Mapping[str, _Split], seed: int, shown: str, made: dict[str, str], labels: LabelKind
) -> dict[str, _Split]:
    """All three splits; the ones that are missing are cut from train (or from the whole), ``made`` says how."""
    whole = "all" if "all" in splits else "train"
    missing = [name for name in ("validation", "test") if name not in splits]
    if not missing:
        return dict(splits)
    pool = splits[whole]
    # Inputs that are in a given split anyway would leave train again; don't cut from them.
    given = {key for name in ("validation", "test") if name in splits for key in splits[name].keys}
    if given:
        pool = pool.take([i for i, key in enumerate(pool.keys) if key not in given])
    shares = {"train": 1 - _CUT * len(missing), **dict.fromkeys(missing, _CUT)}
    what = shown if whole == "all" else f"train of {shown}"
    # Questions about one context stay together: a model would know it from training.
    keys = pool.keys if labels != "answers" else [key[1] for key in pool.keys]
    indices, how = cut(keys, pool.labels if labels == "classes" else None, shares, seed=seed, what=what)
    made.update(dict.fromkeys(shares, f"cut: {how}"))
    result = {name: split for name, split in splits.items() if name not in ("all", "train")}
    result |= {name: pool.take(own) for name, own in indices.items()}
    if given:  # counted with the other overlaps, so keep them visible until then
        back = [i for i, key in enumerate(splits[whole].keys) if key in given]
        result["train"] = _concatenate(result["train"], splits[whole].take(back))
    return result


def _concatenate(first: _Split, second: _Split) -> _Split:
    pairs = None if first.pairs is None else [*first.pairs, *(second.pairs or [])]
    others = {name: [*values, *second.others[name]] for name, values in first.others.items()}
    numbers = [*first.numbers, *second.numbers]
    return _Split([*first.texts, *second.texts], pairs, [*first.labels, *second.labels], others, numbers)


def _overlap(splits: Mapping[str, _Split]) -> dict[str, int]:
    """How many different inputs each two splits share."""
    keys = {name: set(splits[name].keys) for name in SPLITS}
    couples = (("train", "test"), ("train", "validation"), ("validation", "test"))
    return {f"{a} and {b}": len(keys[a] & keys[b]) for a, b in couples}


def _disjoint(splits: Mapping[str, _Split], shown: str) -> dict[str, _Split]:
    """Without rows of train that are in validation or test, and rows of validation that are in test."""
    result = dict(splits)
    for name, later in (("train", ("validation", "test")), ("validation", ("test",))):
        taken = {key for other in later for key in splits[other].keys}
        result[name] = splits[name].take([i for i, key in enumerate(splits[name].keys) if key not in taken])
        if not len(result[name]):
            raise DataError(
                f"Every row of {name} of {shown} is also in {' or '.join(later)}, so nothing is left to use it for. "
                "Give different rows, or name one file and let it be cut."
            )
    return result


def _require_sound(splits: Mapping[str, _Split], shown: str) -> None:
    for name in ("validation", "test"):
        if not len(splits[name]):
            raise DataError(f"No usable row is left in {name} of {shown}. Its labels are not those of train.")


def _in_words(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{count} with {why}" for why, count in reasons.items()) or "it was empty"


def _frame(split: _Split, *, with_label: bool) -> pd.DataFrame:
    import pandas as pd

    columns: dict[str, Any] = {"text": pd.Series(split.texts, dtype=object)}
    if split.pairs is not None:
        columns["text_pair"] = pd.Series(split.pairs, dtype=object)
    if with_label:
        kinds = {type(x) for x in split.labels}
        dtype = "int64" if kinds == {int} else "bool" if kinds == {bool} else object
        columns["label"] = pd.Series(split.labels, dtype=dtype)
    for name, values in split.others.items():
        own = name
        while own in columns:  # a column of the user's that is called as one of ours
            own += "_original"
        columns[own] = pd.Series(values)
    return pd.DataFrame(columns)
