from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mlflow_slim.errors import InputNotFound, MeasurementError, ModelError
from mlflow_slim.measurement.size import (
    compression,
    folder_size,
    onnx_dtype_bytes,
    onnx_weights,
    safetensors_dtype_bytes,
    torch_weights,
)


def test_disk_is_every_file_but_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"x" * 1000)
    (tmp_path / "slim.json").write_bytes(b"x" * 24)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 1000)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.onnx.data").write_bytes(b"x" * 2**20)
    size = folder_size(tmp_path)
    assert size.disk_bytes == 2**20 + 1024
    assert size.disk_mib == pytest.approx(1 + 1 / 1024)
    assert size.by_kind == {"weights": 2**20, "tokenizer": 1000, "other": 24}


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_file_linked_twice_counts_once_and_at_its_own_size(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 500)
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.bin").symlink_to(blob)
    (model / "b.bin").hardlink_to(blob)
    (model / "gone").symlink_to(tmp_path / "nowhere")
    assert folder_size(model).disk_bytes == 500


def test_a_folder_that_is_missing_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="isn't a folder"):
        folder_size(tmp_path / "missing")
    with pytest.raises(MeasurementError, match="holds no file"):
        folder_size(tmp_path)


def test_safetensors_bytes_follow_from_shapes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.ones(3, 5), "b": torch.ones(7, dtype=torch.bfloat16), "c": torch.ones(9, dtype=torch.int8)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert safetensors_dtype_bytes(tmp_path / "m.safetensors") == {"float32": 60, "bfloat16": 14, "int8": 9}
    assert folder_size(tmp_path).by_dtype == {"float32": 60, "bfloat16": 14, "int8": 9}


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{x"]
)
def test_a_damaged_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.safetensors is not a readable safetensors file"):
        safetensors_dtype_bytes(tmp_path / "m.safetensors")


def _save(path: Path, nodes: list[object], arrays: dict[str, np.ndarray]) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    return path


def test_weights_of_a_float_graph_leave_out_shape_constants(tmp_path: Path) -> None:
    from onnx import helper

    weight = np.arange(12, dtype=np.float32).reshape(4, 3)  # one zero
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Reshape", ["m", "shape"], ["y"])]
    path = _save(tmp_path / "m.onnx", nodes, {"w": weight, "shape": np.array([-1, 3], dtype=np.int64)})
    found = onnx_weights(path)
    assert (found.parameters, found.nonzero) == (12, 11)
    assert found.sparsity == pytest.approx(1 / 12)
    assert onnx_dtype_bytes(path) == {"float32": 48, "int64": 16}


def test_a_quantized_weight_is_zero_at_its_zero_point(tmp_path: Path) -> None:
    from onnx import helper

    weight = np.full((4, 3), 128, dtype=np.uint8)
    weight[0] = [0, 128, 255]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    arrays = {"w": weight, "s": np.array(0.1, dtype=np.float32), "z": np.array(128, dtype=np.uint8)}
    found = onnx_weights(_save(tmp_path / "m.onnx", nodes, arrays))
    assert (found.parameters, found.nonzero) == (12, 2)
    per_channel = {**arrays, "z": np.array([128, 127, 128], dtype=np.uint8), "s": np.ones(3, dtype=np.float32)}
    assert onnx_weights(_save(tmp_path / "c.onnx", nodes, per_channel)).nonzero == 2 + 4


def test_something_else_than_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(ModelError, match=r"m\.onnx is not a readable ONNX file"):
        onnx_weights(tmp_path / "m.onnx")


def test_tied_weights_count_once_and_zeros_are_told_apart() -> None:
    import torch

    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10)
    head.weight = embedding.weight
    with torch.no_grad():
        head.bias.zero_()
    found = torch_weights(torch.nn.ModuleList([embedding, head]))
    assert (found.parameters, found.nonzero) == (50, 40)
    untied = torch.nn.Linear(4, 10)
    untied.weight = torch.nn.Parameter(embedding.weight.data)  # another object over the same memory
    assert torch_weights(torch.nn.ModuleList([embedding, untied])).parameters == 50


def test_compression_is_baseline_over_ours() -> None:
    assert compression(300, 100) == 3.0
    with pytest.raises(MeasurementError, match="sizes above 0"):
        compression(300, 0)
