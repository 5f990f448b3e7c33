"""What makes a model's inputs of what a person sends, as ``slim.json`` says: texts to tokens, images to pixels.

And what makes one answer of a model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .encoder import TokenizerFile
from .images import ImageFile
from .questions import open_windows

Encoder: TypeAlias = Callable[[Sequence[Any]], dict[str, np.ndarray]]
TOKENIZER = "tokenizer.json"


def open_encoder(
    directory: Path, inputs: Mapping[str, Any], spec: Mapping[str, Any], *, offsets: bool = False
) -> Encoder:
    """What encodes for the model in a folder, without transformers.

    Args:
        directory: The folder.
        inputs: The section of ``slim.json``; ``image`` holds the settings of an image model.
        spec: ``max_length`` of a text model, ``stride`` of one that reads in windows.
        offsets: Whether to give the characters of each token, too, or what stands at the pieces of a context.
    """
    if "image" in inputs:
        return ImageFile(inputs["image"])
    if "stride" in spec:
        return open_windows(directory / TOKENIZER, inputs, spec, whole=offsets)
    encode = TokenizerFile(directory / TOKENIZER, inputs, max_length=int(spec["max_length"]), offsets=offsets)
    return each_alone(encode) if "pooling" in spec else encode


def stacked(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """A model's outputs as one answer, float32: several ``(rows, ...)`` as ``(rows, ..., outputs)``."""
    whole = outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=-1)
    return np.asarray(whole, dtype=np.float32)


def each_alone(encode: Encoder) -> Encoder:
    """Encodes the two texts of a pair one after the other, as of a model that gives a vector for each."""
    return lambda inputs: encode(texts_of(inputs))


def texts_of(inputs: Sequence[Any]) -> Sequence[str]:
    """The texts of pairs one after the other; single texts as they are."""
    return inputs if not inputs or isinstance(inputs[0], str) else [text for pair in inputs for text in pair]
