"""Runs ``openvino_model.xml`` of a bundle with OpenVINO on the CPU, on as many threads as asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .inputs import stacked

logger = logging.getLogger(__name__)

MODEL = "openvino_model.xml"


def open_graph(path: Path, *, threads: int) -> tuple[Any, dict[str, Any]]:
    """A compiled model, and what was set in it.

    Args:
        path: The model's XML file; its weights lie beside it.
        threads: Threads of one inference, >= 1. One inference at a time gets all of them (one stream), and floats,
            keys and values of past tokens too, are float32, whatever the processor would rather have.
    """
    import openvino  # here, so that other models are served without it

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    noted = {"threads": threads, "streams": 1, "precision": "f32", "pinning": False}
    logger.debug("%s opened by openvino %s: %s", path.name, openvino.__version__, noted)
    return compiled, noted


class OpenVinoEngine:
    """A compiled model whose first output is the answer, or that has several which are.

    Args:
        path: The model's XML file; its weights lie beside it.
        outputs: Names of the answer's parts; one of them alone may be called otherwise. Several are stacked behind.
        threads: Threads of one inference, >= 1.
    """

    def __init__(self, path: Path, *, outputs: Sequence[str], threads: int) -> None:
        self._compiled, self.settings = open_graph(path, threads=threads)
        self._outputs: Sequence[Any] = outputs if len(outputs) > 1 else (0,)
        self._local = threading.local()

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The answer, float32, ``(rows, ...)``; an inference request is not shared between threads."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        # Without sharing, inputs and outputs are copied, which costs a twentieth of the time of a small model; the
        # answer is copied here, because the next inference writes into the same memory.
        results = self._local.request.infer(dict(batch), share_inputs=True, share_outputs=True)
        return stacked([np.array(results[output]) for output in self._outputs])
