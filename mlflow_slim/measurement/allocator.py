"""Holds the C library's allocator in one state while arms are timed.

glibc gives large blocks back to the system when they are freed, and moves the size from which it does so while a
process runs. torch asks for such blocks in every call, so its speed depended on what the process had done before: 408,
442 and 439 samples/s in three sessions of one process, against 442, 444 and 436 with freed memory kept. A process that
serves for long ends up keeping it, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["freed_memory_kept"]

# malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# Where glibc's own moving limits end: the state that is left behind.
_LARGEST_MOVING = 32 * 2**20


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Freed memory stays with this process during the block; gives whether the C library could be told so.

    Only glibc takes the order. Afterwards its limits are as large as it would ever make them itself, and what is free
    goes back to the system.
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    orders = ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    done = [bool(libc.mallopt(option, value)) for option, value in orders]
    try:
        yield all(done)
    finally:
        for option, value in (
            (_MMAP_THRESHOLD, _LARGEST_MOVING),
            (_TRIM_THRESHOLD, 2 * _LARGEST_MOVING),
            (_TOP_PAD, 2**17),
        ):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018 - musl has them not
    except (OSError, AttributeError):
        return None
    return libc
