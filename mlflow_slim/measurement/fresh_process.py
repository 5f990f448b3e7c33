"""Figures that only a process of its own can give: cold start and peak memory.

The parent starts ``python -m mlflow_slim.measurement.fresh_process <request.json>``; the child loads an exported folder
through its backend, predicts once and writes what it saw into the request's folder. Nothing is pickled: requests and
answers are JSON, outputs an ``.npy`` file. The child gets no network (``HF_HUB_OFFLINE``) and imports what the backend
imports, nothing else, so that its memory and its start are those of serving.

Peak memory is the kernel's own high-water mark (Linux ``VmHWM``, elsewhere ``ru_maxrss`` or the peak working set). It
says what the process held at its fullest, loading included, which is what a container's limit must cover.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputNotFound, MeasurementError

if TYPE_CHECKING:
    from .stats import Interval

__all__ = [
    "FreshStart",
    "Run",
    "Served",
    "answer_request",
    "ask",
    "environment",
    "fresh_starts",
    "last_words",
    "own_process",
    "peak_rss_mib",
    "served_folder",
]

BACKENDS = "mlflow_slim.catalog:load_backend"
"""Finds a backend by name. Another ``module:function`` may be passed by code; no file or recipe can."""

_TIMEOUT_S = 600.0
Run = Callable[[Path, int, float], "tuple[int, bytes]"]
"""Answers the request of a file with so many threads in so many seconds: exit code, and what went to stderr."""


@dataclass(frozen=True)
class Served:
    """An exported folder and the way to run it.

    Attributes:
        directory: The folder that a backend exported.
        backend: Name of that backend.
        threads: Threads that computing may use, >= 1.
    """

    directory: Path
    backend: str
    threads: int = 1


@dataclass(frozen=True)
class FreshStart:
    """What a fresh process that serves one model takes.

    Attributes:
        cold_start_s: Start of the process to the first answer, to one input; median with its interval.
        cold_starts_s: Seconds of each start.
        import_s: Median part of it that is importing our package and the backend's module.
        load_s: Median part of it that is loading the model, with what the backend imports for that.
        predict_s: Median part of it that is the first prediction.
        peak_mib: High-water mark of resident memory after predicting all inputs, MiB; median with its interval.
        import_mib: The same before loading the model, MiB; median.
    """

    cold_start_s: Interval
    cold_starts_s: tuple[float, ...]
    import_s: float
    load_s: float
    predict_s: float
    peak_mib: Interval
    import_mib: float


def fresh_starts(
    models: Sequence[Path | Served],
    inputs: Sequence[Any],
    starts: int = 6,
    *,
    threads: int = 1,
    batch_size: int = 32,
    confidence: float = 0.95,
    backends: str = BACKENDS,
    timeout_s: float = _TIMEOUT_S,
) -> list[FreshStart]:
    """Cold start and peak memory of every model, in their order.

    The models take turns, so that a busy minute falls on all of them. One start of each goes before and isn't counted:
    it fills the file cache, which is a matter of the disk and not of the model.

    Args:
        models: Exported folders, or `Served` to say more about them.
        inputs: What is predicted: the first one for the cold start, then all of them for the memory.
        starts: Counted starts of each model, >= 1; below 6 the intervals' ends are nan at 95 %.
        threads: Threads that computing may use, for models given as folders.
        batch_size: Of the prediction of all inputs.
        confidence: Of the intervals around the medians.
        backends: ``module:function`` that finds a backend.
        timeout_s: A process that takes longer fails.

    Raises:
        MeasurementError: A child failed; its last words are in the message.
        InputNotFound: A folder isn't there, or isn't an exported model.
        ConfigError: A number is out of its range, or there are no inputs.
    """
    from statistics import median

    from .stats import quantile_interval

    if starts < 1:
        raise ConfigError(f"starts must be at least 1, got {starts}.")
    arms = [served_folder(model, threads) for model in models]
    seen: list[list[dict[str, float]]] = [[] for _ in arms]
    for turn in range(starts + 1):
        for i in list(range(len(arms)))[:: 1 if turn % 2 else -1]:
            answer, _ = ask(arms[i], inputs, batch_size=batch_size, backends=backends, timeout_s=timeout_s)
            if turn:
                seen[i].append(answer)

    def middle(answers: list[dict[str, float]], key: str) -> Interval:
        return quantile_interval([a[key] for a in answers], 0.5, confidence)

    return [
        FreshStart(
            cold_start_s=middle(answers, "cold_start_s"),
            cold_starts_s=tuple(a["cold_start_s"] for a in answers),
            import_s=median(a["import_s"] for a in answers),
            load_s=median(a["load_s"] for a in answers),
            predict_s=median(a["predict_s"] for a in answers),
            peak_mib=middle(answers, "peak_mib"),
            import_mib=median(a["import_mib"] for a in answers),
        )
        for answers in seen
    ]


def served_folder(model: Path | Served, threads: int) -> Served:
    """A folder says in its ``slim.json`` which backend runs it."""
    if isinstance(model, Served):
        return model
    try:
        backend = json.loads((Path(model) / "slim.json").read_text(encoding="utf-8"))["backend"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputNotFound(
            f"{str(model)!r} isn't an exported model: {error!r} in slim.json. Export it first."
        ) from error
    return Served(Path(model), str(backend), threads)


def own_process(request: Path, threads: int, timeout_s: float) -> tuple[int, bytes]:
    """Answers a request in a process that starts for it and ends with it; its exit code and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(request)],
        env=environment(threads),
        cwd=request.parent,  # -m puts the working folder first, and Python 3.10 doesn't know PYTHONSAFEPATH
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stderr


