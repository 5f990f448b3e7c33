"""Answers that a teacher gave, on disk by prompt: a killed job loses one shard at most, and none is paid for twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from .cache import StepCache, content_key
from .errors import ModelError
from .runtime.prompts import shown
from .teachers import Prompt, Reply, Teacher

__all__ = ["AnswerStore", "Asked", "Budget", "ask", "open_store", "remove_stores", "stores"]

logger = logging.getLogger(__name__)
SHARD = 32
"""Prompts that are answered before the answers are written to disk."""


class AnswerStore:
    """A folder of Parquet files, each with the answers to some prompts.

    Args:
        folder: Made when it isn't there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[str, Reply] = {}
        for path in sorted(folder.glob("*.parquet")):
            self._known |= _read(path)

    def find(self, prompt: Prompt) -> Reply | None:
        """The answer to a prompt, if it was answered."""
        return self._known.get(_key(prompt))

    def add(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> None:
        """Writes one shard; it is there as a whole or not at all."""
        import pyarrow
        import pyarrow.parquet

        rows = [
            {"key": _key(prompt), "prompt": shown(prompt), **asdict(reply)}
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self._folder)
        os.close(handle)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
        with Path(name).open("rb") as written:
            os.fsync(written.fileno())
        digest = hashlib.sha256("".join(row["key"] for row in rows).encode()).hexdigest()[:16]
        Path(name).replace(self._folder / f"{len(self._known):08d}-{digest}.parquet")
        self._known |= {row["key"]: reply for row, reply in zip(rows, replies, strict=True)}


def _key(prompt: Any) -> str:
    prompt = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(prompt.encode("utf-8", errors="surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, Reply]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return {row["key"]: Reply(row["text"], row["prompt_tokens"], row["new_tokens"], row["cut"]) for row in rows}
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        logger.warning("Answers in %s can't be read (%s); they are asked for again", path.name, error)
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".bad"))
        return {}


@contextlib.contextmanager
def open_store(settings: dict[str, object], fallback: Path) -> Iterator[AnswerStore]:
    """The answers of one teacher under given settings, alone among processes; in ``fallback`` where caching is off."""
    cache = StepCache.from_environment()
    key = content_key(settings)
    if cache is None:
        yield AnswerStore(fallback / "answers" / key)
        return
    with cache.locked(f"answers-{key}"):
        yield AnswerStore(cache.root / "answers" / key)


def stores(root: Path) -> list[tuple[Path, int, float]]:
    """Folder, bytes and time of the last shard (seconds since 1970) of each teacher's answers in a cache."""
    found = []
    for folder in sorted((root / "answers").glob("*")):
        shards = [path.stat() for path in folder.glob("*.parquet")]
        found.append((folder, sum(one.st_size for one in shards), max((one.st_mtime for one in shards), default=0.0)))
    return found


def remove_stores(cache: StepCache, *, older_than_s: float | None, dry_run: bool) -> list[tuple[str, int]]:
    """Removes teachers' answers that nobody uses right now: names and bytes of what was, or would be, removed.

    Args:
        cache: Where they lie.
        older_than_s: Only those to which nothing was added for so many seconds; None for all.
        dry_run: Remove nothing.
    """
    removed = []
    for folder, size, used in stores(cache.root):
        if older_than_s is not None and time.time() - used <= older_than_s:
            continue
        with contextlib.suppress(Timeout), cache.lock(f"answers-{folder.name}"):
            if not dry_run:
                shutil.rmtree(folder)
            removed.append((folder.name, size))
    return removed


@dataclass(frozen=True)
class Budget:
    """What tokens cost and how much may be spent.

    Attributes:
        usd_per_1m_read: Price of a million tokens of prompts.
        usd_per_1m_written: Price of a million tokens of answers.
        max_usd: No further prompt is sent once this is spent; None for no limit.
    """

    usd_per_1m_read: float = 0.0
    usd_per_1m_written: float = 0.0
    max_usd: float | None = None

    def usd(self, replies: Sequence[Reply]) -> float:
        """What answers cost; those whose tokens aren't known count nothing."""
        read, written = _tokens(replies)
        return (read * self.usd_per_1m_read + written * self.usd_per_1m_written) / 1e6


def _tokens(replies: Sequence[Reply]) -> tuple[int, int]:
    """Tokens read and written, as far as they are known."""
    return sum(max(0, one.prompt_tokens) for one in replies), sum(max(0, one.new_tokens) for one in replies)


@dataclass(frozen=True)
class Asked:
    """What came of asking.

    Attributes:
        replies: One for each prompt; None where the budget was spent.
        reused: How many were on disk already.
        read, written: Tokens of all of them.
        usd: What all of them cost, those on disk included.
    """

    replies: tuple[Reply | None, ...]
    reused: int
    read: int
    written: int
    usd: float


def ask(
    teacher: Teacher, prompts: Sequence[Prompt], store: AnswerStore, budget: Budget, *, max_new_tokens: int, label: str
) -> Asked:
    """Answers to all prompts, from disk where they are there, shard by shard.

    Args:
        teacher: Who is asked.
        prompts: What.
        store: Where answers are kept.
        budget: What they may cost.
        max_new_tokens: Most tokens of an answer.
        label: Name of the technique, for messages.
    """
    different = list({_key(prompt): prompt for prompt in prompts}.values())
    missing = [prompt for prompt in different if store.find(prompt) is None]
    reused = len(prompts) - len(missing)
    if missing:
        logger.info("%s: asking %s %d prompts, %d are answered already", label, teacher.name, len(missing), reused)
    given = [reply for prompt in different if (reply := store.find(prompt)) is not None]
    size = SHARD if budget.max_usd is None else 1 + SHARD // 8  # the smaller, the less is spent beyond the limit
    for start in range(0, len(missing), size):
        if budget.max_usd is not None and budget.usd(given) >= budget.max_usd:
            left = len(missing) - start
            logger.warning("%s: %.2f USD are spent; %d prompts go unasked", label, budget.usd(given), left)
            break
        shard = missing[start : start + size]
        answered = teacher.answer(shard, max_new_tokens=max_new_tokens)
        store.add(shard, answered)
        given += answered
        if budget.max_usd is not None and any(min(reply.prompt_tokens, reply.new_tokens) < 0 for reply in answered):
            raise ModelError(
                f"{teacher.name} doesn't say how many tokens it used, so max_usd can't be kept to. Leave it out and "
                "limit rows instead."
            )
        logger.info("%s: %d of %d prompts answered", label, start + len(shard), len(missing))
    replies = tuple(store.find(prompt) for prompt in prompts)
    return Asked(replies, reused, *_tokens(given), budget.usd(given))
