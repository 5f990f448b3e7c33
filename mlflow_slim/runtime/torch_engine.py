"""Runs the transformers model of a bundle with torch; both are imported when a bundle is opened, not before."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .encoder import OFFSETS, cut_long_pairs
from .inputs import each_alone, open_encoder, stacked
from .narrowed import narrow, shapes_in

logger = logging.getLogger(__name__)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no reports from transformers inside, errors only, and its settings restored after.

    transformers 5 draws a bar for every weight file and reports fresh heads, which we say ourselves.
    """
    from transformers.utils import logging as upstream_logging

    upstream: Any = upstream_logging  # its functions carry no types
    shown, level = upstream.is_progress_bar_enabled(), upstream.get_verbosity()
    upstream.disable_progress_bar()
    upstream.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        upstream.set_verbosity(level)
        if shown:
            upstream.enable_progress_bar()


def refuse_code(directory: Path) -> None:
    """Raises ValueError when a JSON file of the folder would make transformers fetch or run code."""
    for path in sorted(directory.glob("*config.json")):
        waiting: list[Any] = [json.loads(path.read_text(encoding="utf-8"))]
        while waiting:
            item = waiting.pop()
            if isinstance(item, list):
                waiting += item
            elif isinstance(item, dict):
                waiting += item.values()
                for key, value in item.items():
                    kernel = "attn_implementation" in key and isinstance(value, str) and "/" in value
                    if kernel or (key in ("auto_map", "trust_remote_code") and value):
                        raise ValueError(f"{path.name} sets {key} to {value!r}, which would run code; refused.")


def load_model(directory: Path, library_class: str) -> Any:
    """The transformers model of a folder, from safetensors alone, in the type its weights have.

    Raises:
        ValueError: The weights don't fit the model that the configuration describes, or loading would run code.
    """
    import transformers

    refuse_code(directory)
    shapes = shapes_in(directory)
    with quiet_transformers():
        model, report = getattr(transformers, library_class).from_pretrained(
            str(directory),
            dtype="auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(shapes),
        )
    if shapes:
        report = narrow(model, report, directory, shapes)
    # transformers only warns here and goes on with random weights
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if kind.endswith("_keys") and names}
    if wrong:
        raise ValueError(f"the weights in {directory} don't fit its config.json: {wrong}")
    return model


def to_int8(model: Any, *, engine: str, modules: Sequence[str]) -> Any:
    """``model`` with int8 weights in the linear modules named, activations scaled when it runs; changed in place.

    Args:
        model: A float32 model on the CPU, in eval mode.
        engine: ``torch.ao`` or ``torchao``.
        modules: Names of linear modules.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its own quantizer, and has no other as fast
        if engine == "torchao":
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            chosen = set(modules)
            quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _, name: name in chosen)
            return model
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        logger.debug("torch.ao quantizes with the engine %s", torch.backends.quantized.engine)
        upstream: Any = quantize_dynamic  # untyped
        return upstream(model, dict.fromkeys(modules, per_channel_dynamic_qconfig), dtype=torch.qint8, inplace=True)


class TorchEngine:
    """A transformers model that answers.

    Args:
        model: The model, in eval mode, on the device it shall run on.
        outputs: The fields of its output that are the answer, such as ``logits``; several are stacked behind.
        threads: Threads of torch, >= 1. torch keeps one number per process, so it is set again before a call
            when another engine has changed it.
        compile_mode: Mode of torch.compile; None runs the model as it is. Where compiling fails, the model is run as
            it is, with a warning.
    """

    def __init__(self, model: Any, *, outputs: Sequence[str], threads: int, compile_mode: str | None = None) -> None:
        import torch

        self._torch = torch
        self._eager = self._model = model
        if compile_mode is not None:
            self._model = torch.compile(model, dynamic=True, mode=None if compile_mode == "default" else compile_mode)
        self._outputs = tuple(outputs)
        self._threads = threads
        self._device = model.device
        self.settings = {
            "threads": threads,
            "device": str(self._device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "compile": compile_mode or "no",
        }
        logger.debug("torch %s: %s", torch.__version__, self.settings)

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The answer, float32, ``(rows, ...)``; a GPU has finished when this returns."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
            try:
                outputs = self._model(**inputs)
            except Exception as error:  # the compiler and what it calls raise many kinds
                if self._model is self._eager:
                    raise
                logger.warning("torch.compile failed (%s); the model runs uncompiled, so slower.", error)
                self._model, self.settings["compile"] = self._eager, "failed"
                outputs = self._model(**inputs)
            arrays = [getattr(outputs, name).float().cpu().numpy() for name in self._outputs]
        return stacked(arrays)


def torch_encoder(
    directory: Path, inputs: Mapping[str, Any], spec: Mapping[str, Any], *, offsets: bool = False
) -> Callable[[Sequence[Any]], dict[str, np.ndarray]]:
    """What encodes for a torch model: the model's own tokenizer; of images and windows, what other runtimes use."""
    if "image" in inputs or "stride" in spec:
        return open_encoder(directory, inputs, spec, offsets=offsets)
    encode = transformers_encoder(directory, inputs["names"], max_length=int(spec["max_length"]), offsets=offsets)
    return each_alone(encode) if "pooling" in spec else encode


def transformers_encoder(
    directory: Path, names: Sequence[str], *, max_length: int, offsets: bool = False
) -> Callable[[Sequence[Any]], dict[str, np.ndarray]]:
    """Encodes as a user of transformers would: the model's own fast tokenizer, called with a list.

    With ``offsets`` it gives `OFFSETS`, too.
    """
    import transformers

    refuse_code(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False
    )

    def encode(texts: Sequence[Any]) -> dict[str, np.ndarray]:
        pairs = bool(texts) and not isinstance(texts[0], str)
        if pairs and tokenizer.is_fast:
            side = tokenizer.truncation_side == "right"
            texts = cut_long_pairs(texts, tokenizer.backend_tokenizer, max_length=max_length, from_right=side)
        first = [text[0] for text in texts] if pairs else list(texts)
        second = [text[1] for text in texts] if pairs else None
        encoded = tokenizer(
            first,
            second,
            truncation=True,
            max_length=max_length,
            padding="longest",
            return_tensors="np",
            return_offsets_mapping=offsets,
        )
        arrays = {name: np.asarray(encoded[name], dtype=np.int64) for name in names}
        if offsets:
            arrays[OFFSETS] = np.asarray(encoded["offset_mapping"], dtype=np.int64)
        return arrays

    return encode
