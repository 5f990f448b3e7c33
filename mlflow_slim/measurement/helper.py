"""A process that has imported much and done nothing, forked whenever something wants a clean start.

How fast torch runs depends on what its process did before: on the demo, a second measurement in one process found the
same model 11 % slower than the first, and one after training slower still. What is compared is therefore computed in a
process that is the same every time. Importing torch and transformers takes seconds, so one helper does it once and is
forked for each request; where the system can't fork safely (anything but Linux) each has a process of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import MeasurementError
from .fresh_process import BACKENDS, Served, ask, environment, last_words, served_folder

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Helper"]

logger = logging.getLogger("mlflow_slim")
_TIMEOUT_S = 600.0
_IDLE_S = 300.0
HEAVY = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "sklearn.metrics",
    "evaluate",
    "mlflow_slim.inputs",
    "mlflow_slim.session_setup",
)
"""What measuring and most models need and takes longest to import. Nothing here may start a thread: it is forked."""
_ANSWER = "mlflow_slim.measurement.fresh_process:answer_request"


class Helper:
    """Runs functions of ours in clean processes; a context manager.

    It starts with the first request. After the ``with`` block one idle helper waits some minutes for the next one with
    the same threads, imports and environment, and ends with this process at the latest.

    Args:
        threads: Threads that computing may use.
        fork: Fork one helper instead of starting a process for every request; safe on Linux only.
        imports: Modules that the helper imports before it forks, where they are installed.
        backends: ``module:function`` that finds a backend.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        fork: bool = sys.platform == "linux",
        imports: Sequence[str] = HEAVY,
        backends: str = BACKENDS,
    ) -> None:
        self._threads, self._fork, self._imports, self._backends = threads, fork, imports, backends
        self._running: _Running | None = None

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def outputs(
        self, model: Path | Served, inputs: Sequence[Any], *, batch_size: int = 32, timeout_s: float = _TIMEOUT_S
    ) -> np.ndarray:
        """Raw outputs ``(rows, ...)`` of an exported folder, by a process that knows the folder only.

        Raises:
            MeasurementError: The process failed or took longer than ``timeout_s``; its last words are in the message.
            InputNotFound: The folder isn't there, or isn't an exported model.
            ConfigError: A number is out of its range, or there are no inputs.
        """
        outputs: np.ndarray
        _, outputs = ask(
            served_folder(model, self._threads),
            inputs,
            batch_size=batch_size,
            want_outputs=True,
            backends=self._backends,
            timeout_s=timeout_s,
            run=lambda request, _, limit: self._do(_ANSWER, request, limit),
        )
        return outputs

    def call(self, function: str, request: Path, *, what: str) -> None:
        """Runs ``module:function(request)`` in a clean process; what it logs is logged here.

        Args:
            function: Named by code, never by a file or recipe.
            request: A file; the function writes its answer beside it.
            what: Names the work in the message.

        Raises:
            MeasurementError: The process failed; its last words are in the message.
        """
        code, complaints = self._do(function, request, None)
        if code != 0:
            how = f"signal {-code}, perhaps out of memory" if code < 0 else f"exit code {code}"
            raise MeasurementError(f"{what} failed in its own process ({how}).{last_words(complaints)}")

    def close(self) -> None:
        """Lets the helper go; the next request would start another, or take up one that idles."""
        global _idle
        running, self._running = self._running, None
        if running is None:
            return
        if running.is_busy or not self._fork:
            running.end()
            return
        if _idle is not None and _idle is not running:
            _idle.end()
        _idle = running

    def _do(self, function: str, request: Path, timeout_s: float | None) -> tuple[int, bytes]:
        """The exit code, negative for a signal, and what was written to stderr."""
        given = environment(self._threads)
        if self._running is not None and not self._running.is_alive:  # killed, or it waited too long
            self._running.end()
            self._running = None
        if self._running is None:
            self._running = self._take_up(given) or self._start(given)
        running = self._running
        running.is_busy = True
        running.tell([function, str(request), _own_level(), given])
        while (line := running.next_line(timeout_s)).startswith(b"["):
            level, text = json.loads(line)
            logger.log(level, "%s", text)
        complaints = _complaints(request)
        code = int(line) if line else running.process.wait() or 1
        running.is_busy = False
        if not self._fork:
            self.close()
        return code, complaints.read_bytes() if complaints.exists() else b""

    def _key(self, given: Mapping[str, str]) -> list[Any]:
        """What an idle helper must have in common with the one that is wanted.

        MLflow's variables change with every run and are read when they are needed, so that each request brings its own.
        """
        lasting = {name: value for name, value in given.items() if not name.startswith(("MLFLOW_", "PYTEST_"))}
        return [self._threads, *self._imports, lasting]

    def _take_up(self, given: Mapping[str, str]) -> _Running | None:
        global _idle
        if not self._fork or _idle is None or _idle.key != self._key(given):
            return None
        found, _idle = _idle, None
        if found.is_alive:
            return found
        found.end()
        return None

    def _start(self, given: Mapping[str, str]) -> _Running:
        folder = tempfile.TemporaryDirectory(prefix="slim-helper-")
        mode = "fork" if self._fork else "once"
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, mode, *(self._imports if self._fork else ())],
            env=given,
            cwd=folder.name,  # as for any fresh process: nothing that lies in ours may be imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the recipe, which ends its helper
        )
        running = _Running(process, folder, self._key(given))
        running.next_line(_TIMEOUT_S)  # it is ready
        return running


