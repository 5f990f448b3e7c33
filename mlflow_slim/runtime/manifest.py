"""Says whether the files of a folder are those its ``manifest.json`` lists, by sha256."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"
_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """sha256 of a file, hex; reads it in blocks, so that size does not matter."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_in(directory: Path) -> dict[str, Path]:
    """Every file below ``directory`` but its manifest, by its relative name with forward slashes.

    Links are listed and not followed.
    """
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(directory):
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in [*names, *linked]:
            path = Path(folder) / name
            found[path.relative_to(directory).as_posix()] = path
    found.pop(NAME, None)
    return found


def faults_in(directory: Path) -> list[str]:
    """What differs from the manifest, one sentence each; empty when everything is as it was written."""
    try:
        listed: Any = json.loads((directory / NAME).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{NAME} can't be read ({type(error).__name__}: {error})"]
    present = files_in(directory)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - present.keys())]
    faults += [f"{name} is not listed in {NAME}" for name in sorted(present.keys() - expected.keys())]
    for name in sorted(expected.keys() & present.keys()):
        size, digest = expected[name]
        path = present[name]
        if path.is_symlink() or not path.is_file():
            faults.append(f"{name} is a link or not a plain file")
        elif path.stat().st_size != size:
            faults.append(f"{name} has {path.stat().st_size} bytes, expected {size}")
        elif sha256_of(path) != digest:
            faults.append(f"{name} has another sha256 than when it was written")
    return faults
