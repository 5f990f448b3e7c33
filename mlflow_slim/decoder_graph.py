"""A language model as an ONNX graph with keys and values of past tokens, by onnxruntime-genai's model builder.

The builder writes the graph from the weights, with the operators that onnxruntime is fast in (grouped attention with
rotary positions, skipped layer norms). Its runtime is not needed: the graph runs in plain onnxruntime.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExportError, MissingDependency
from .runtime.onnx_engine import MODEL
from .runtime.torch_engine import quiet_transformers

if TYPE_CHECKING:
    from .artifact import OptimizedModel

__all__ = ["write_onnx"]


def _check_builder() -> None:
    """Raises MissingDependency when the builder isn't installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise MissingDependency(
            "Exporting a language model to ONNX needs onnxruntime-genai. Install it with: "
            "pip install onnxruntime-genai; or write export.backends=openvino or torch."
        )


def write_onnx(source: OptimizedModel, model: Any, work: Path) -> dict[str, Any]:
    """Puts ``model.onnx`` and its weights beside it into ``work``, for a float32 model; what to note about it.

    Raises:
        ExportError: The builder doesn't know this architecture.
        MissingDependency: The builder isn't installed.
    """
    import onnxruntime

    _check_builder()
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
            reason = str(error).replace(f"{given} ", "").rstrip(".")  # the folder is gone by the time it is read
            raise ExportError(
                f"onnxruntime-genai can't build a graph of {type(model).__name__}: {reason}. "
                "Write export.backends=openvino or torch."
            ) from error
        _fix_head_size(Path(made))
        for part in sorted(Path(made).glob(f"{MODEL}*")):
            part.rename(work / part.name)
    return {"builder": "onnxruntime-genai", "onnxruntime": onnxruntime.__version__}


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
