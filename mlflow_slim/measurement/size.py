"""How large a model is: on disk, by data type, in weights, and in weights that are not zero.

Disk is what serving needs: every file of the exported folder but its manifest. Zeros take as much room as other
weights in every format here, so the count of non-zero weights says what pruning did, and disk what it saved.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputNotFound, MeasurementError, ModelError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FolderSize",
    "Weights",
    "compression",
    "folder_size",
    "onnx_dtype_bytes",
    "onnx_weights",
    "safetensors_dtype_bytes",
    "torch_weights",
]

_BOOKKEEPING = frozenset(("manifest.json",))
_KINDS = {
    "weights": (".safetensors", ".onnx", ".data", ".onnx_data", ".bin", ".pt", ".pth", ".ort", ".xml"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", ".txt", "vocab.json", ".model"),
}
_LARGEST_HEADER = 100_000_000  # as the safetensors library has it


@dataclass(frozen=True)
class FolderSize:
    """Size of an exported folder.

    Attributes:
        disk_bytes: All files but the manifest; a file linked twice counts once.
        by_kind: Bytes of ``weights``, ``tokenizer`` and ``other`` files.
        by_dtype: Bytes of weights by data type (``float32``, ``int8``), in safetensors and ONNX files.
    """

    disk_bytes: int
    by_kind: Mapping[str, int]
    by_dtype: Mapping[str, int]

    @property
    def disk_mib(self) -> float:
        return self.disk_bytes / 2**20


@dataclass(frozen=True)
class Weights:
    """How many weights there are.

    Attributes:
        parameters: All; shared ones count once.
        nonzero: Those that are not zero.
    """

    parameters: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 0 to 1."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0


def folder_size(directory: Path) -> FolderSize:
    """Size of everything that serving the folder needs.

    Raises:
        InputNotFound: The folder isn't there.
        MeasurementError: It holds no file.
        ModelError: A weights file in it is damaged.
    """
    if not directory.is_dir():
        raise InputNotFound(f"The exported model {str(directory)!r} isn't a folder. Export it first.")
    seen: dict[tuple[int, int], int] = {}
    by_kind = dict.fromkeys((*_KINDS, "other"), 0)
    by_dtype: dict[str, int] = {}
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or str(path.relative_to(directory)) in _BOOKKEEPING:
            continue
        found = path.stat()
        if found.st_ino and (found.st_dev, found.st_ino) in seen:
            continue
        seen[(found.st_dev, found.st_ino or len(seen))] = found.st_size
        by_kind[_kind(path.name)] += found.st_size
        read = {".safetensors": safetensors_dtype_bytes, ".onnx": onnx_dtype_bytes}.get(path.suffix)
        for dtype, size in read(path).items() if read else ():
            by_dtype[dtype] = by_dtype.get(dtype, 0) + size
    if not seen:
        raise MeasurementError(f"The folder {str(directory)!r} holds no file to measure. Export the model again.")
    return FolderSize(sum(seen.values()), by_kind, by_dtype)


def _kind(name: str) -> str:
    return next((kind for kind, endings in _KINDS.items() if name.endswith(endings)), "other")


def compression(baseline_bytes: float, ours_bytes: float) -> float:
    """Baseline's size over ours, > 1 when ours is smaller.

    >>> compression(90, 45)
    2.0
    """
    if ours_bytes <= 0 or baseline_bytes <= 0:
        raise MeasurementError(f"A compression needs sizes above 0, got {baseline_bytes} and {ours_bytes}.")
    return baseline_bytes / ours_bytes


_SAFETENSORS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"},
    **{"F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
    "BOOL": "bool",
}


def safetensors_dtype_bytes(path: Path) -> dict[str, int]:
    """Bytes of tensors by data type, read from the file's header alone.

    Raises:
        ModelError: It isn't a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        sizes: dict[str, int] = {}
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                dtype = _SAFETENSORS.get(tensor["dtype"], str(tensor["dtype"]).lower())
                sizes[dtype] = sizes.get(dtype, 0) + int(end) - int(begin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}). Export or fetch it again.") from error
    return sizes


def onnx_dtype_bytes(path: Path) -> dict[str, int]:
    """Bytes of weights by data type in an ONNX graph; data in files beside it are counted and not read.

    Raises:
        ModelError: It isn't an ONNX file.
    """
    sizes: dict[str, int] = {}
    for tensor, _ in _tensors(_onnx_graph(path, external=False)):
        dtype, bits = _onnx_dtype(tensor)
        sizes[dtype] = sizes.get(dtype, 0) + math.ceil(math.prod(tensor.dims) * bits / 8)
    return sizes


