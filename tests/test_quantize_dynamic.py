"""``quantize.dynamic`` on a tiny model: smaller, close to its source, float where asked, nothing after it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_backends import random_texts, tiny_source
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_task
from mlflow_slim.config import Recipe
from mlflow_slim.errors import ConfigError, ExportError
from mlflow_slim.interfaces import Context
from mlflow_slim.onnx_quantization import weighted_nodes
from mlflow_slim.techniques.quantize_dynamic import QuantizeDynamic

ONNX = load_backend("onnxruntime")
TEXTS = random_texts(60, seed=3)


class Rows:
    """What the step uses of a split."""

    inputs = TEXTS

    def __init__(self, references: np.ndarray) -> None:
        self.references = references

    def __len__(self) -> int:
        return len(TEXTS)


def apply(source: OptimizedModel, folder: Path, **chosen: Any) -> OptimizedModel:
    """The step on random texts whose right answers are the float model's own."""
    context = Context(
        task=load_task("text-classification"),
        data=SimpleNamespace(validation=Rows(_answers(source))),  # type: ignore[arg-type]
        seed=0,
        threads=1,
        device="cpu",
        workdir=folder,
        load_model=lambda _: source,
        report=lambda *_: None,
        backends={"onnxruntime": ONNX},
    )
    return QuantizeDynamic(**chosen).apply(source, context)


