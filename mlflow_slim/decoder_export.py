"""A language model as a graph of some runtime: what every one needs of the model before, and is held to after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundle
from .errors import ExportError
from .runtime.decoders import TorchDecoder

if TYPE_CHECKING:
    import numpy as np

    from .artifact import ExportedModel, OptimizedModel
    from .runtime.decoders import Decoder

__all__ = ["export_decoder"]

_TOLERANCE = 2e-3
"""Of the logits, as a share of the largest; differences of fp32 graphs were 1e-5 to 3e-4."""
_TOKENS = 64
"""Of each row that answers are compared on, at most."""


def export_decoder(
    source: OptimizedModel,
    directory: Path,
    sample: Sequence[Any],
    *,
    backend: str,
    threads: int,
    write: Callable[[OptimizedModel, Any, Path], Mapping[str, Any]],
    open_graph: Callable[[Path], Decoder],
) -> ExportedModel:
    """Writes ``source`` as a graph into ``directory`` and compares its logits with the source's, token by token too.

    Args:
        source: The model; it is left as it is.
        directory: Made here; must not exist.
        sample: A few real rows.
        backend: Whose format it is.
        threads: To compare with.
        write: Writes the graph of the float32 model that it is given into a folder; what to note about it.
        open_graph: Opens what was written.

    Raises:
        ExportError: The architecture isn't known there, or the graph answers differently.
        MissingDependency: What writes the graph isn't installed.
    """
    import torch

    notes: dict[str, Any] = {}
    with bundle.staged(Path(directory)) as work, bundle.evaluating(source.model):
        inputs = bundle.save_processor(source, work, sample, whole=False)
        model = source.model
        if model.dtype != torch.float32 or model.device.type != "cpu":
            notes["widened"] = f"{str(model.dtype).removeprefix('torch.')} to float32"
            model = copy.deepcopy(model).to("cpu", torch.float32)
        notes |= write(source, model, work)
        texts = [" ".join(part for part in row if part) if not isinstance(row, str) else row for row in sample]
        encode = source.processor.backend_tokenizer.encode
        rows = [encode(text).ids[:_TOKENS] for text in texts if text]
        window, length = getattr(model.config, "sliding_window", None), int(source.spec["max_length"])
        if window and window < length and rows:  # whether a graph knows of it shows beyond it only
            rows.append((rows[0] * (1 + length // len(rows[0])))[: min(length, window + _TOKENS)])
        try:
            difference = _difference(TorchDecoder(model, threads=threads), open_graph(work), rows)
        except (ExportError, MemoryError):
            raise
        except Exception as error:  # runtimes have kinds of their own, and kernels with wishes of their own
            raise ExportError(
                f"{backend} can't run the graph of {type(model).__name__}: {error}. Write other export.backends."
            ) from error
        bundle.write(source, work, backend=backend, inputs=inputs, notes={**notes, "max_abs_diff": difference})
    return bundle.read(directory, verify=False)


def _difference(expected: Decoder, found: Decoder, rows: Sequence[Sequence[int]]) -> float:
    """Largest difference of logits: of whole rows at once, token by token, and after tokens were taken out again.

    Raises:
        ExportError: It is more than float32 explains, or there was nothing to compare.
    """
    import numpy as np

    worst = 0.0
    for ids in rows:
        array = np.array(ids, dtype=np.int64)
        wanted, got = _walk(expected, array), _walk(found, array)
        if not np.isfinite(got).all():
            raise ExportError("The graph answers with values that are no numbers. It was not kept.")
        difference, allowed = float(np.abs(wanted - got).max()), 1e-4 + _TOLERANCE * float(np.abs(wanted).max())
        if difference > allowed:
            raise ExportError(
                f"The graph differs from its source by {difference:.2g} in its logits, more than the "
                f"{allowed:.2g} allowed. It was not kept."
            )
        worst = max(worst, difference)
    if not rows:
        raise ExportError("Checking the exported model needs a sample of inputs, got none. Pass a few rows.")
    return worst


def _walk(decoder: Decoder, ids: np.ndarray) -> np.ndarray:
    """Logits of all tokens in one pass, then of the last ones again one by one from a cache that was cut back."""
    import numpy as np

    cache = decoder.begin(len(ids))
    whole = decoder.step(ids, cache, keep=len(ids))
    half = max(1, len(ids) // 2, len(ids) - _TOKENS)
    decoder.crop(cache, half)
    again = [decoder.step(ids[place : place + 1], cache, keep=1) for place in range(half, len(ids))]
    return np.concatenate([whole, *again])
