"""sha256 manifests of exported folders: written when the last file is there, verified before anything is loaded.

The comparison itself is `runtime.manifest`, because a served model makes it too.
"""

from __future__ import annotations

import json
from pathlib import Path

from .errors import IntegrityError
from .runtime import manifest as served

__all__ = ["NAME", "check", "digest", "sha256_of", "verify", "write"]

NAME = served.NAME
sha256_of = served.sha256_of


def write(directory: Path) -> Path:
    """Writes ``manifest.json``: size and sha256 of every other file below ``directory``. Its path."""
    files = {
        name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in sorted(served.files_in(directory).items())
    }
    target = directory / NAME
    target.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    return target


def verify(directory: Path) -> list[str]:
    """What differs from the manifest, one sentence each; empty when nothing does."""
    return served.faults_in(Path(directory))


def check(directory: Path) -> None:
    """Returns when the folder is what its manifest says.

    Raises:
        IntegrityError: A file is missing, new, or differs; the message names each.
    """
    if faults := verify(directory):
        raise IntegrityError(
            f"{directory} is not what its manifest says: {'; '.join(faults)}. Export the model again or fetch it anew."
        )


def digest(directory: Path) -> str:
    """sha256 of the manifest, hex: one number that stands for every file of the folder."""
    return sha256_of(Path(directory) / NAME)
