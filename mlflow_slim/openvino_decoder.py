"""A language model as an OpenVINO graph that keeps keys and values of past tokens as its own state.

It is traced from torch with past keys and values as inputs and present ones as outputs; OpenVINO's own transformation
then turns the pairs into state, which its CPU plug-in fuses with attention. The steps are those of optimum-intel's
exporter (Apache-2.0), which can't be installed beside this torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExportError
from .runtime.openvino_engine import MODEL
from .runtime.torch_engine import quiet_transformers

if TYPE_CHECKING:
    from .artifact import OptimizedModel

__all__ = ["write_openvino"]

_INPUTS = ("input_ids", "attention_mask", "position_ids", "keep")


def write_openvino(source: OptimizedModel, model: Any, work: Path) -> dict[str, Any]:  # noqa: ARG001 - as of others
    """Puts ``openvino_model.xml`` and its weights into ``work``, for a float32 model; what to note about it.

    Raises:
        ExportError: OpenVINO can't convert the model.
    """
    import openvino

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: what it takes for constant is compared at several lengths
            example, shapes = _example(model)
            graph = openvino.convert_model(_with_past(model), example_input=example)
        past = [f"past.{number}" for number in range(len(example) - len(_INPUTS))]
        for port, name in zip(graph.inputs, [*_INPUTS, *past], strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(graph.outputs[1:], past, strict=True):
            port.get_tensor().set_names({f"present.{name}"})
        _make_stateful(graph, dict(zip(past, shapes, strict=True)))
        openvino.save_model(graph, str(work / MODEL), compress_to_fp16=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # OpenVINO's frontend and torch's tracer raise many kinds of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.lstrip("- ") for line in lines if "Conversion is failed" in line), lines[0])
        raise ExportError(
            f"OpenVINO can't convert {type(model).__name__}: {reason}. Write export.backends=torch or onnxruntime."
        ) from error
    return {"openvino": openvino.__version__}


def _example(model: Any) -> tuple[tuple[Any, ...], list[tuple[int, int]]]:
    """Inputs with two texts of four past tokens and three new ones, and (heads, size) of each key or value."""
    import torch
    from transformers import DynamicCache

    texts, before, new = 2, 4, 3
    cache: Any = DynamicCache()
    ids = torch.arange(texts * before).reshape(texts, before) % model.config.vocab_size
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    past = [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    example = (
        ids[:, :new],
        torch.ones(texts, before + new, dtype=torch.long),
        torch.arange(before, before + new)[None].repeat(texts, 1),
        torch.tensor([new - 2, new - 1]),
        *past,
    )
    return example, [(tensor.shape[1], tensor.shape[3]) for tensor in past]


def _with_past(model: Any) -> Any:
    """A module with tensors in and tensors out: logits of the places to keep, and present keys and values."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    empty_layer: Any = DynamicLayer  # untyped

    class WithPast(torch.nn.Module):
        """The model."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any, mask: Any, positions: Any, keep: Any, *past: Any) -> Any:
            cache: Any = DynamicCache()
            for key, value in zip(past[::2], past[1::2], strict=True):
                layer = empty_layer()
                layer.lazy_initialization(key, value)
                layer.keys, layer.values = key, value
                cache.layers.append(layer)
            found = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            return (found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))

    return WithPast().eval()


def _make_stateful(graph: Any, past: dict[str, tuple[int, int]]) -> None:
    """Turns past and present into state, empty at first, with rows that can be put into another order between passes.

    The order is what the plug-in's fused attention with state looks for.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    order = ops.parameter([-1], openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([order])
    for name, (heads, size) in past.items():
        port = graph.input(name)
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, size]))
        takers = port.get_target_inputs()
        gather = ops.gather(port, order, ops.constant(0))
        for taker in takers:
            taker.replace_source_output(gather.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, {name: f"present.{name}" for name in past})
    shape = ops.shape_of(graph.input("input_ids"), output_type="i64")
    rows = ops.gather(shape, ops.constant([0]), ops.constant(0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = (dimension.min_length for dimension in node.get_output_partial_shape(0))
            rest = [ops.constant(np.array([length], dtype=np.int64)) for length in (heads, 0, size)]
            nothing = ops.broadcast(ops.constant(0.0, dtype=np.float32), ops.concat([rows, *rest], axis=0))
            node.set_arguments([nothing])
    graph.validate_nodes_and_infer_types()
