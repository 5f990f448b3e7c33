"""What makes a model's inputs of what a person sends, as ``slim.json`` says: texts to tokens, images to pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .encoder import TokenizerFile
from .images import ImageFile

Encoder: TypeAlias = Callable[[Sequence[Any]], dict[str, np.ndarray]]
TOKENIZER = "tokenizer.json"


def open_encoder(
    directory: Path, inputs: Mapping[str, Any], spec: Mapping[str, Any], *, offsets: bool = False
) -> Encoder:
    """What encodes for the model in a folder, without transformers.

    Args:
        directory: The folder.
        inputs: The section of ``slim.json``; ``image`` holds the settings of an image model.
        spec: ``max_length`` of a text model.
        offsets: Whether to give the characters of each token, too.
    """
    if "image" in inputs:
        return ImageFile(inputs["image"])
    return TokenizerFile(directory / TOKENIZER, inputs, max_length=int(spec["max_length"]), offsets=offsets)