def ask(
    served: Served,
    inputs: Sequence[Any],
    *,
    batch_size: int = 32,
    want_outputs: bool = False,
    backends: str,
    timeout_s: float,
    run: Run = own_process,
) -> tuple[dict[str, float], Any]:
    """The figures of one process and, where wanted, its outputs; see `fresh_starts` and `Helper.outputs`."""
    directory = Path(served.directory).resolve()
    if not directory.is_dir():
        raise InputNotFound(f"The exported model {str(served.directory)!r} isn't a folder. Export it first.")
    if served.threads < 1 or batch_size < 1 or not inputs:
        raise ConfigError(
            f"threads and batch_size must be at least 1 and inputs not empty, "
            f"got threads={served.threads}, batch_size={batch_size}, {len(inputs)} inputs."
        )
    with tempfile.TemporaryDirectory(prefix="slim-fresh-") as folder:  # made with mode 0700
        request = {
            "directory": str(directory),
            "backend": served.backend,
            "threads": served.threads,
            "backends": backends,
            "inputs": [_to_json(x) for x in inputs],
            "batch_size": batch_size,
            "want_outputs": want_outputs,
        }
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        started = time.monotonic()  # counts from the system's start, so the child reads the same clock
        try:
            code, stderr = run(path, served.threads, timeout_s)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"A fresh process did not load {str(directory)!r} with {served.backend!r} within {timeout_s:g} s."
                f"{last_words(error.stderr)}"
            ) from error
        except OSError as error:
            raise MeasurementError(f"A fresh process could not be started: {error}.") from error
        answer_path = Path(folder) / "answer.json"
        if code != 0 or not answer_path.exists():
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            memory = ", perhaps out of memory" if code == -9 else ""
            raise MeasurementError(
                f"A fresh process could not load and run {str(directory)!r} with {served.backend!r} ({how}{memory})."
                f"{last_words(stderr)}"
            )
        answer: dict[str, float] = json.loads(answer_path.read_text(encoding="utf-8"))
        answer["cold_start_s"] = answer.pop("answered_at") - started
        outputs = None
        if want_outputs:
            import numpy as np

            outputs = np.load(Path(folder) / "outputs.npy", allow_pickle=False)
        return answer, outputs


def environment(threads: int) -> dict[str, str]:
    """Ours, without a network, with explicit threads, and with the package that is running here importable."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if root.name not in (
        "site-packages",
        "dist-packages",
    ):  # on PYTHONPATH those would come before the standard library
        paths.append(str(root))
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": str(threads > 1).lower(),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",  # -m would put the working folder first, with whatever lies in it
        "PYTHONIOENCODING": "utf-8",
    }


def last_words(stderr: bytes | str | None, lines: int = 8) -> str:
    text = stderr.decode("utf-8", errors="replace") if isinstance(stderr, bytes) else stderr or ""
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return " Its last words:\n" + "\n".join(kept) if kept else " It said nothing."


def _to_json(value: Any) -> Any:
    """An input as JSON: strings and pairs as they are, bytes in base64, the messages of a chat as a list."""
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return {"messages": value}
    if isinstance(value, (tuple, list)):
        return {"pair": [_to_json(x) for x in value]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ConfigError(
        f"An input of type {type(value).__name__} can't be sent to a fresh process: use str, pair or bytes."
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "messages" in value:
            return value["messages"]
        return base64.b64decode(value["base64"]) if "base64" in value else tuple(map(_from_json, value["pair"]))
    return value


# --- The child -------------------------------------------------------------------------------------------------------


def peak_rss_mib() -> float:
    """The largest resident memory this process has had, MiB.

    On Linux from ``VmHWM``: ``ru_maxrss`` of a child starts at what its parent held when it was made.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def answer_request(request_path: Path) -> None:
    """Does what the request says and writes ``answer.json`` beside it."""
    begun = time.perf_counter()
    request = json.loads(request_path.read_text(encoding="utf-8"))
    module, _, function = request["backends"].partition(":")
    find: Callable[[str], Any] = getattr(importlib.import_module(module), function)
    backend = find(request["backend"])
    inputs = [_from_json(x) for x in request["inputs"]]
    imported, import_mib = time.perf_counter(), peak_rss_mib()
    predictor = backend.load(Path(request["directory"]), threads=request["threads"])
    loaded = time.perf_counter()
    outputs = predictor.predict(inputs[:1], batch_size=request["batch_size"])
    answered_at, predicted = time.monotonic(), time.perf_counter()
    if len(inputs) > 1:
        outputs = predictor.predict(inputs, batch_size=request["batch_size"])
    if request["want_outputs"]:
        import numpy as np

        np.save(request_path.with_name("outputs.npy"), np.asarray(outputs), allow_pickle=False)
    answer = {
        "answered_at": answered_at,
        "import_s": imported - begun,
        "load_s": loaded - imported,
        "predict_s": predicted - loaded,
        "import_mib": import_mib,
        "peak_mib": peak_rss_mib(),
    }
    request_path.with_name("answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    answer_request(Path(sys.argv[1]))
