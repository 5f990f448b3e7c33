"""One data file as columns of plain Python values: delimited text, JSON, JSON lines, Parquet, CoNLL; each also gzipped.

A whole number stays an int and a missing value stays None whatever the format, which is why nothing here goes through
pandas: it turns a column of ints with one gap into floats.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, InputNotFound
from .answered import squad_rows
from .delimited import parse_delimited
from .tagged import parse_conll

__all__ = ["FORMATS", "Rows", "arrow_columns", "file_format", "join_rows", "make_rows", "read_file"]

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".conll": "conll",
    ".conllu": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
_UNPACKED_LIMIT_BYTES = 4 * 2**30
_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True)
class Rows:
    """A table as it was read.

    Attributes:
        columns: Values by column name, all columns of one length.
        numbers: Row number of each row in its file, from 1, for messages.
        kind: Format it came from.
        typed: False when every value is text that stands for something (csv).
        malformed: Row numbers that could not be read as a row.
        notes: What a person should know about the reading.
    """

    columns: Mapping[str, list[Any]]
    numbers: list[int]
    kind: str
    typed: bool = True
    malformed: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)


def make_rows(columns: Mapping[Any, list[Any]], kind: str) -> Rows:
    """Rows numbered from 1."""
    named = {str(name): values for name, values in columns.items()}
    return Rows(named, list(range(1, len(next(iter(named.values()), [])) + 1)), kind)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Several shards as one table; row numbers go on counting, columns that a shard lacks are None there."""
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns = {name: [v for part in parts for v in part.columns.get(name, [None] * len(part))] for name in names}
    numbers: list[int] = []
    malformed: list[int] = []
    for part in parts:
        start = max([0, *numbers, *malformed])
        numbers += [start + n for n in part.numbers]
        malformed += [start + n for n in part.malformed]
    return Rows(columns, numbers, parts[0].kind, all(p.typed for p in parts), malformed, parts[0].notes)


def file_format(path: Path) -> str | None:
    """The format that a file's name promises, such as ``csv``; None when it promises none of ours.

    >>> file_format(Path("train.JSONL.gz")), file_format(Path("notes.txt"))
    ('jsonl', None)
    """
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path, *, wanted: Sequence[str]) -> Rows:
    """The rows of one file.

    Args:
        path: A file whose name ends as one of `FORMATS`, or that and ``.gz``.
        wanted: Columns that the user named; they help to tell a csv's separator.

    Raises:
        InputNotFound: There is no such file.
        DataError: The file is empty, isn't what its name says, or isn't text in UTF-8 or UTF-16.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path} has an ending that isn't known. Known: {', '.join(FORMATS)}, each also with .gz.")
    content = _read_bytes(path)
    if not content.strip():
        raise DataError(f"{path} is empty. Give a file with a header and at least ten rows.")
    if kind == "parquet":
        return _read_parquet(content, path)
    text = _decode(content, path)
    if not text.strip():
        raise DataError(f"{path} is empty. Give a file with a header and at least ten rows.")
    if kind in ("csv", "tsv"):
        return _read_delimited(text, path, kind, wanted)
    if kind == "conll":
        return make_rows(parse_conll(text, path), kind)
    return _read_json(text, path, kind)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputNotFound(f"There is no file {path.absolute()}.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        with gzip.open(path) as unpacked:
            content = unpacked.read(_UNPACKED_LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}). Copy or make it again.") from error
    if len(content) > _UNPACKED_LIMIT_BYTES:
        raise DataError(
            f"{path} unpacks to more than {_UNPACKED_LIMIT_BYTES // 2**30} GiB. Split it into smaller files."
        )
    return content


def _decode(content: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            line = content.count(b"\n", 0, error.start) + 1
            odd = f"byte 0x{content[error.start]:02x} at line {line}"
        else:
            odd = f"a broken character at byte {error.start}"
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} text: {odd}. "
            "Save it as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 old > new."
        ) from error


def _read_delimited(text: str, path: Path, kind: str, wanted: Sequence[str]) -> Rows:
    if text.count("\x00") > len(text) // 4:
        raise DataError(f"{path} looks like UTF-16 without a byte order mark. Save it as UTF-8.")
    parsed = parse_delimited(text, wanted=wanted, preferred="\t" if kind == "tsv" else ",", where=str(path))
    header = [name.strip() for name in parsed.header]
    twice = sorted({name for name in header if header.count(name) > 1 and name in wanted})
    if twice:
        raise DataError(f"{path} has several columns named {twice[0]!r}. Rename all but one.")
    # Unnamed and repeated columns nobody asked for are kept under a name of their own.
    names: list[str] = []
    for index, name in enumerate(parsed.header):
        name = name if name in wanted else name.strip()
        names.append(name if name and name not in names else f"{name or 'column'}_{index + 1}")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for name, values in zip(names, zip(*parsed.rows, strict=True) if parsed.rows else [()] * len(names), strict=True):
        columns[name] = list(values)
    notes: tuple[str, ...] = (
        () if parsed.separator == ("\t" if kind == "tsv" else ",") else (f"separator: {parsed.separator_name}",)
    )
    notes += () if parsed.quoted else ("quotes were read as plain characters",)
    return Rows(columns, parsed.numbers, kind, False, parsed.malformed, notes)


def _read_parquet(content: bytes, path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        columns = arrow_columns(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
    return make_rows(columns, "parquet")


def arrow_columns(table: Any, features: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
    """Columns of an Arrow table as plain values; class ids become class names where they are known.

    Args:
        table: ``pyarrow.Table``.
        features: Column features in the form that ``datasets`` writes into the schema's metadata; read from there when
            not given.
    """
    described: Any = features or {}
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata and features is None:
        try:
            described = json.loads(metadata)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            described = {}
    # pandas keeps a named or non-trivial index as a column of this name; it is not the user's
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    return {
        name: _class_names(table.column(name).to_pylist(), described.get(name) if isinstance(described, dict) else None)
        for name in names
    }


def _class_names(values: list[Any], feature: Any) -> list[Any]:
    """Values with class ids replaced by names; -1, the hub's mark for a withheld label, becomes None."""
    if isinstance(feature, list) and len(feature) == 1:  # how older versions of datasets wrote a sequence
        feature = {"_type": "Sequence", "feature": feature[0]}
    if not isinstance(feature, Mapping):
        return values
    inner = feature.get("feature")
    if feature.get("_type") in ("Sequence", "List", "LargeList") and isinstance(inner, Mapping):
        return [v if v is None else _class_names(list(v), inner) for v in values]
    if feature.get("_type") != "ClassLabel" or not isinstance(feature.get("names"), list):
        return values
    names = feature["names"]
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else None if v == -1 else v for v in values]


