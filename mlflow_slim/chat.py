"""What an exported language model keeps of its tokenizer's chat template and its end tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .runtime.prompts import PromptFile

__all__ = ["chat_inputs", "prompt_file"]


def chat_inputs(tokenizer: Any, generation_config: Any = None) -> dict[str, Any]:
    """What ``slim.json`` says of a language model's tokenizer: its chat template, special tokens and end.

    Args:
        tokenizer: A transformers tokenizer.
        generation_config: The model's, which may name further end tokens.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
    ends = sorted({int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None})
    found: dict[str, Any] = {"end_ids": ends}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        found["chat_template"] = template
        found["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if token}
    return found


def prompt_file(tokenizer: Any, spec: Mapping[str, Any]) -> PromptFile:
    """A transformers tokenizer as the runtime encodes with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.backend_tokenizer.save(str(path))
        return PromptFile(path, chat_inputs(tokenizer), chat=bool(spec.get("chat")))
