"""A language model as an ONNX graph with keys and values of past tokens, by onnxruntime-genai's model builder.

The builder writes the graph from the weights, with the operators that onnxruntime is fast in (grouped attention with
rotary positions, skipped layer norms). Its runtime is not needed: the graph runs in plain onnxruntime.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundle
from .errors import ExportError, MissingDependency
from .runtime.decoders import OnnxDecoder, TorchDecoder
from .runtime.onnx_engine import MODEL
from .runtime.torch_engine import quiet_transformers

if TYPE_CHECKING:
    import numpy as np

    from .artifact import ExportedModel, OptimizedModel
    from .runtime.decoders import Decoder

__all__ = ["check_builder", "export_decoder"]

_TOLERANCE = 2e-3
"""Of the logits, as a share of the largest; differences of fp32 graphs were 1e-5 to 3e-4."""


def check_builder() -> None:
    """Raises MissingDependency when the builder isn't installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise MissingDependency(
            "Exporting a language model to ONNX needs onnxruntime-genai. Install it with: "
            "pip install onnxruntime-genai; or write export.backends=torch."
        )


def export_decoder(
    source: OptimizedModel, directory: Path, sample: Sequence[Any], *, backend: str, threads: int
) -> ExportedModel:
    """Writes ``source`` as a graph into ``directory`` and compares its logits with the source's, token by token too.

    Args:
        source: The model; it is left as it is.
        directory: Made here; must not exist.
        sample: A few real rows.
        backend: Whose format it is.
        threads: To compare with.

    Raises:
        ExportError: The builder doesn't know this architecture, or the graph answers differently.
        MissingDependency: The builder isn't installed.
    """
    import onnxruntime
    import torch

    check_builder()
    notes: dict[str, Any]
    with bundle.staged(Path(directory)) as work, bundle.evaluating(source.model):
        inputs = bundle.save_tokenizer(source, work, sample, whole=False)
        model, notes = source.model, {"builder": "onnxruntime-genai"}
        if model.dtype != torch.float32 or model.device.type != "cpu":
            notes["widened"] = f"{str(model.dtype).removeprefix('torch.')} to float32"
            model = copy.deepcopy(model).to("cpu", torch.float32)
        _write_graph(source, model, work)
        texts = [" ".join(part for part in row if part) if not isinstance(row, str) else row for row in sample]
        encode = source.processor.backend_tokenizer.encode
        rows = [encode(text).ids[:64] for text in texts if text]
        try:
            found = OnnxDecoder(work / MODEL, threads=threads)
            difference = _difference(TorchDecoder(model, threads=threads), found, rows)
        except (ExportError, MemoryError):
            raise
        except Exception as error:  # onnxruntime has kinds of its own, and kernels with wishes of their own
            raise ExportError(
                f"onnxruntime can't run the graph of {type(model).__name__}: {error}. Write export.backends=torch."
            ) from error
        notes |= {"onnxruntime": onnxruntime.__version__, "max_abs_diff": difference}
        bundle.write(source, work, backend=backend, inputs=inputs, notes=notes)
    return bundle.read(directory, verify=False)


def _write_graph(source: OptimizedModel, model: Any, work: Path) -> None:
    """Puts ``model.onnx`` and its weights beside it into ``work``, for a float32 model."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=work) as name, _quiet():
        from onnxruntime_genai.models import builder  # its import already gives the root logger a handler

        folder = Path(name)
        given, made, cache = (str(folder / part) for part in ("torch", "onnx", "cache"))
        model.save_pretrained(given)
        source.processor.save_pretrained(given)
        try:
            # "hf_token" is the builder's way to ask for a login of the hub, which a local folder doesn't need.
            # Query, key and value stay apart, so that each is found again as its module; joined they were no faster.
            extra = ["hf_token=false", "disable_qkv_fusion=true"]
            options = builder.parse_extra_options("", given, made, "fp32", "cpu", cache, extra)
            builder.create_model("", given, made, "fp32", "cpu", cache, **options)
        except (Exception, SystemExit) as error:  # the builder raises whatever it stumbles on
            raise ExportError(
                f"onnxruntime-genai can't build a graph of {type(model).__name__}: {error}. "
                "Write export.backends=torch."
            ) from error
        _fix_head_size(Path(made))
        for part in sorted(Path(made).glob(f"{MODEL}*")):
            part.rename(work / part.name)


def _fix_head_size(folder: Path) -> None:
    """Writes the last dimension of keys and values into the graph, where the builder leaves it open."""
    import onnx

    size = int(json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"])
    model = onnx.load(str(folder / MODEL), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values", "present")):
            value.type.tensor_type.shape.dim[3].dim_value = size
    onnx.save(model, str(folder / MODEL))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The builder prints, draws bars, and gives the root logger a handler and a level that would stay."""
    handlers, level = list(logging.root.handlers), logging.root.level
    with (
        warnings.catch_warnings(),
        quiet_transformers(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)


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
            raise ExportError("The ONNX graph answers with values that are no numbers. It was not kept.")
        difference, allowed = float(np.abs(wanted - got).max()), 1e-4 + _TOLERANCE * float(np.abs(wanted).max())
        if difference > allowed:
            raise ExportError(
                f"The ONNX graph differs from its source by {difference:.2g} in its logits, more than the "
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
    half = max(1, len(ids) // 2)
    decoder.crop(cache, half)
    again = [decoder.step(ids[place : place + 1], cache, keep=1) for place in range(half, len(ids))]
    return np.concatenate([whole, *again])