def _answers(source: OptimizedModel) -> np.ndarray:
    import torch

    with torch.inference_mode():
        batch = source.processor(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
        return source.model(**batch).logits.argmax(-1).numpy()


def integer_matrices(folder: Path, source: OptimizedModel) -> int:
    import onnx

    graph = onnx.load(str(folder / "model.onnx")).graph
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(tensor.data_type in integers and len(tensor.dims) == 2 for tensor in graph.initializer)


@pytest.fixture(scope="module")
def source() -> OptimizedModel:
    return replace(tiny_source(), lineage=())


@pytest.fixture(scope="module")
def quantized(source: OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> OptimizedModel:
    """With every option left open, for the tests that only read it."""
    return apply(source, tmp_path_factory.mktemp("quantized"), max_drop=None)


def test_every_matrix_of_the_graph_is_found_in_its_module(source: OptimizedModel, tmp_path: Path) -> None:
    exported = ONNX.export(source, tmp_path / "float", TEXTS[:4])
    names = list(weighted_nodes(exported.directory / "model.onnx", source.model))
    assert set(names) <= {name for name, _ in source.model.named_modules()}
    assert {"classifier", "bert.embeddings.word_embeddings", "bert.encoder.layer.1.output.dense"} <= set(names)
    assert len(names) == 3 + 2 * 6 + 2


def test_the_quantized_model_is_smaller_and_answers_alike(
    source: OptimizedModel, quantized: OptimizedModel, tmp_path: Path
) -> None:
    exported = ONNX.export(quantized, tmp_path / "out", TEXTS[:4])
    plain = ONNX.export(source, tmp_path / "plain", TEXTS[:4])
    ours, theirs = (ONNX.load(point.directory, threads=1).predict(TEXTS) for point in (exported, plain))
    noise = float(((ours - theirs) ** 2).sum() / (theirs**2).sum())
    assert 0 < noise < 10**-2  # 20 dB
    sizes = [(point.directory / "model.onnx").stat().st_size for point in (exported, plain)]
    assert sizes[0] < 0.75 * sizes[1]  # the graph's own text weighs much in so small a model
    assert exported.variant == "quantize.dynamic@onnxruntime"
    assert exported.lineage[-1].notes["onnxruntime"]["calibration_agreement"] > 0.9
    assert exported.notes["quantized"]["per_channel"] is True
    assert integer_matrices(exported.directory, source) == 17


def test_modules_named_by_pattern_stay_in_float(source: OptimizedModel, tmp_path: Path) -> None:
    quantized = apply(source, tmp_path, keep_float=["*embeddings*", "classifier"], max_drop=None)
    kept = quantized.lineage[-1].notes["onnxruntime"]["kept_in_float"]
    assert "classifier" in kept
    assert len(kept) == 4
    assert integer_matrices(quantized.builds["onnxruntime"], source) == 17 - 4


def test_a_pattern_that_fits_no_module_suggests_one(source: OptimizedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'clasifier' fits no module. Did you mean 'classifier'\?"):
        apply(source, tmp_path, keep_float=["clasifier"])


def test_modules_go_back_to_float_until_the_margin_holds(tmp_path: Path) -> None:
    """A margin that no rounding meets puts everything back; the worst modules go first."""
    import torch

    source = tiny_source()
    with torch.no_grad():  # one channel far above the rest ruins a scale for all of its matrix
        source.model.bert.encoder.layer[0].output.dense.weight[:, 0] *= 200
    quantized = apply(source, tmp_path, per_channel=False, reduce_range=True, max_drop=0, min_agreement=1)
    notes = quantized.lineage[-1].notes["onnxruntime"]
    assert notes["calibration_agreement"] == 1
    assert notes["kept_in_float"]


def test_without_a_choice_the_range_that_answers_closer_is_taken(
    source: OptimizedModel, quantized: OptimizedModel, tmp_path: Path
) -> None:
    chosen = quantized.lineage[-1].notes["onnxruntime"]
    other = apply(source, tmp_path, reduce_range=not chosen["reduce_range"], max_drop=None)
    assert chosen["sqnr_db"] >= other.lineage[-1].notes["onnxruntime"]["sqnr_db"]


def test_nothing_may_follow_and_other_runtimes_are_refused_before_any_work() -> None:
    steps = [{"technique": "quantize.dynamic"}, {"technique": "distill.logits"}]
    with pytest.raises(ConfigError) as error:
        Recipe.load({"steps": steps, "export": {"backends": ["openvino", "onnxruntime"]}})
    assert "'distill.logits' can't follow 'quantize.dynamic'" in str(error.value)
    assert "not on openvino. Write export.backends=onnxruntime" in str(error.value)


def test_a_backend_without_a_build_is_refused(quantized: OptimizedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists only for onnxruntime, not for torch"):
        load_backend("torch").export(quantized, tmp_path / "out", TEXTS[:4])


def test_a_damaged_build_is_not_exported(quantized: OptimizedModel, tmp_path: Path) -> None:
    shutil.copytree(quantized.builds["onnxruntime"], tmp_path / "build")
    quantized = replace(quantized, builds={"onnxruntime": tmp_path / "build"})
    graph = tmp_path / "build" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(slim.SlimError, match="sha256"):
        ONNX.export(quantized, tmp_path / "out", TEXTS[:4])


def test_the_recipe_logs_the_baseline_and_an_int8_model_that_reloads(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    make_tiny_classifier: Callable[..., Path],
) -> None:
    import mlflow

    handlers = list(logging.root.handlers)
    model = make_tiny_classifier(labels=("a", "b", "c"))
    found = slim.run("quantize", **options(model, reviews, **{"baseline.epochs": 1, "export.baseline": True}))
    variants = [point.exported.variant for point in found.points]
    assert variants == ["baseline", "baseline@onnxruntime", "quantize.dynamic@onnxruntime"]
    assert [(line.step, line.before) for line in found.ledger] == [
        ("runtime onnxruntime", "baseline"),
        ("quantize.dynamic", "baseline@onnxruntime"),
    ]
    assert "What each step did" in store.get_run(found.run_id).data.tags["mlflow.note.content"]
    run = store.get_run(found.points[-1].run_id)
    assert run.data.tags["slim.reload"] == "same"
    assert run.data.params["slim.steps.0.technique"] == "quantize.dynamic"
    answers = mlflow.pyfunc.load_model(found.points[-1].model_uri).predict(["the movie was good"])
    assert list(answers.columns) == ["label", "score"]
    assert logging.root.handlers == handlers
