"""Integer forms of ONNX graphs that were exported from torch, addressed by the names of the torch modules.

The quantizers are onnxruntime's own. What is added is that a weight of the graph is found again as the module
it came from, whatever the exporter and the fusions called it, so that people can name modules to keep in float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .interfaces import Scheme

__all__ = ["quantize_graph", "weighted_nodes"]

_OPERATORS = ("Gather", "Gemm", "MatMul")
"""Operators that onnxruntime's dynamic quantizer has integer kernels for and that our graphs use with weights."""


def _digest(array: Any) -> str:
    import numpy as np

    plain = np.ascontiguousarray(array, dtype=np.float32)
    return f"{plain.shape}:{hashlib.sha256(plain.tobytes()).hexdigest()}"


def _modules_by_weight(model: Any) -> dict[str, str]:
    """Digest of each matrix of a torch model, as it is and transposed -> the name of its module."""
    found: dict[str, str] = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            array = weight.detach().cpu().float().numpy()
            for form in (array, array.T):
                found.setdefault(_digest(form), name.removesuffix(".weight"))
    return found


def weighted_nodes(path: Path, model: Any) -> dict[str, list[str]]:
    """Module name -> names of the graph's nodes that use its matrix, in the graph's order.

    A matrix that is found in no module goes by its node's own name.

    Args:
        path: The ONNX file, float32.
        model: The torch model that it was exported from.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    modules = _modules_by_weight(model)
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        used = next((name for name in node.input if name in matrices), None)
        if node.op_type in _OPERATORS and used is not None:
            array = numpy_helper.to_array(matrices[used], base_dir=str(path.parent))
            nodes.setdefault(modules.get(_digest(array), node.name), []).append(node.name)
    return nodes


def quantize_graph(path: Path, target: Path, scheme: Scheme, nodes: Mapping[str, list[str]]) -> None:
    """Writes the quantized form of an ONNX file.

    Args:
        path: The float32 graph.
        target: The file to write.
        scheme: What to quantize how.
        nodes: What `weighted_nodes` gave for ``path``.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = [node for module in scheme.keep_float for node in nodes.get(module, [])]
    kept += [f"{node}_MatMul" for node in kept]  # onnxruntime first makes a Gemm a MatMul of this name
    size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    quantize_dynamic(
        str(path),
        str(target),
        op_types_to_quantize=list(_OPERATORS),
        per_channel=scheme.per_channel,
        reduce_range=scheme.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
        use_external_data_format=size > 1_800_000_000,
        # Fusions leave values whose types shape inference can't tell; all of them are floats.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