def onnx_weights(path: Path) -> Weights:
    """Weights of an ONNX graph: its floating-point and 4- and 8-bit tensors, without scales and zero points.

    A quantized weight is zero where it equals its zero point. Shape constants (int64, int32) are no weights.

    Raises:
        ModelError: It isn't an ONNX file.
    """
    import numpy as np
    from onnx import numpy_helper

    graph = _onnx_graph(path, external=True)
    scales, zero_points = _quantization(graph)
    values = {tensor.name: tensor for tensor, _ in _tensors(graph) if tensor.name}
    total = nonzero = 0
    for tensor, is_constant in _tensors(graph):
        dtype, _ = _onnx_dtype(tensor)
        is_weight = dtype.startswith(("float", "bfloat")) or dtype in ("int8", "uint8", "int4", "uint4")
        if not is_weight or tensor.name in scales or (is_constant and math.prod(tensor.dims) <= 1):
            continue
        array: np.ndarray = np.asarray(numpy_helper.to_array(tensor))
        zero = zero_points.get(tensor.name)
        if zero is not None and zero in values:
            array = array.astype(np.int32) - _aligned(numpy_helper.to_array(values[zero]), array.shape)
        total += array.size
        nonzero += int(np.count_nonzero(array))
    return Weights(total, nonzero)


def torch_weights(module: Any) -> Weights:
    """Weights of a torch module; tied ones count once, packed ones of quantized layers count too."""
    import torch

    seen: set[tuple[int, int]] = set()
    total = nonzero = 0
    tensors = list(module.parameters())
    for layer in module.modules():
        packed = getattr(layer, "weight", None)  # a method in torch's quantized layers
        if callable(packed) and not isinstance(packed, torch.Tensor) and hasattr(layer, "_packed_params"):
            tensors.append(packed().dequantize())
            if (bias := layer.bias()) is not None:
                tensors.append(bias)
    with torch.no_grad():
        for tensor in tensors:
            where = (tensor.data_ptr(), tensor.numel())
            if where[0] and where in seen:
                continue
            seen.add(where)
            total += tensor.numel()
            nonzero += int(torch.count_nonzero(tensor))
    return Weights(total, nonzero)


def _onnx_graph(path: Path, *, external: bool) -> Any:
    import onnx

    try:
        return onnx.load(str(path), load_external_data=external).graph
    except Exception as error:  # protobuf's own exceptions share no base with anything
        raise ModelError(f"{path} is not a readable ONNX file ({error}). Export or fetch it again.") from error


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and those inside its control-flow nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[tuple[Any, bool]]:
    """Every stored tensor, and whether it is a Constant node's."""
    for one in _graphs(graph):
        for tensor in one.initializer:
            yield tensor, False
        for node in one.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        yield attribute.t, True


def _onnx_dtype(tensor: Any) -> tuple[str, int]:
    """Name and bits of a tensor's elements."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(tensor.data_type).lower()
    name = {"float": "float32", "double": "float64"}.get(name, name)
    digits = name.removeprefix("bfloat").lstrip("abcdefghijklmnopqrstuvwxyz").split("e")[0].rstrip("_")
    return name, int(digits) if digits.isdigit() else 8


# Where a node takes its quantized weight from: positions of (weight, scale, zero point) among its inputs.
_ROLES = {
    "DequantizeLinear": ((0, 1, 2),),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearConv": ((0, 1, 2), (3, 4, 5)),
    "MatMulInteger": ((1, -1, 3),),
    "ConvInteger": ((1, -1, 3),),
    "MatMulIntegerToFloat": ((1, 3, 5),),
    "DynamicQuantizeMatMul": ((1, 2, 3),),
    "QGemm": ((3, 4, 5),),
}


def _quantization(graph: Any) -> tuple[set[str], dict[str, str]]:
    """Names of scales and zero points, and the zero point of each weight that has one."""
    helpers: set[str] = set()
    zeros: dict[str, str] = {}
    for one in _graphs(graph):
        for node in one.node:
            for roles in _ROLES.get(node.op_type, ()):
                weight, scale, zero = (node.input[i] if 0 <= i < len(node.input) else "" for i in roles)
                helpers |= {name for name in (scale, zero) if name}
                if zero:
                    zeros[weight] = zero
    return helpers, zeros


def _aligned(zero: Any, shape: tuple[int, ...]) -> Any:
    """A zero point so that it can be taken off a weight: one for all, or one for each index of the axis it fits."""
    import numpy as np

    zero = np.asarray(zero).astype(np.int32)
    if zero.size == 1:
        return zero.reshape(())
    # Exporters put channels last for matrix products and first for convolutions.
    axis = len(shape) - 1 if shape[-1] == zero.size else 0
    return zero.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if shape[axis] == zero.size else 0
