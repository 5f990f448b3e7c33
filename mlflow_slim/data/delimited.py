"""Rows of a delimited text file (csv, tsv and their cousins), whatever wrote it.

Excel writes ";" where the comma is the decimal sign, pandas writes multi-line fields, GLUE's files hold bare quotes. So
the separator is chosen by looking for the named columns in the header, and quoting by which reading gives every row as
many fields as the header has. What stays malformed is reported row by row, never guessed.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import DataError

__all__ = ["Delimited", "parse_delimited"]

SEPARATORS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_SNIFFED_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Delimited:
    """A parsed file: a header, rows as long as the header, and what did not fit.

    Attributes:
        header: Column names, outer spaces kept as found.
        rows: Fields of each good row.
        numbers: Row number of each good row, from 1, header and blank lines not counted.
        malformed: Row numbers whose number of fields differs from the header's.
        separator: The separator that was used.
        quoted: False when quotes were read as plain characters.
    """

    header: list[str]
    rows: list[list[str]]
    numbers: list[int]
    malformed: list[int] = field(default_factory=list)
    separator: str = ","
    quoted: bool = True

    @property
    def separator_name(self) -> str:
        return _NAMES[self.separator]


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    # The csv module refuses fields above 128 KiB; its limit is one setting for the process, so put it back.
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


# How the formats found in the wild treat quotes, the usual one first.
_DIALECTS: tuple[dict[str, object], ...] = (
    {"strict": True},
    {"quoting": csv.QUOTE_NONE},
    {"strict": True, "doublequote": False, "escapechar": "\\"},
)


def _read(text: str, separator: str, **dialect: object) -> Delimited | None:
    """The file read one way; None when the quoting doesn't hold."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, **dialect)  # type: ignore[arg-type]
    quoted = dialect.get("quoting") != csv.QUOTE_NONE
    try:
        records = [record for record in reader if record and not (len(record) == 1 and not record[0].strip())]
    except csv.Error:
        return None
    if not records:
        return None
    header, body = records[0], records[1:]
    good = [(number, record) for number, record in enumerate(body, 1) if len(record) == len(header)]
    wrong = [number for number, record in enumerate(body, 1) if len(record) != len(header)]
    return Delimited(header, [r for _, r in good], [n for n, _ in good], wrong, separator, quoted)


def _different_labels(reading: Delimited, label: str) -> int:
    column = reading.header.index(label) if label in reading.header else len(reading.header) - 1
    return len({row[column] for row in reading.rows})


def _best_reading(text: str, separator: str, label: str) -> Delimited | None:
    """The reading with the fewest malformed rows; quotes quote unless that swallows lines that are whole without."""
    quoted = _read(text, separator, **_DIALECTS[0])
    lines = sum(1 for line in text.splitlines() if line.strip())
    if quoted and not quoted.malformed and len(quoted.rows) + 1 >= lines:
        return quoted  # the ordinary file: every line is a whole row
    readings = [quoted, *(_read(text, separator, **dialect) for dialect in _DIALECTS[1:])]
    plain = readings[1]
    if (
        quoted
        and plain
        and not plain.malformed
        and len(quoted.rows) + len(quoted.malformed) < len(plain.rows)
        and _different_labels(plain, label) <= _different_labels(quoted, label)
    ):
        # A bare quote had joined lines that are whole rows by themselves. Lines of a quoted field may look so too, but
        # then what stands in the place of the label is as varied as text is.
        return plain
    clean = [r for r in readings if r and not r.malformed]
    if clean:
        return clean[0]
    found = [r for r in (*readings, _read(text, separator)) if r]
    return min(found, key=lambda r: len(r.malformed)) if found else None


def _choose_separator(text: str, wanted: Sequence[str], preferred: str) -> str:
    # Cut at a line end, so that the last sniffed row is whole in all but multi-line fields.
    sample = text if len(text) <= _SNIFFED_CHARACTERS else text[: text.rfind("\n", 0, _SNIFFED_CHARACTERS) + 1]
    names = {name.strip().casefold() for name in wanted}

    def merit(separator: str) -> tuple[int, float, int, bool]:
        reading = _best_reading(sample, separator, wanted[-1])
        if reading is None:
            return (0, 0.0, 0, False)
        hits = sum(column.strip().casefold() in names for column in reading.header)
        regular = len(reading.rows) / max(1, len(reading.rows) + len(reading.malformed))
        several = len(reading.header) > 1
        return (hits, regular if several else 0.0, len(reading.header) if several else 0, separator == preferred)

    return max((preferred, *(s for s in SEPARATORS if s != preferred)), key=merit)


def parse_delimited(text: str, *, wanted: Sequence[str], preferred: str = ",", where: str = "the file") -> Delimited:
    """The rows of a delimited text with a header line.

    Args:
        text: The decoded file, without a byte order mark.
        wanted: Names of the columns that the user asked for; they tell the separator; the label's is last.
        preferred: The separator that the file's ending promises; it wins ties.
        where: The file as the user named it, for messages.

    Raises:
        DataError: No header, or no way of quoting gives rows.
    """
    # Excel's own way of naming the separator: a first line that says sep=;
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) <= 5:
        text = rest
    with _fields_of_any_length():
        reading = _best_reading(text, _choose_separator(text, wanted, preferred), wanted[-1])
    if reading is None:
        raise DataError(f"{where} has no rows that can be read as a table. Write a header line, then one line a row.")
    return reading
