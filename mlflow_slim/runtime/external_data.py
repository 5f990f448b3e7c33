"""Finds where an ONNX file keeps weights outside itself, and refuses places outside its folder.

onnxruntime opens the files an ONNX graph names, so a graph from elsewhere could read any file of the machine
(CVE-2022-25882, CVE-2024-27318, CVE-2026-34446). The onnx package is not there at serving time, so the few
protobuf fields that matter are read here: numbers of fields as in onnx.proto, which never change.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

# message -> field number -> message held there; fields not named are skipped without being looked into
_HOLDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """``(field number, start, end)`` of every length-delimited field of a message."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field is longer than its message")
            yield key >> 3, at, at + length
            at += length
        else:
            raise ValueError(f"wire type {wire}")


def external_locations(path: Path) -> set[str]:
    """Every ``location`` that a tensor of the ONNX file names, as written there.

    Raises:
        ValueError: The file is not an ONNX file.
    """
    found: set[str] = set()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            waiting = [("model", 0, len(data))]
            while waiting:
                message, start, end = waiting.pop()
                if message == "entry":
                    parts = {number: data[low:high] for number, low, high in _fields(data, start, end)}
                    if parts.get(1) == b"location":
                        found.add(parts.get(2, b"").decode("utf-8"))
                    continue
                holds = _HOLDS[message]
                waiting += [
                    (holds[number], low, high) for number, low, high in _fields(data, start, end) if number in holds
                ]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a sound ONNX file ({error}).") from error
    return found


def check_external_data(path: Path) -> None:
    """Raises ValueError unless each place is a plain file inside the ONNX file's folder, reached by no link."""
    folder = path.parent.resolve()
    for location in sorted(external_locations(path)):
        target = folder / location
        inside = not Path(location).is_absolute() and Path(os.path.realpath(target)) == Path(os.path.normpath(target))
        if not (inside and target.is_relative_to(folder) and ".." not in Path(location).parts):
            raise ValueError(f"{path} keeps weights in {location!r}, outside its folder or behind a link; refused.")
        if not target.is_file() or target.stat().st_nlink != 1:
            raise ValueError(
                f"{path} keeps weights in {location!r}, which is missing or not a file of its own; refused."
            )