@dataclass
class _Running:
    """A helper's process."""

    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    key: list[Any]
    is_busy: bool = False
    is_over: bool = False

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tell(self, request: list[Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile; the empty line says so
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def next_line(self, timeout_s: float | None) -> bytes:
        """What it writes next; empty when it has ended."""
        assert self.process.stdout is not None
        # select knows files on Unix only; elsewhere a hanging process is waited for
        if os.name == "posix" and not select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.end()
            raise subprocess.TimeoutExpired(self.process.args, timeout_s or 0.0)
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Kills it and what it forked; once."""
        if self.is_over:
            return
        self.is_over = True
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


_idle: _Running | None = None
"""The one helper that waits for the next to want it."""


@atexit.register
def _end_idle() -> None:
    if _idle is not None:
        _idle.end()


def _own_level() -> int:
    return logger.getEffectiveLevel()


def _complaints(request: Path) -> Path:
    return request.with_name("stderr")


# --- The helper ------------------------------------------------------------------------------------------------------


def _serve(mode: str, imports: Sequence[str]) -> None:
    """Imports, then answers every request that a line of stdin names with a line: the exit code."""
    for name in imports:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _tell("ready")
    while line := _next_request():
        function, request, level, given = json.loads(line)
        if mode == "once":
            _tell(str(_work(function, Path(request), level)))
            return
        child = os.fork()
        if child == 0:
            os.environ.clear()
            os.environ.update(given)
            _work_and_exit(function, Path(request), level)
        _, status = os.waitpid(child, 0)
        _tell(str(os.waitstatus_to_exitcode(status)))


def _next_request() -> bytes:
    """A line of stdin; empty at its end, or after `_IDLE_S` without one."""
    if os.name == "posix" and not select.select([sys.stdin.buffer], [], [], _IDLE_S)[0]:
        return b""
    return sys.stdin.buffer.readline()


def _tell(line: str, stream: int = 1) -> None:
    os.write(stream, line.encode("utf-8", errors="replace") + b"\n")


class _Told(logging.Handler):
    """Sends records to the process that asked, one JSON line each."""

    def __init__(self, stream: int) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        _tell(json.dumps([record.levelno, record.getMessage()]), self._stream)


def _work(function: str, request: Path, level: int) -> int:
    """Runs the function with stderr in a file and stdout nowhere; its exit code."""
    try:
        told = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        complaints = os.open(_complaints(request), os.O_WRONLY | os.O_CREAT, 0o600)
        for number, stream in ((1, nothing), (2, complaints)):
            os.dup2(stream, number)
        ours = logging.getLogger("mlflow_slim")
        ours.addHandler(_Told(told))
        ours.setLevel(level)
        module, _, name = function.partition(":")
        try:
            getattr(importlib.import_module(module), name)(request)
        finally:
            sys.stdout.flush()
            os.dup2(told, 1)
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def _work_and_exit(function: str, request: Path, level: int) -> NoReturn:
    """In the forked process: never returns, whatever happens."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _work(function, request, level)
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
