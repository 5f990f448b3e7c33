"""Turns "please stop" signals into exceptions, so that a stopped recipe still closes its runs.

Python already raises KeyboardInterrupt for Ctrl-C, but SIGTERM (schedulers, ``mlflow run`` after Ctrl-C) and
SIGHUP (a closed terminal) would end the process with its runs left RUNNING.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopSignals", "StoppedBySignal", "stop_signals"]


class StoppedBySignal(SystemExit):
    """The process was asked to stop; leaves with the exit code that shells expect, 128 + signal number."""

    def __init__(self, signum: int) -> None:
        self.signal_name = signal.Signals(signum).name
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return f"stopped by {self.signal_name}"


class StopSignals:
    """The handler. The first signal raises; later ones, or those after `defer`, wait until the runs are closed.

    ``mlflow run`` answers one Ctrl-C with SIGINT and SIGTERM a moment later: the second must not interrupt the
    closing that the first began.
    """

    def __init__(self) -> None:
        self.waiting: int | None = None
        self._deferred = False
        self._impatience = 0

    def defer(self) -> None:
        """From here on the runs are being closed: keep signals for later."""
        self._deferred = True

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        if not self._deferred:
            self._deferred = True
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            raise StoppedBySignal(signum)
        self.waiting = signum
        if signum == signal.SIGINT:
            self._impatience += 1
            if self._impatience >= 2:  # a person insists: the server may be hanging
                raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catches SIGINT, SIGTERM and SIGHUP inside the block and puts the old handlers back after it.

    Does nothing outside the main thread (Python allows handlers only there), and leaves alone what is ignored
    already, as ``nohup`` does with SIGHUP. A signal that came while the runs were closing is sent again after a
    block that ended well.
    """
    handler = StopSignals()
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signum = getattr(signal, name, None)  # Windows has no SIGHUP
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                previous[signum] = signal.signal(signum, handler)
    ended_well = False
    try:
        yield handler
        ended_well = True
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
        if ended_well and handler.waiting is not None:
            os.kill(os.getpid(), handler.waiting)
