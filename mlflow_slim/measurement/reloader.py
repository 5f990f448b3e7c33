"""Answers of exported models in processes that know their folders only: whether a reloaded model agrees.

Importing torch and transformers takes seconds. One helper process does it once and is forked for every model, so
that a recipe with many points doesn't wait for it with each of them. Nothing here is timed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .fresh_process import BACKENDS, Served, answer_request, ask, environment, own_process, served_folder

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Reloader"]

_TIMEOUT_S = 600.0
HEAVY = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What most models need and takes longest to import."""


class Reloader:
    """Loads models in processes of their own; a context manager.

    The helper starts with the first model and ends with the ``with`` block, or with this process.

    Args:
        threads: Threads that computing may use.
        fork: Fork a helper instead of starting a process for every model; safe on Linux only.
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
        self._helper: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Reloader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def outputs(
        self, model: Path | Served, inputs: Sequence[Any], *, batch_size: int = 32, timeout_s: float = _TIMEOUT_S
    ) -> np.ndarray:
        """Raw outputs ``(rows, ...)`` of an exported folder.

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
            run=self._in_fork if self._fork else own_process,
        )
        return outputs

    def close(self) -> None:
        """Ends the helper and what it forked; the next model would start another."""
        helper, self._helper = self._helper, None
        if helper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(helper.pid, signal.SIGKILL)
            helper.communicate()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self, threads: int) -> subprocess.Popen[bytes]:
        self._folder = tempfile.TemporaryDirectory(prefix="slim-reload-")
        self._helper = subprocess.Popen(
            [sys.executable, "-m", __name__, *self._imports],
            env=environment(threads),
            cwd=self._folder.name,  # as for any fresh process: nothing that lies in ours may be imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the recipe, which ends its helper
        )
        self._next_line(self._helper, _TIMEOUT_S)  # it is ready
        return self._helper

    def _in_fork(self, request: Path, threads: int, timeout_s: float) -> tuple[int, bytes]:
        if self._helper is None or self._helper.poll() is not None:
            self.close()
            self._start(threads)
        helper = self._helper
        assert helper is not None and helper.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile; the empty line says so
            helper.stdin.write(f"{request}\n".encode())
            helper.stdin.flush()
        line = self._next_line(helper, timeout_s)
        complaints = _complaints(request)
        return int(line or helper.wait() or 1), complaints.read_bytes() if complaints.exists() else b""

    def _next_line(self, helper: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """What the helper writes next; empty when it has ended."""
        assert helper.stdout is not None
        if not select.select([helper.stdout], [], [], timeout_s)[0]:
            self.close()
            raise subprocess.TimeoutExpired(helper.args, timeout_s)
        return helper.stdout.readline().strip()


# --- The helper ------------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Imports what the command line names, then forks for every request that a line of stdin names.

    Each is answered with a line: the exit code, negative for a signal.
    """
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _tell("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer_and_exit(Path(line.rstrip("\n")))
        _, status = os.waitpid(child, 0)
        _tell(str(os.waitstatus_to_exitcode(status)))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complaints(request: Path) -> Path:
    return request.with_name("stderr")


def _answer_and_exit(request: Path) -> NoReturn:
    """In the forked process: never returns, whatever happens."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        complaints = os.open(_complaints(request), os.O_WRONLY | os.O_CREAT, 0o600)
        for number, stream in enumerate((nothing, nothing, complaints)):
            os.dup2(stream, number)
        answer_request(request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
