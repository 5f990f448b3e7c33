"""Language models as `generation` drives them: some tokens in, the logits after each of them out, with a cache.

A cache belongs to one text. It can be cut back, so that guessed tokens that turned out wrong are taken out again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .external_data import check_external_data

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """A language model over one runtime."""

    settings: dict[str, Any]

    def begin(self) -> Any:
        """An empty cache."""
        ...

    def step(self, ids: np.ndarray, cache: Any, *, keep: int) -> np.ndarray:
        """Logits ``(keep, vocabulary)`` after the last ``keep`` of the tokens ``(tokens,)``, which join the cache."""
        ...

    def crop(self, cache: Any, length: int) -> None:
        """Takes all tokens but the first ``length`` out of a cache."""
        ...


class TorchDecoder:
    """A transformers model of the class ``AutoModelForCausalLM``.

    Args:
        model: The model, in eval mode, on the device it shall run on.
        threads: Threads of torch, >= 1; set again before a call when another engine has changed them.
    """

    def __init__(self, model: Any, *, threads: int) -> None:
        import torch

        self._torch, self._model, self._threads = torch, model, threads
        self.settings = {
            "threads": threads,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "compile": "no",
        }

    def begin(self) -> Any:
        """Transformers' own cache for this model."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def step(self, ids: np.ndarray, cache: Any, *, keep: int) -> np.ndarray:
        """See `Decoder.step`; float32."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(self._model.device)
            outputs = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep)
            logits: np.ndarray = outputs.logits[0, -keep:].float().cpu().numpy()
        return logits

    def crop(self, cache: Any, length: int) -> None:
        """See `Decoder.crop`."""
        if (surplus := cache.get_seq_length() - length) > 0:
            cache.crop(-surplus)  # by how many, not to how many: newer versions take nothing else


class _OnnxCache:
    """Keys and values of the tokens so far, one array a layer and kind."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.length = values, 0


class OnnxDecoder:
    """``model.onnx`` of a bundle: tokens, a mask and past keys and values in, logits and present ones out.

    Args:
        path: The ONNX file.
        threads: Threads inside an operator, >= 1.

    Raises:
        ValueError: The file keeps weights in a place it must not name.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        from .onnx_engine import open_session

        check_external_data(path)
        self._session, self.settings = open_session(path, threads=threads)
        taken = {one.name: one for one in self._session.get_inputs()}
        self._empty = {
            name: np.zeros((1, one.shape[1], 0, one.shape[3]), dtype=np.float32)
            for name, one in taken.items()
            if name.startswith("past_key_values")
        }
        self._positions = "position_ids" in taken
        self._outputs = [one.name for one in self._session.get_outputs()]

    def begin(self) -> _OnnxCache:
        """A cache without tokens."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return _OnnxCache({name: make(array) for name, array in self._empty.items()})

    def step(self, ids: np.ndarray, cache: _OnnxCache, *, keep: int) -> np.ndarray:
        """See `Decoder.step`; float32."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        total = cache.length + len(ids)
        feeds = {
            "input_ids": make(np.asarray(ids, dtype=np.int64)[None]),
            "attention_mask": make(np.ones((1, total), dtype=np.int64)),
            **cache.values,
        }
        if self._positions:
            feeds["position_ids"] = make(np.arange(cache.length, total, dtype=np.int64)[None])
        found = dict(zip(self._outputs, self._session.run_with_ort_values(self._outputs, feeds), strict=True))
        cache.values = {name: found[name.replace("past_key_values", "present")] for name in cache.values}
        cache.length = total
        return np.asarray(found["logits"].numpy()[0, -keep:], dtype=np.float32)

    def crop(self, cache: _OnnxCache, length: int) -> None:
        """See `Decoder.crop`."""
        import onnxruntime

        if cache.length > length:
            make = onnxruntime.OrtValue.ortvalue_from_numpy
            cut = {name: np.ascontiguousarray(value.numpy()[:, :, :length]) for name, value in cache.values.items()}
            cache.values = {name: make(array) for name, array in cut.items()}
            cache.length = length
