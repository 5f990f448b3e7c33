"""Language models with weights in 8 and 4 bits, as onnxruntime runs them fastest: blocks with a scale and a zero point.

Products are computed in int8 (``accuracy_level`` 4). A matrix that is both input and output embedding is kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gptq import Codes, nearest
from .weights import array_digest

if TYPE_CHECKING:
    from .interfaces import Scheme

__all__ = ["block_for", "linear_nodes", "quantize_decoder"]

_LEAST_BLOCK = 16
_DOMAIN = "com.microsoft"


def block_for(columns: int, wanted: int) -> int | None:
    """The largest block up to ``wanted`` that a row of so many weights is a multiple of; None when there is none.

    >>> block_for(576, 128), block_for(100, 32)
    (64, None)
    """
    block = wanted
    while block >= _LEAST_BLOCK:
        if columns % block == 0:
            return block
        block //= 2
    return None


def linear_nodes(path: Path, model: Any) -> dict[str, list[str]]:
    """Linear module -> names of the graph's products that use its matrix, in the graph's order.

    Args:
        path: The ONNX file, float32.
        model: The torch model that it was built from.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    modules = {
        array_digest(module.weight.detach().cpu().float().numpy().T): name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    graph = onnx.load(str(path)).graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            name = modules.get(array_digest(numpy_helper.to_array(matrices[node.input[1]])), node.name)
            nodes.setdefault(name, []).append(node.name)
    return nodes


def quantize_decoder(
    path: Path,
    target: Path,
    scheme: Scheme,
    nodes: Mapping[str, list[str]],
    solved: Callable[[str], Codes | None],
) -> None:
    """Writes the quantized form of a graph that `mlflow_slim.decoder_graph` built.

    Args:
        path: The float32 graph.
        target: The file to write; weights go beside it.
        scheme: ``weight_only``.
        nodes: What `linear_nodes` gave for ``path``.
        solved: Codes of a module's weights in 4 bits; None rounds them to the nearest.
    """
    import numpy as np
    import onnx
    import torch
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    of_node = {node: module for module, names in nodes.items() for node in names}
    made: dict[str, Codes] = {}  # initializer -> what it became
    widened: list[Any] = []
    replaced: list[Any] = []
    transposed = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}

    def matrix(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(tensors[name]).copy())

    def add(name: str, array: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add_codes(name: str) -> None:
        codes, scales, zeros = made[name].packed()
        add(f"{name}.codes", codes)
        add(f"{name}.zeros", zeros)
        if scales.dtype == np.float32:
            add(f"{name}.scales", scales)
            return
        # Kernels take scales of the type they compute in; onnxruntime widens these once, when the file is opened.
        stored = add(f"{name}.scales.half", scales)
        output = f"{name}.scales"
        widened.append(helper.make_node("Cast", [stored], [output], name=output, to=onnx.TensorProto.FLOAT))

    for node in graph.node:
        module = of_node.get(node.name)
        block = block_for(tensors[node.input[1]].dims[0], scheme.block_size) if module is not None else None
        if module is None or block is None or module in scheme.keep_float:
            replaced.append(node)
            continue
        name = node.input[1]
        bits = 8 if module in scheme.wide else scheme.bits
        if name not in made:
            codes = solved(module) if bits == 4 else None
            made[name] = codes or nearest(matrix(name).T.contiguous(), bits=bits, block_size=block)
            add_codes(name)
        rows, columns = made[name].codes.shape
        replaced.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *(f"{name}.{part}" for part in ("codes", "scales", "zeros"))],
                list(node.output),
                name=node.name,
                domain=_DOMAIN,
                K=columns,
                N=rows,
                bits=bits,
                block_size=made[name].block_size,
                accuracy_level=4,
            )
        )
    final: list[Any] = []
    for node in replaced:
        if node.op_type != "Gather":
            final.append(node)
            continue
        name = transposed.get(node.input[0], node.input[0])
        if name not in made and name in tensors and len(tensors[name].dims) == 2 and not scheme.keep_float:
            weight = matrix(name)
            block = block_for(weight.shape[1], scheme.block_size)
            if block is not None:  # an embedding of its own
                made[name] = nearest(weight, bits=scheme.embedding_bits, block_size=block)
                add_codes(name)
        final += [node] if name not in made else _gather(node, name, made[name], add)
    del graph.node[:]
    graph.node.extend(_needed([*widened, *final], {value.name for value in graph.output}))
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")


def _gather(node: Any, name: str, codes: Codes, add: Callable[[str, Any], str]) -> list[Any]:
    """Rows of a matrix of codes, as floats; the matrix has the form that products want."""
    import numpy as np
    from onnx import helper

    rows, columns = codes.codes.shape
    blocks = codes.scales.shape[1]
    widths = {"codes": columns * codes.bits // 8, "zeros": -(-blocks * codes.bits // 8)}
    before, given = [], {"scales": f"{name}.scales"}
    for part, width in widths.items():
        shape = add(f"{name}.{part}.shape", np.array([rows, width], dtype=np.int64))
        given[part] = f"{name}.{part}.rows"
        before.append(helper.make_node("Reshape", [f"{name}.{part}", shape], [given[part]], name=given[part]))
    gather = helper.make_node(
        "GatherBlockQuantized",
        [given["codes"], node.input[1], given["scales"], given["zeros"]],
        list(node.output),
        name=node.name,
        domain=_DOMAIN,
        bits=codes.bits,
        block_size=codes.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    return [*before, gather]


def _needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """Without nodes whose outputs nobody takes."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
