"""A GGUF file as the folder that the rest works on: float32 weights as safetensors, configuration and tokenizer.

Weights in the blocks of llama.cpp are widened as they are; what rounding took from them before stays lost, so that a
model measured against them is measured against a rounded original.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from .errors import MissingDependency, ModelError
from .runtime.torch_engine import quiet_transformers

__all__ = ["from_gguf"]


def from_gguf(path: Path, folder: Path) -> Path:
    """Writes the model of a GGUF file into ``folder`` and gives it.

    Args:
        path: The file.
        folder: An empty folder.

    Raises:
        MissingDependency: The package gguf isn't installed.
        ModelError: transformers can't read the file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(f"Reading {path.name} needs gguf. Install it with: pip install gguf")
    import torch
    import transformers

    given: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # it draws a bar of its own
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **given)
            auto: Any = transformers.AutoModelForCausalLM
            model = auto.from_pretrained(str(path.parent), dtype=torch.float32, **given)
            # transformers refuses to save a model that it holds for quantized, though its weights are floats by now.
            model.config.__dict__.pop("quantization_config", None)
            model.hf_quantizer = None
            model.is_quantized = False
            model.config.__dict__.pop("_name_or_path", None)
            plain = type(model)(model.config)
            plain.load_state_dict(model.state_dict())
            plain.generation_config = model.generation_config
            plain.tie_weights()
            plain.save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
    except Exception as error:  # its reader unpacks bytes and looks up names: a broken file can raise anything
        raise ModelError(f"transformers can't read {str(path)!r}: {error}. Give the model as safetensors.") from error
    return folder
