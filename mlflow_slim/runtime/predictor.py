"""Opens a bundle and answers with raw outputs, the same way for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import openvino_engine, tasks
from .bundle import Bundle, BundleError, read_bundle
from .encoder import TokenizerFile
from .onnx_engine import MODEL, OnnxEngine
from .torch_engine import TorchEngine, load_model, to_int8, transformers_encoder


class Engine(Protocol):
    """Computes on encoded batches."""

    settings: dict[str, Any]

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raw outputs, float32, ``(rows, ...)``."""
        ...


def _size(text: Any) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


class Predictor:
    """A loaded model.

    Attributes:
        bundle: What its folder says.
        threads: Threads it computes with.
        settings: What was set in the engine, for the record.
    """

    def __init__(
        self, bundle: Bundle, encoder: Callable[[Sequence[Any]], dict[str, np.ndarray]], engine: Engine, threads: int
    ) -> None:
        self.bundle = bundle
        self.threads = threads
        self.settings = engine.settings
        self._encoder = encoder
        self._engine = engine

    def __repr__(self) -> str:
        return f"Predictor(task={self.bundle.task!r}, backend={self.bundle.backend!r}, threads={self.threads})"

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """``{name: (rows, tokens) int64}``: tokenized, truncated, padded to the longest of these inputs."""
        return self._encoder(inputs)

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raw outputs of one encoded batch, float32, ``(rows, ...)``."""
        return self._engine.forward(batch)

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """Raw outputs for all inputs, in their order, float32, ``(rows, ...)``.

        Batches hold inputs of like length (in characters, which needs no tokenizing ahead), so that little is
        computed on padding.

        Raises:
            ValueError: No inputs, or ``batch_size`` below 1.
        """
        if len(inputs) == 0:
            raise ValueError("There are no inputs: the list is empty. Send at least one.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        order = sorted(range(len(inputs)), key=lambda row: _size(inputs[row]))
        parts = [
            self.forward(self.encode([inputs[row] for row in order[start : start + batch_size]]))
            for start in range(0, len(order), batch_size)
        ]
        outputs = np.concatenate(parts)
        restored = np.empty_like(outputs)
        restored[order] = outputs
        return restored


def load(directory: str | Path, *, threads: int, device: str = "cpu", verify: bool = True) -> Predictor:
    """A predictor over the bundle in ``directory``.

    Args:
        directory: The folder with ``slim.json``.
        threads: Threads to compute with, >= 1.
        device: ``cpu``, or ``cuda`` for a torch bundle.
        verify: False leaves out the comparison with the manifest, for a caller that has just done it.

    Raises:
        ValueError: ``threads`` is below 1.
        BundleError: The folder is not a sound bundle, or of a backend unknown here.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    bundle = read_bundle(directory, verify=verify)
    try:
        task = tasks.find(bundle.task)
        max_length = int(bundle.spec["max_length"])
        if bundle.backend in ("onnxruntime", "openvino"):
            if device != "cpu":
                raise BundleError(f"An {bundle.backend} bundle runs on cpu, not on {device!r}.")
            encoder = TokenizerFile(bundle.directory / "tokenizer.json", bundle.inputs, max_length=max_length)
            if bundle.backend == "openvino":
                graph = bundle.directory / openvino_engine.MODEL
                return Predictor(bundle, encoder, openvino_engine.OpenVinoEngine(graph, threads=threads), threads)
            return Predictor(bundle, encoder, OnnxEngine(bundle.directory / MODEL, threads=threads), threads)
        if bundle.backend == "torch":
            model = load_model(bundle.directory, task.LIBRARY_CLASS).to(device).eval()
            engine_options = bundle.content.get("engine", {})
            if "int8" in engine_options:
                model = to_int8(model, **engine_options["int8"])
            compile_mode = engine_options.get("compile")
            engine = TorchEngine(model, output=task.OUTPUT, threads=threads, compile_mode=compile_mode)
            encode = transformers_encoder(bundle.directory, bundle.inputs["names"], max_length=max_length)
            return Predictor(bundle, encode, engine, threads)
    except (BundleError, ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers and onnxruntime raise kinds of their own, some of them plain Exception
        raise BundleError(f"{bundle.directory} can't be opened: {error}") from error
    raise BundleError(f"{bundle.directory} is for the backend {bundle.backend!r}. Known: onnxruntime, openvino, torch.")
