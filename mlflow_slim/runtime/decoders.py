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

    def begin(self, length: int, *, rows: int = 1) -> Any:
        """An empty cache for ``rows`` texts of so many tokens, prompt and answer; more may come, and may be slower."""
        ...

    def step(self, ids: np.ndarray, cache: Any, *, keep: int) -> np.ndarray:
        """Logits ``(keep, vocabulary)`` after the last ``keep`` of the tokens ``(tokens,)``, which join the cache.

        Of several texts at a time, as long as each other: ``(rows, keep, vocabulary)`` for ``(rows, tokens)``.
        """
        ...

    def crop(self, cache: Any, length: int) -> None:
        """Takes all tokens but the first ``length`` out of a cache."""
        ...


class TorchDecoder:
    """A transformers model of the class ``AutoModelForCausalLM``.

    Args:
        model: The model, in eval mode, on the device it shall run on.
        threads: Threads of torch, >= 1; set again before a call when another engine has changed them.
        compile_mode: Mode of torch.compile for passes of one token, over a cache of fixed size; None runs the model as
            it is. Where compiling fails, the model is run as it is, with a warning.
        length: Tokens that the cache of fixed size has room for; longer texts are not run compiled.
    """

    def __init__(self, model: Any, *, threads: int, compile_mode: str | None = None, length: int = 0) -> None:
        import torch

        self._torch, self._model, self._threads, self._length = torch, model, threads, length
        self._compiled: Any = None
        if compile_mode is not None:
            mode = None if compile_mode == "default" else compile_mode
            self._compiled = torch.compile(self._one, dynamic=False, mode=mode)
        self.settings = {
            "threads": threads,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "compile": compile_mode or "no",
        }

    def _one(self, tokens: Any, positions: Any, cache: Any) -> Any:
        """Logits after one token; written out, because a keyword more or less is another graph."""
        return self._model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True).logits

    def begin(self, length: int, *, rows: int = 1) -> Any:
        """Transformers' own cache for this model, of fixed size where it is compiled and one text fits."""
        from transformers import DynamicCache, StaticCache

        if self._compiled is not None and rows == 1 and length <= self._length:
            return StaticCache(config=self._model.config, max_cache_len=self._length)
        cache = DynamicCache(config=self._model.config)
        # What has slid out of a window can't come back when tokens are taken out again; masks look after windows, too.
        return DynamicCache() if any(cache.is_sliding) else cache

    def step(self, ids: np.ndarray, cache: Any, *, keep: int) -> np.ndarray:
        """See `Decoder.step`; float32."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            tokens = torch.from_numpy(np.atleast_2d(np.asarray(ids, dtype=np.int64))).to(self._model.device)
            found = self._pass_compiled(tokens, cache)
            if found is None:
                found = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
            logits: np.ndarray = found[:, -keep:].float().cpu().numpy()
        return logits if np.ndim(ids) == 2 else logits[0]

    def _pass_compiled(self, tokens: Any, cache: Any) -> Any:
        """Logits of a compiled pass; None where the model is to be run as it is."""
        if self._compiled is None or tokens.shape[1] != 1 or not cache.is_compileable:
            return None
        length = int(cache.get_seq_length())
        try:
            return self._compiled(tokens, self._torch.tensor([[length]], device=tokens.device), cache)
        except Exception as error:  # the compiler and what it calls raise many kinds
            if int(cache.get_seq_length()) != length:
                raise  # the token may be in the cache already
            logger.warning("torch.compile failed (%s); the model runs uncompiled, so slower.", error)
            self._compiled, self.settings["compile"] = None, "failed"
            return None

    def crop(self, cache: Any, length: int) -> None:
        """See `Decoder.crop`."""
        if (surplus := int(cache.get_seq_length()) - length) <= 0:
            return
        if cache.is_compileable:
            for layer in cache.layers:  # what lies behind is written over before it is looked at
                layer.cumulative_length.sub_(surplus)
        else:
            cache.crop(-surplus)  # by how many, not to how many: newer versions take nothing else


_ROOM = 1024
"""Tokens that a cache has room for at first, at most: who allows many may need few."""


class _OnnxCache:
    """Keys and values of the tokens so far, one buffer a layer and kind, with room for more tokens behind.

    A pass writes those of its tokens behind the others, in place: what comes in as past goes out as present.
    """

    def __init__(self, session: Any, shapes: dict[str, tuple[int, int]], rows: int, room: int) -> None:
        self._session, self._shapes, self._rows = session, shapes, rows
        self.length, self.room = 0, 0
        self._buffers: dict[str, Any] = {}
        self.make_room(room)

    def make_room(self, room: int) -> None:
        """Room for so many tokens; those that are there stay."""
        import onnxruntime

        if room <= self.room:
            return
        self.binding = self._session.io_binding()
        for name, (heads, size) in self._shapes.items():
            whole = np.zeros((self._rows, heads, room, size), dtype=np.float32)
            if name in self._buffers:
                whole[:, :, : self.length] = self._buffers[name].numpy()[:, :, : self.length]
            buffer = self._buffers[name] = onnxruntime.OrtValue.ortvalue_from_numpy(whole)
            self.binding.bind_ortvalue_input(name, buffer)
            self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        self.room = room


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
        self._shapes = {
            name: (int(one.shape[1]), int(one.shape[3]))
            for name, one in taken.items()
            if name.startswith("past_key_values")
        }
        self._positions = "position_ids" in taken

    def begin(self, length: int, *, rows: int = 1) -> _OnnxCache:
        """A cache without tokens."""
        return _OnnxCache(self._session, self._shapes, rows, min(length, _ROOM))

    def step(self, ids: np.ndarray, cache: _OnnxCache, *, keep: int) -> np.ndarray:
        """See `Decoder.step`; float32."""
        tokens = np.atleast_2d(np.asarray(ids, dtype=np.int64))
        rows, total = len(tokens), cache.length + tokens.shape[1]
        if total > cache.room:
            cache.make_room(max(total, 2 * cache.room))
        feeds = {"input_ids": tokens, "attention_mask": np.ones((rows, total), dtype=np.int64)}
        if self._positions:
            feeds["position_ids"] = np.tile(np.arange(cache.length, total, dtype=np.int64), (rows, 1))
        for name, array in feeds.items():
            cache.binding.bind_cpu_input(name, array)
        cache.binding.bind_output("logits")  # anew: its shape is another one each time
        self._session.run_with_iobinding(cache.binding)
        cache.length = total
        found = cache.binding.get_outputs()[len(self._shapes)]  # bound after the others
        logits: np.ndarray = np.array(found.numpy()[:, -keep:], dtype=np.float32)
        return logits if np.ndim(ids) == 2 else logits[0]

    def crop(self, cache: _OnnxCache, length: int) -> None:
        """See `Decoder.crop`."""
        cache.length = min(cache.length, length)  # what lies behind is written over before it is looked at


class _OpenVinoCache:
    """One inference request: the graph keeps keys and values of the tokens so far as the request's own state."""

    def __init__(self, request: Any) -> None:
        self.request, self.length = request, 0