def _read_json(text: str, path: Path, kind: str) -> Rows:
    whole: Any = None
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply. Write one object a line.") from error
    except ValueError as error:
        # "Extra data" after a whole value means one value a line, under whichever ending
        if kind == "json" and not str(error).startswith("Extra data"):
            raise DataError(f"{path} is not JSON: {error}. Write a list of objects, or one object a line.") from error
        return make_rows(_columns_of(_read_lines(text, path), path), "jsonl")
    if isinstance(whole, dict) and "\n" not in text.strip() and kind == "jsonl":
        whole = [whole]
    return make_rows(_json_table(whole, path), kind)


def _read_lines(text: str, path: Path) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}. Write one object a line.") from error
    return records


def _json_table(whole: Any, path: Path) -> dict[str, list[Any]]:
    """A whole JSON document as columns: a list of objects, an object of columns, one of these under a single key,
    or SQuAD's articles.
    """
    if isinstance(whole, list):
        return _columns_of(whole, path)
    if isinstance(whole, dict) and whole:
        values = list(whole.values())
        articles = whole.get("data")
        if isinstance(articles, list) and articles and all(isinstance(x, dict) and "paragraphs" in x for x in articles):
            return _columns_of(squad_rows(articles, path), path)
        if all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
            if len(values) == 1 and values[0] and all(isinstance(r, dict) for r in values[0]):
                return _columns_of(values[0], path)
            return dict(whole)
        if all(isinstance(v, dict) for v in values) and len({tuple(v) for v in values}) == 1:
            return {name: list(v.values()) for name, v in whole.items()}  # what pandas writes: column -> index -> value
        tables = [v for v in values if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        if len(tables) == 1:
            return _columns_of(tables[0], path)
    raise DataError(f"{path} holds no table. Write a list of objects, or one object a line.")


def _columns_of(records: list[Any], path: Path) -> dict[str, list[Any]]:
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number} is {type(record).__name__}, not an object with named columns.")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}
