"""Integer forms of ONNX graphs that were exported from torch, addressed by the names of the torch modules.

The quantizers are onnxruntime's own. What is added is that a weight of the graph is found again as the module
it came from, whatever the exporter and the fusions called it, so that people can name modules to keep in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .interfaces import Kind, Scheme
from .weights import array_digest, modules_by_weight

if TYPE_CHECKING:
    import numpy as np

__all__ = ["quantize_graph", "weighted_nodes"]

OPERATORS: Mapping[Kind, tuple[str, ...]] = {
    "dynamic": ("Gather", "Gemm", "MatMul"),
    "static": ("Gemm", "MatMul"),
    "weight_only": ("Gather", "MatMul"),
}
"""Operators with weights in our graphs that onnxruntime has kernels for, by kind of quantization."""


def weighted_nodes(path: Path, model: Any, kind: Kind = "dynamic") -> dict[str, list[str]]:
    """Module name -> names of the graph's nodes that use its matrix, in the graph's order.

    A matrix that is found in no module goes by its node's own name.

    Args:
        path: The ONNX file, float32.
        model: The torch model that it was exported from.
        kind: Decides which operators count.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    modules = modules_by_weight(model)
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        used = next((name for name in node.input if name in matrices), None)
        if node.op_type in OPERATORS[kind] and used is not None:
            array = numpy_helper.to_array(matrices[used], base_dir=str(path.parent))
            nodes.setdefault(modules.get(array_digest(array), node.name), []).append(node.name)
    return nodes


def quantize_graph(
    path: Path,
    target: Path,
    scheme: Scheme,
    nodes: Mapping[str, list[str]],
    batches: Iterable[Mapping[str, np.ndarray]] = (),
    ranges: dict[str, bytes] | None = None,
) -> None:
    """Writes the quantized form of an ONNX file.

    Args:
        path: The float32 graph.
        target: The file to write.
        scheme: What to quantize how.
        nodes: What `weighted_nodes` gave for ``path``.
        batches: Encoded rows to calibrate on; only ``static`` looks at them.
        ranges: Keeps the ranges of activations from call to call, for one ``path`` and its batches.
    """
    kept = [node for module in scheme.keep_float for node in nodes.get(module, [])]
    kept += [f"{node}_MatMul" for node in kept]  # onnxruntime first makes a Gemm a MatMul of this name
    if scheme.kind == "static":
        _quantize_static(path, target, scheme, kept, batches, {} if ranges is None else ranges)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        current = path
        if scheme.embedding_bits == 4:
            current = _in_blocks(current, Path(folder) / "embeddings.onnx", "Gather", 4, scheme.block_size, kept)
        if scheme.kind == "weight_only":
            current = _in_blocks(
                current, Path(folder) / "matrices.onnx", "MatMul", scheme.bits, scheme.block_size, kept
            )
        operators = ["Gather"] if scheme.kind == "weight_only" else list(OPERATORS[scheme.kind])
        if scheme.embedding_bits == 4:
            operators.remove("Gather")
        if operators:
            _quantize_dynamic(current, target, scheme, kept, operators)
        else:
            for part in current.parent.glob(f"{current.name}*"):
                part.rename(target.parent / part.name.replace(current.name, target.name))


def _is_large(path: Path) -> bool:
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*")) > 1_800_000_000


def _quantize_dynamic(path: Path, target: Path, scheme: Scheme, kept: list[str], operators: list[str]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(path),
        str(target),
        op_types_to_quantize=operators,
        per_channel=scheme.per_channel,
        reduce_range=scheme.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
        use_external_data_format=_is_large(path),
        # Fusions leave values whose types shape inference can't tell; all of them are floats.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _in_blocks(path: Path, target: Path, operator: str, bits: int, block_size: int, kept: list[str]) -> Path:
    """The graph with the weights of one operator in blocks with a scale and a zero point each; gives ``target``."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(path)),
        nodes_to_exclude=kept,
        algo_config=DefaultWeightOnlyQuantConfig(
            block_size=block_size,
            is_symmetric=False,
            accuracy_level=4 if operator == "MatMul" else None,  # int8 products: several times faster on CPUs
            op_types_to_quantize=(operator,),
            bits=bits,
        ),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), _is_large(path))
    return target


def _quantize_static(
    path: Path,
    target: Path,
    scheme: Scheme,
    kept: list[str],
    batches: Iterable[Mapping[str, np.ndarray]],
    ranges: dict[str, bytes],
) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    kept_batches = list(batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped upstream
        """Hands over some of the batches at a time, so that the calibrator never holds the activations of all."""

        def __init__(self) -> None:
            self._rows = iter(kept_batches)

        def __len__(self) -> int:
            return len(kept_batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._rows = iter(kept_batches[start_index:end_index])

        def get_next(self) -> Any:
            return next(self._rows, None)

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "ranges.json"
        if scheme.calibrate in ranges:
            known.write_bytes(ranges[scheme.calibrate])
        quantize_static(
            str(path),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS["static"]),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=methods[scheme.calibrate],
            calibration_cache_path=known,
            use_external_data_format=_is_large(path),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "CalibStridedMinMax": 1},
        )
        ranges[scheme.calibrate] = known.read_bytes()