class OpenVinoDecoder:
    """``openvino_model.xml`` of a bundle, a graph with state.

    Args:
        path: The model's XML file.
        threads: Threads of one inference, >= 1.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        from .openvino_engine import open_graph

        self._compiled, self.settings = open_graph(path, threads=threads)
        self._taken = {name for port in self._compiled.inputs for name in port.get_names()}

    def begin(self, length: int, *, rows: int = 1) -> _OpenVinoCache:  # noqa: ARG002 - it grows
        """A request without tokens."""
        return _OpenVinoCache(self._compiled.create_infer_request())

    def step(self, ids: np.ndarray, cache: _OpenVinoCache, *, keep: int) -> np.ndarray:
        """See `Decoder.step`; float32."""
        tokens = np.atleast_2d(np.asarray(ids, dtype=np.int64))
        rows, count = tokens.shape
        total = cache.length + count
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((rows, total), dtype=np.int64),
            "position_ids": np.tile(np.arange(cache.length, total, dtype=np.int64), (rows, 1)),
            "keep": np.arange(count - keep, count, dtype=np.int64),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        given = {name: array for name, array in feeds.items() if name in self._taken}
        results = cache.request.infer(given, share_inputs=True, share_outputs=True)
        cache.length = total
        logits = np.array(results[0], dtype=np.float32)  # a copy: the next inference writes into the same memory
        return logits if np.ndim(ids) == 2 else logits[0]

    def crop(self, cache: _OpenVinoCache, length: int) -> None:
        """See `Decoder.crop`."""
        if cache.length <= length:
            return
        import openvino

        for state in cache.request.query_state():
            kept = np.ascontiguousarray(state.state.data[:, :, :length])
            state.state = openvino.Tensor(kept)
        cache.length = length
