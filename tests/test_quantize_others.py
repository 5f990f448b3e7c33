"""``quantize.static``, ``quantize.weight_only`` and ``quantize.cast`` on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_backends import random_texts, tiny_source
from test_prune_techniques import TASK, context

from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.config import Recipe
from mlflow_slim.errors import ConfigError, ExportError
from mlflow_slim.scoring import outputs_of

ONNX = load_backend("onnxruntime")


@pytest.fixture(scope="module")
def source() -> OptimizedModel:
    return tiny_source()


def apply(name: str, source: OptimizedModel, folder: Path, **options: Any) -> OptimizedModel:
    if name != "quantize.cast":
        options = {"max_drop": None, **options}
    return load_technique(name)(**options).apply(source, context(source, folder, backends={"onnxruntime": ONNX}))


def operators(model: OptimizedModel) -> set[str]:
    import onnx

    graph = onnx.load(str(model.builds["onnxruntime"] / "model.onnx")).graph
    return {node.op_type for node in graph.node}


def distance(model: OptimizedModel, source: OptimizedModel) -> float:
    texts = random_texts(20, seed=9)
    rows = TASK.encode(source.processor, texts, source.spec)
    wanted = outputs_of(source.model, source.processor, rows)
    found = ONNX.load(model.builds["onnxruntime"], threads=1).predict(texts)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("calibrate", ["minmax", "entropy", "percentile"])
def test_static_finds_ranges_on_validation_rows(
    calibrate: str, source: OptimizedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = apply("quantize.static", source, tmp_path, calibrate=calibrate, calibration_rows=16)
    assert "QuantizeLinear" in operators(found)
    assert distance(found, source) < 0.3  # without VNNI, where weights have 7 bits, up to 0.26
    notes = found.lineage[-1].notes["onnxruntime"]
    assert notes["calibration_rows"] == 16
    assert len(notes["calibration_digest"]) == 16
    assert "Collecting" not in capfd.readouterr().out, "the calibrator's own prints"


def test_static_ranges_depend_on_the_rows(source: OptimizedModel, tmp_path: Path) -> None:
    from mlflow_slim.interfaces import Scheme

    exported = ONNX.export(source, tmp_path / "float", random_texts(4, seed=1))
    outputs = []
    for number, rows in enumerate((["a"] * 8, random_texts(8, seed=4))):
        ONNX.quantize(exported, source, tmp_path / f"q{number}", Scheme("static"), rows)
        outputs.append(ONNX.load(tmp_path / f"q{number}", threads=1).predict(random_texts(8, seed=6)))
    assert not np.allclose(*outputs)


def test_weights_alone_take_few_bits_and_embeddings_too(source: OptimizedModel, tmp_path: Path) -> None:
    found = {}
    for bits in (8, 4):
        folder = tmp_path / str(bits)
        folder.mkdir()
        found[bits] = apply("quantize.weight_only", source, folder, bits=bits, embedding_bits=bits, block_size=16)
        assert "MatMulNBits" in operators(found[bits])
    assert "GatherBlockQuantized" in operators(found[4])
    sizes = {bits: (model.builds["onnxruntime"] / "model.onnx").stat().st_size for bits, model in found.items()}
    assert sizes[4] < sizes[8]
    assert distance(found[8], source) < 0.05
    assert distance(found[8], source) < distance(found[4], source) < 1


def test_embeddings_in_four_bits_beside_int8_matrices(source: OptimizedModel, tmp_path: Path) -> None:
    found = apply("quantize.dynamic", source, tmp_path, embedding_bits=4, block_size=16)
    assert {"GatherBlockQuantized", "MatMulInteger"} <= operators(found)
    assert found.lineage[-1].notes["onnxruntime"]["embedding_bits"] == 4


def test_four_bits_fall_back_to_eight_before_anything_goes_back_to_float(
    source: OptimizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_slim import precision_search

    monkeypatch.setattr(precision_search._Search, "holds", lambda _, trial: trial.scheme.embedding_bits == 8)
    found = apply("quantize.dynamic", source, tmp_path, embedding_bits=4, max_drop=0.0)
    notes = found.lineage[-1].notes["onnxruntime"]
    assert (notes["embedding_bits"], notes["kept_in_float"]) == (8, [])


def test_smoothing_is_refused_where_the_runtime_has_none(source: OptimizedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no SmoothQuant of its own"):
        apply("quantize.static", source, tmp_path, smooth=0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_model_is_half_the_size_and_answers_nearly_alike(
    dtype: str, source: OptimizedModel, tmp_path: Path
) -> None:
    found = apply("quantize.cast", source, tmp_path, dtype=dtype)
    torch_backend = load_backend("torch")
    sizes = []
    for number, model in enumerate((source, found)):
        exported = torch_backend.export(model, tmp_path / f"e{number}", random_texts(4, seed=1))
        sizes.append((exported.directory / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    texts = random_texts(6, seed=3)
    wanted, got = (torch_backend.load(tmp_path / f"e{n}", threads=1).predict(texts) for n in (0, 1))
    np.testing.assert_allclose(got, wanted, rtol=0.1, atol=0.1)
    assert str(source.model.dtype) == "torch.float32"


def test_a_cast_beyond_the_range_is_refused(source: OptimizedModel, tmp_path: Path) -> None:
    import copy

    import torch

    model = copy.deepcopy(source.model)
    with torch.no_grad():
        model.classifier.bias.fill_(1e6)  # beyond float16's 65504
    huge = OptimizedModel(model, source.processor, source.task, source.spec)
    with pytest.raises(ExportError, match="dtype: bfloat16"):
        apply("quantize.cast", huge, tmp_path, dtype="float16")


def test_a_cast_is_for_torch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantize\.cast.* runs on torch"):
        Recipe.load({"steps": [{"technique": "quantize.cast"}], "export": {"backends": ["onnxruntime"]}})


@pytest.mark.parametrize("engine", ["torch.ao", "torchao"])
def test_torch_has_integers_of_its_own_from_the_moment_it_is_loaded(
    engine: str, source: OptimizedModel, tmp_path: Path
) -> None:
    if engine == "torchao":
        pytest.importorskip("torchao", reason="torchao is not installed")
    backend = load_backend("torch")
    step = load_technique("quantize.dynamic")(
        engine=engine, max_drop=None, reduce_range=False, keep_float=["classifier"]
    )
    found = step.apply(source, context(source, tmp_path, backends={"torch": backend}))
    exported = backend.export(found, tmp_path / "out", random_texts(4, seed=1))
    predictor = backend.load(exported.directory, threads=1)
    texts = random_texts(12, seed=7)
    rows = TASK.encode(source.processor, texts, source.spec)
    wanted = outputs_of(source.model, source.processor, rows)
    got = predictor.predict(texts)
    assert 0 < np.abs(got - wanted).max() < 0.2 * np.abs(wanted).max()
    model = predictor._engine._model
    assert type(model.classifier).__module__ == "torch.nn.modules.linear", "named to stay float"
    assert str(source.model.bert.pooler.dense.weight.dtype) == "torch.float32"
