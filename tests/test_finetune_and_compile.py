"""``finetune.lora`` and ``compile.torch`` on tiny models: merged adapters are gone, compiled answers are the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_backends import random_texts, tiny_source
from test_prune_techniques import TASK, context, state

from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.config import Recipe
from mlflow_slim.errors import ConfigError, MissingDependency, ModelError
from mlflow_slim.interfaces import Conditional
from mlflow_slim.scoring import outputs_of

torch = pytest.importorskip("torch")


@pytest.fixture
def source() -> OptimizedModel:
    return tiny_source()


def test_adapters_are_merged_and_leave_no_trace(source: OptimizedModel, tmp_path: Path) -> None:
    before = state(source.model)
    step = load_technique("finetune.lora")(rank=2, epochs=2, batch_size=8)
    tuned = step.apply(source, context(source, tmp_path))
    assert all(torch.equal(before[key], value) for key, value in source.model.state_dict().items())
    assert tuned.model.state_dict().keys() == before.keys()
    changed = {key for key, value in tuned.model.state_dict().items() if not torch.equal(before[key], value)}
    assert any("query" in key for key in changed)
    assert any("classifier" in key for key in changed)
    assert not any("embeddings" in key for key in changed), "what has no adapter is frozen"
    notes = tuned.lineage[-1].notes
    assert 0 < notes["adapter_parameters"] < sum(p.numel() for p in source.model.parameters())
    assert notes["losses"][-1] < notes["losses"][0]
    assert type(tuned.model) is type(source.model)
    assert all(weight.requires_grad for weight in tuned.model.parameters())
    for backend in ("torch", "onnxruntime"):
        exported = load_backend(backend).export(tuned, tmp_path / backend, random_texts(6, seed=1))
        assert exported.parameters == sum(p.numel() for p in source.model.parameters())


def test_the_same_seed_gives_the_same_adapters(source: OptimizedModel, tmp_path: Path) -> None:
    step = load_technique("finetune.lora")(rank=2, epochs=1, batch_size=8)
    first, again, other = (
        step.apply(source, context(source, tmp_path, seed=seed)).model.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_only_attention_is_fewer_adapters(source: OptimizedModel, tmp_path: Path) -> None:
    counts = [
        load_technique("finetune.lora")(targets=targets, epochs=1, batch_size=16)
        .apply(source, context(source, tmp_path))
        .lineage[-1]
        .notes["adapted_matrices"]
        for targets in ("attention", "all")
    ]
    assert counts[0] == 4 * source.model.config.num_hidden_layers
    assert counts[1] == 6 * source.model.config.num_hidden_layers


def test_a_model_of_unknown_parts_is_refused_before_training() -> None:
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=16, embedding_size=8
    )
    model = transformers.AlbertForSequenceClassification(config)
    with pytest.raises(ModelError, match="albert"):
        load_technique("finetune.lora")().check(OptimizedModel(model, None, "text-classification", {}))


@pytest.mark.slow  # g++ and the pool of compiling processes take half a minute
def test_a_compiled_model_answers_as_before_from_its_folder_and_says_what_compiling_took(tmp_path: Path) -> None:
    source = tiny_source(layers=1)  # every kernel is compiled by g++
    torch_backend = load_backend("torch")
    step = load_technique("compile.torch")()
    found = step.apply(source, context(source, tmp_path, backends={"torch": torch_backend}))
    assert found.variant.endswith("compile.torch")
    notes = found.lineage[-1].notes
    assert notes["graphs"] >= 1
    assert notes["first_answers_s"] > 0
    exported = torch_backend.export(found, tmp_path / "out", random_texts(4, seed=1))
    assert json.loads((exported.directory / "slim.json").read_text())["engine"] == {"compile": "default"}
    texts = random_texts(5, seed=2)
    rows = TASK.encode(source.processor, texts, source.spec)
    predictor = torch_backend.load(exported.directory, threads=1)
    np.testing.assert_allclose(
        predictor.predict(texts), outputs_of(source.model, source.processor, rows), rtol=1e-3, atol=1e-4
    )


def test_where_compiling_fails_the_model_still_answers(
    source: OptimizedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow_slim.runtime.torch_engine import TorchEngine

    def broken(model: object, **_: object) -> object:
        def call(**_: object) -> object:
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    batch = {k: v.numpy() for k, v in source.processor(["good film"], return_tensors="pt").items()}
    engine = TorchEngine(source.model, outputs=("logits",), threads=1, compile_mode="default")
    plain = TorchEngine(source.model, outputs=("logits",), threads=1)
    np.testing.assert_array_equal(engine.forward(batch), plain.forward(batch))
    assert "no compiler here" in caplog.text
    assert engine.settings["compile"] == "failed"


def test_a_missing_compiler_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    step = load_technique("compile.torch")()
    assert isinstance(step, Conditional)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt install g++" in str(step.is_available())


@pytest.mark.parametrize("name", ["compile.torch", "quantize.dynamic", "quantize.cast"])
def test_nothing_follows_what_exists_for_a_runtime_only(name: str) -> None:
    steps = [{"technique": name}, {"technique": "prune.width"}]
    with pytest.raises(ConfigError, match=rf"can't follow '{name}'"):
        Recipe.load({"model": "demo", "data": "demo", "steps": steps})


@pytest.mark.parametrize(
    ("then", "refused"),
    [
        ({"technique": "distill.logits"}, True),
        ({"technique": "finetune.full"}, True),
        ({"technique": "prune.heads"}, True),
        ({"technique": "prune.heads", "recovery": "none"}, False),
        ({"technique": "quantize.dynamic"}, False),
        ({"technique": "prune.magnitude", "sparsity": 0.7}, False),
    ],
)
def test_training_that_would_fill_zeros_is_refused(then: dict[str, object], refused: bool) -> None:
    steps = [{"technique": "prune.magnitude"}, then]
    recipe = {"model": "demo", "data": "demo", "steps": steps}
    if not refused:
        assert len(Recipe.load(recipe).steps) == 2
        return
    with pytest.raises(ConfigError, match=r"the zeros of 'prune\.magnitude' before it would be lost"):
        Recipe.load(recipe)


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes on a CPU
@pytest.mark.parametrize("kind", ["text-classification", "text-generation"])
def test_frozen_weights_in_four_bits_are_trained_beside_and_merged(kind: str, tmp_path: Path) -> None:
    """QLoRA: what comes out is a float model that answers as the 4-bit one with its adapters did."""
    pytest.importorskip("bitsandbytes", reason="the extra 'qlora' is not installed")
    from test_text_generation import context_of, load

    if kind == "text-generation":
        inputs = load(tmp_path)
        assert inputs.source is not None
        start, where = inputs.source, context_of(inputs, tmp_path)
    else:
        start = tiny_source()
        where = context(start, tmp_path)
    before = state(start.model)
    step = load_technique("finetune.lora")(base="nf4", rank=4, epochs=2, batch_size=8, learning_rate=3e-3)
    step.check(start)
    tuned = step.apply(start, where)
    notes = tuned.lineage[-1].notes
    assert notes["frozen_mib"]["nf4"] < notes["frozen_mib"]["float"]
    assert notes["losses"][-1] < notes["losses"][0]
    assert type(tuned.model) is type(start.model)
    assert all(torch.equal(before[key], value) for key, value in start.model.state_dict().items())
    after = tuned.model.state_dict()
    assert after.keys() == before.keys()
    assert all(value.dtype == before[key].dtype for key, value in after.items())
    head = "lm_head.weight" if kind == "text-generation" else "classifier.weight"
    assert torch.equal(before[head], after[head]) == (kind == "text-generation"), "a fresh head is trained, as it is"
    for backend in ("torch", "onnxruntime"):
        load_backend(backend).export(tuned, tmp_path / backend, where.data.validation.inputs[:3])


def test_four_bits_need_bitsandbytes(source: OptimizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingDependency, match=r"mlflow_slim\[qlora\]"):
        load_technique("finetune.lora")(base="nf4").check(source)
    load_technique("finetune.lora")().check(source)
