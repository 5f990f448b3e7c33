"""Runs ``model.onnx`` of a bundle with onnxruntime, on as many threads as asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .external_data import check_external_data
from .inputs import stacked

logger = logging.getLogger(__name__)

MODEL = "model.onnx"


def open_session(path: Path, *, threads: int) -> tuple[Any, dict[str, Any]]:
    """A session over an ONNX file, and what was set in it.

    Args:
        path: The ONNX file.
        threads: Threads inside an operator, >= 1. Operators run one after the other, and idle threads do not
            spin: on a machine that does other work too, spinning takes the time it means to save.
    """
    import onnxruntime  # here, so that a torch model is served without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # its warnings are about graph nodes, nothing a user could act on
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    settings = {"intra_op_threads": threads, "inter_op_threads": 1, "spinning": False, "provider": "cpu"}
    logger.debug("%s opened by onnxruntime %s: %s", path.name, onnxruntime.__version__, settings)
    return session, settings


class OnnxEngine:
    """An open session over a graph whose first output is the answer, or that has several which are.

    Args:
        path: The ONNX file.
        outputs: Names of the answer's parts; one of them alone may be called otherwise. Several are stacked behind.
        threads: Threads inside an operator, >= 1.

    Raises:
        ValueError: The file keeps weights in a place it must not name.
    """

    def __init__(self, path: Path, *, outputs: Sequence[str], threads: int) -> None:
        check_external_data(path)
        self._session, self.settings = open_session(path, threads=threads)
        self._outputs = list(outputs) if len(outputs) > 1 else None

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The answer, float32, ``(rows, ...)``."""
        found = self._session.run(self._outputs, dict(batch))
        return stacked(found if self._outputs else found[:1])
