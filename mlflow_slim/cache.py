"""Outcomes of steps by content: a step that was done before on the same inputs is taken from disk.

An entry is a folder named by its key, a sha256 over everything that decides the outcome. It is written beside its
place, its ``manifest.json`` last, flushed to disk and renamed, so a killed process leaves no entry. It is compared with
its manifest before every use; one that differs is set aside (``.bad-...``) and the step is done again. A lock per key
lets two processes that want the same step do it once; the kernel frees it when its holder dies.

``MLFLOW_SLIM_CACHE`` names the folder (by default ``~/.cache/mlflow_slim/steps``), or is ``off``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import manifest
from .errors import ConfigError

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["VARIABLE", "Entry", "StepCache", "code_digest", "content_key", "files_digest"]

logger = logging.getLogger(__name__)
VARIABLE = "MLFLOW_SLIM_CACHE"
NAME = "entry.json"
_SPARE_BYTES = 256 << 20
# Their code decides no step's outcome.
_UNRELATED = (
    *("measurement", "tracking", "demo", "recipes", "cli.py", "comparison.py", "dominance.py", "figures.py", "gate.py"),
    *("html_report.py", "journal.py", "ledger.py", "point_log.py", "promotion.py", "ranking.py", "samplers.py"),
    *("schema.py", "search.py", "space.py", "stages.py", "sweeping.py", "tables.py"),
)


def content_key(parts: Mapping[str, Any]) -> str:
    """sha256, hex, of values that JSON can write, whatever the order of their keys.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def files_digest(folder: Path, *, without: Collection[str] = ()) -> str:
    """sha256 over names and contents of every file below a folder, hex; files named in ``without`` don't count."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in without:
            digest.update(f"{name}\n{manifest.sha256_of(path)}\n".encode())
    return digest.hexdigest()


def code_digest() -> str:
    """sha256 over the sources of this package that decide what a step gives."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in _UNRELATED:
            digest.update(place.as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One stored step.

    Attributes:
        key: Its content key.
        folder: Where it lies.
        content: What was stored about it: ``technique``, ``created`` (seconds since 1970) and the caller's own.
        size: Bytes of all its files.
        used: When it was last used, seconds since 1970.
    """

    key: str
    folder: Path
    content: Mapping[str, Any]
    size: int
    used: float


class StepCache:
    """A folder of stored steps.

    Args:
        root: Where; made with access for its owner alone.

    Raises:
        ConfigError: The folder can't be made, or others may write into it: what they put there would be run.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / "locks").mkdir(exist_ok=True, mode=0o700)
            state = self.root.stat()
        except OSError as error:
            raise ConfigError(
                f"The step cache {str(self.root)!r} can't be used: {error.strerror}. "
                f"Set {VARIABLE} to another folder, or to off."
            ) from error
        if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"The step cache {str(self.root)!r} can be written by others, so what is in it can't be trusted. "
                f"Run chmod 700 on it, or set {VARIABLE} to another folder or to off."
            )

    @classmethod
    def from_environment(cls) -> StepCache | None:
        """The cache that `VARIABLE` names, else the user's own; None when it is switched off."""
        wanted = os.environ.get(VARIABLE, "")
        if wanted.lower() in ("off", "0", "false", "no"):
            return None
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(Path(wanted).expanduser() if wanted else home / "mlflow_slim" / "steps")

    def lock(self, key: str) -> FileLock:
        """The lock of a key, not yet taken; it doesn't wait."""
        from filelock import FileLock as Lock  # here, so that a command that locks nothing starts without it

        return Lock(str(self.root / "locks" / f"{key}.lock"), timeout=0)

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Alone with this key, among all processes that use this folder."""
        from filelock import Timeout

        lock = self.lock(key)
        try:
            lock.acquire()
        except Timeout:
            logger.info("Another process is doing this very step; waiting for its outcome")
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def find(self, key: str) -> Entry | None:
        """The entry, when it is there and every file is as it was written; a damaged one is set aside.

        Call it inside `locked`.
        """
        folder = self.root / key
        if not folder.is_dir():
            return None
        if faults := manifest.verify(folder):
            logger.warning("A cached step is damaged (%s); it is done again", "; ".join(faults[:3]))
            self._set_aside(folder)
            return None
        os.utime(folder)
        return _read(folder)

    def store(self, key: str, content: Mapping[str, Any], write: Callable[[Path], None], *, size: int) -> None:
        """Writes an entry; a disk that is full or fails costs the entry, and not the step. Call it inside `locked`.

        Args:
            key: Its content key.
            content: JSON values to store about it.
            write: Called with an empty folder, puts the outcome's files there.
            size: Bytes it will take, about.
        """
        needed = 3 * size + _SPARE_BYTES
        work: Path | None = None
        try:
            if shutil.disk_usage(self.root).free < needed:
                logger.warning("The step is not cached: less than %d MiB are free", needed >> 20)
                return
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            write(work)
            text = json.dumps({**content, "key": key, "created": time.time()}, indent=1)
            (work / NAME).write_text(text, encoding="utf-8")
            manifest.write(work)
            for path in [*work.rglob("*"), work]:
                _flush(path)
            work.rename(self.root / key)
            _flush(self.root)
        except Exception as error:  # whatever it is, the outcome itself is there
            logger.warning("The step is not cached: %s", error)
        finally:
            if work is not None and work.exists():
                shutil.rmtree(work, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """All entries, the last used first; damaged ones are left out."""
        found = []
        for folder in self.root.iterdir():
            if folder.is_dir() and len(folder.name) == 64:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    found.append(_read(folder))
        return sorted(found, key=lambda entry: -entry.used)

    def verify(self) -> tuple[list[str], list[str]]:
        """Compares every entry with its manifest and sets damaged ones aside: keys that are sound, and those not."""
        sound, damaged = [], []
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and len(folder.name) == 64:
                if manifest.verify(folder):
                    self._set_aside(folder)
                    damaged.append(folder.name)
                else:
                    sound.append(folder.name)
        return sound, damaged

    def collect(
        self, *, older_than_s: float | None = None, max_bytes: int | None = None, dry_run: bool = False
    ) -> list[tuple[str, int]]:
        """Removes entries, the longest unused first, and what was set aside or left half written.

        Entries in use are left. With neither limit, all entries go.

        Args:
            older_than_s: Only entries that were not used for so many seconds.
            max_bytes: Only as many as it takes to come down to this size.
            dry_run: Remove nothing.

        Returns:
            Names and bytes of what was, or would be, removed.
        """
        now, removed = time.time(), []
        for folder in self.root.iterdir():
            stale = folder.name.startswith(".new-") and now - folder.stat().st_mtime > 24 * 3600
            if folder.is_dir() and (folder.name.startswith(".bad-") or stale):
                removed.append((folder.name, _size(folder)))
                if not dry_run:
                    shutil.rmtree(folder, ignore_errors=True)
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            too_old = older_than_s is not None and now - entry.used > older_than_s
            too_much = max_bytes is not None and total > max_bytes
            if (too_old or too_much or (older_than_s is None and max_bytes is None)) and self._remove(entry, dry_run):
                removed.append((entry.key, entry.size))
                total -= entry.size
        return removed

    def _remove(self, entry: Entry, dry_run: bool) -> bool:
        from filelock import Timeout

        try:
            with self.lock(entry.key):
                if not dry_run:
                    doomed = entry.folder.with_name(f".bad-{entry.key[:16]}-{time.time_ns()}")
                    entry.folder.rename(doomed)  # at once no entry any more, however long removing takes
                    shutil.rmtree(doomed, ignore_errors=True)
        except Timeout:
            return False
        return True

    def _set_aside(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            folder.rename(folder.with_name(f".bad-{folder.name[:16]}-{time.time_ns()}"))


def _read(folder: Path) -> Entry:
    content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    return Entry(folder.name, folder, content, _size(folder), folder.stat().st_mtime)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Makes sure that a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
