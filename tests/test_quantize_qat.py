"""``quantize.qat``: training rounds as the graph will, and is only done, and only kept, where it helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from test_backends import random_texts, tiny_source
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)
from test_prune_techniques import context

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_task
from mlflow_slim.errors import ConfigError
from mlflow_slim.fake_quantization import fake_quantized
from mlflow_slim.techniques.quantize_qat import QuantizeQat

torch = pytest.importorskip("torch")


def spoilt() -> OptimizedModel:
    """A model whose int8 form answers otherwise: one channel far above the rest widens the range of what is fed."""
    source = tiny_source()
    with torch.no_grad():
        for layer in source.model.bert.encoder.layer:
            layer.intermediate.dense.weight[0] *= 60
            layer.output.dense.weight[:, 0] /= 60
    return source


def answers(source: OptimizedModel, texts: list[str] | None = None) -> np.ndarray:
    """Logits of single texts: scales of activations are those of a batch."""
    task = load_task("text-classification")
    rows = texts or random_texts(6, seed=1)
    return np.concatenate([task.outputs(source.model, source.processor, [row], source.spec) for row in rows])


@pytest.mark.parametrize("reduce_range", [False, True])
def test_rounding_is_inside_only_and_gradients_pass(reduce_range: bool) -> None:
    source = tiny_source()
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    plain = answers(source)
    with fake_quantized(source.model, reduce_range=reduce_range) as modules:
        assert "classifier" in modules
        inside = answers(source)
        weight = source.model.bert.encoder.layer[0].output.dense.weight
        assert all(len(row.unique()) <= (127 if reduce_range else 255) for row in weight)
        encoded = source.processor(["good"], return_tensors="pt")
        source.model(**encoded).logits.sum().backward()
        original = source.model.bert.encoder.layer[0].output.dense.parametrizations.weight.original
        assert original.grad.abs().sum() > 0
        source.model.zero_grad()
    assert 0 < np.abs(inside - plain).max() < 0.3 * np.abs(plain).max()
    assert source.model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in source.model.state_dict().items())
    assert (answers(source) == plain).all()


def test_nothing_is_dropped_out_inside() -> None:
    source = tiny_source()
    encoded = source.processor(["good bad good"], return_tensors="pt")

    def twice() -> bool:
        with torch.no_grad():
            return bool((source.model(**encoded).logits == source.model(**encoded).logits).all())

    source.model.train()
    assert not twice(), "there is dropout to switch off"
    with fake_quantized(source.model):
        source.model.train()
        assert twice()
    source.model.train()
    assert source.model.training and not twice()


def test_rounding_in_training_is_what_the_graph_does(tmp_path: Path) -> None:
    """Where one channel spoils the rounding, both go wrong in the same direction and by as much."""
    source = spoilt()
    backends = {"onnxruntime": load_backend("onnxruntime")}
    step = QuantizeQat(max_drop=None, keep_float=("*embeddings*",), reduce_range=True)
    quantized = step.apply(source, context(source, tmp_path, backends=backends))
    assert quantized.lineage[-1].notes["trained"] is False
    texts = random_texts(12, seed=1)
    graph = load_backend("onnxruntime").load(quantized.builds["onnxruntime"], threads=1)
    found = np.concatenate([graph.predict([text]) for text in texts])
    plain = answers(source, texts)
    with fake_quantized(source.model, reduce_range=True):
        rounded = answers(source, texts)
    of_graph, of_training = (found - plain).ravel(), (rounded - plain).ravel()
    assert np.corrcoef(of_graph, of_training)[0, 1] > 0.4
    assert 1 / 3 < np.abs(of_training).mean() / np.abs(of_graph).mean() < 3


def test_it_trains_only_where_int8_alone_is_not_good_enough(tmp_path: Path) -> None:
    source = spoilt()
    state = {name: value.clone() for name, value in source.model.state_dict().items()}
    backends = {"onnxruntime": load_backend("onnxruntime")}
    options = {"epochs": 3, "learning_rate": 1e-4, "batch_size": 8, "min_agreement": 0.0}
    (tmp_path / "a").mkdir()
    fine = QuantizeQat(max_drop=0.9, **options).apply(source, context(source, tmp_path / "a", backends=backends))
    assert fine.lineage[-1].notes["trained"] is False
    assert "nothing was trained" in fine.lineage[-1].notes["comparison"]
    (tmp_path / "b").mkdir()
    # With 8 bits, and a CPU that adds their products exactly, this model may answer all rows as before.
    strict = QuantizeQat(max_drop=0.0, reduce_range=True, **{**options, "min_agreement": 1.0})
    forced = strict.apply(source, context(source, tmp_path / "b", backends=backends))
    notes = forced.lineage[-1].notes
    assert notes["trained"] is True
    figures = notes["onnxruntime"]
    assert {"without_training", "with_training", "taken"} <= figures.keys()
    kept, other = figures["with_training"], figures["without_training"]
    if figures["taken"] == "without training":
        kept, other = other, kept
    assert kept["calibration_drop"] <= other["calibration_drop"] or not kept["kept_in_float"]
    assert ("caution" in notes) == (kept["calibration_drop"] > 0 or kept["calibration_agreement"] < 1)
    assert all(torch.equal(state[name], value) for name, value in source.model.state_dict().items())
    exported = load_backend("onnxruntime").export(forced, tmp_path / "out", random_texts(4, seed=2))
    assert exported.variant == "distill.logits+quantize.qat@onnxruntime"
    for form in ("without_training", "with_training"):
        assert f"{-figures[form]['calibration_drop']:+.4f}" in notes["comparison"]
        assert f"{figures[form]['calibration_agreement']:.1%}" in notes["comparison"]
    assert notes["comparison"].endswith(f"Taken: {figures['taken']}.")


def test_kinds_that_a_runtime_lacks_are_refused(tmp_path: Path) -> None:
    source = tiny_source()
    with pytest.raises(ConfigError, match=r"quantize\.qat can't be done for openvino"):
        QuantizeQat().apply(source, context(source, tmp_path, backends={"openvino": load_backend("openvino")}))


def test_a_recipe_with_it_is_measured_and_logged(
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    store: Any,  # noqa: F811
) -> None:
    steps = [{"technique": "quantize.qat", "when_needed": False, "epochs": 1}]
    outcome = slim.run("quantize", **options(tiny_classifier_dir, reviews, steps=steps))
    assert outcome.points[-1].exported.variant == "quantize.qat@onnxruntime"
    assert "quality/accuracy_delta" in outcome.reports[-1].metrics
    notes = outcome.points[-1].exported.lineage[-1].notes
    assert notes["trained"] is True
    assert "int8 alone changes the metric by" in mlflow.get_run(outcome.run_id).data.tags["mlflow.note.content"]
