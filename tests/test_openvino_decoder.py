"""Language models on OpenVINO: one graph with state writes what torch writes, in 8 and 4 bits, alone and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_language_model
from test_text_generation import context_of, load, recipe_of, rows_file

from mlflow_slim.catalog import load_backend
from mlflow_slim.errors import ConfigError, ExportError
from mlflow_slim.inputs import Inputs
from mlflow_slim.interfaces import Scheme
from mlflow_slim.runtime.generation import unpack

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load(tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma", "gpt2"])
def test_the_graph_writes_what_the_model_writes(kind: str, tmp_path: Path) -> None:
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", kind))
    assert inputs.source is not None
    rows = inputs.data.validation.inputs[:3]
    made: list[Any] = []
    for name in ("torch", "openvino"):
        backend = load_backend(name)
        backend.export(inputs.source, tmp_path / name, rows)
        made.append(backend.load(tmp_path / name, threads=1))
    batch = made[0].encode(rows)
    assert (made[0].forward(batch) == made[1].forward(batch)).all()
    np.testing.assert_allclose(made[0].scores(rows), made[1].scores(rows), atol=1e-2)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_texts_in_a_batch_do_not_see_each_other(backend: str, lm: Inputs, tmp_path: Path) -> None:
    assert lm.source is not None
    load_backend(backend).export(lm.source, tmp_path / "model", lm.data.validation.inputs[:2])
    model: Any = load_backend(backend).load(tmp_path / "model", threads=1)
    decoder, texts, more = model._decoder, np.array([[5, 9, 40, 7], [12, 60, 33, 8], [5, 9, 40, 8]]), [3, 50, 70]
    cache = decoder.begin(6, rows=3)
    found = [decoder.step(texts, cache, keep=2), decoder.step(np.array(more)[:, None], cache, keep=1)]
    for row, ids in enumerate(texts):
        alone = decoder.begin(6)
        np.testing.assert_allclose(found[0][row], decoder.step(ids, alone, keep=2), atol=1e-4)
        np.testing.assert_allclose(found[1][row], decoder.step(np.array(more[row : row + 1]), alone, keep=1), atol=1e-4)
    assert np.abs(found[0][0, -1] - found[0][2, -1]).max() > 1e-3
    batch = {"input_ids": texts}
    assert (model.forward_together(batch) == model.forward(batch)).all()
    with pytest.raises(ValueError, match="same number of tokens"):
        model.forward_together({"input_ids": np.array([[5, 9], [5, -1]])})


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_texts_longer_than_a_sliding_window(kind: str, window: dict[str, Any], tmp_path: Path) -> None:
    """Scores are transformers' own, whichever runtime, and a graph that can't slide is refused."""
    import torch

    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", kind, **window), generate={"chat": False})
    source = inputs.source
    assert source is not None
    rows = [("what is " * 8, "the river " * 8)]
    ids = [token for text in rows[0] for token in source.processor.backend_tokenizer.encode(text).ids]
    first = len(source.processor.backend_tokenizer.encode(rows[0][0]).ids)
    with torch.inference_mode():
        logs = source.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = sum(float(logs[place - 1, ids[place]]) for place in range(first, len(ids)))
    for name in ("torch", "openvino", "onnxruntime"):
        try:
            load_backend(name).export(source, tmp_path / name, rows)
        except ExportError as error:
            assert name == "onnxruntime", error  # its builder knows windows of some architectures only
            continue
        model: Any = load_backend(name).load(tmp_path / name, threads=1)
        found = unpack(model.scores(rows), source.spec).log_likelihood[0]
        assert found == pytest.approx(wanted, abs=1e-2), name


def test_a_graph_is_held_to_what_lies_beyond_a_window(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", "mistral", sliding_window=70), max_length=200)
    assert inputs.source is not None
    rows = inputs.data.validation.inputs[:2]
    load_backend("openvino").export(inputs.source, tmp_path / "openvino", rows)
    with pytest.raises(ExportError, match="differs from its source"):  # the rows are far shorter than the window
        load_backend("onnxruntime").export(inputs.source, tmp_path / "onnx", rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_near_and_small(lm: Inputs, bits: int, tmp_path: Path) -> None:
    assert lm.source is not None
    backend: Any = load_backend("openvino")
    rows = lm.data.validation.inputs
    exported = backend.export(lm.source, tmp_path / "float", rows[:2])
    names = backend.quantizable(exported, lm.source, "weight_only")
    assert "model.layers.0.mlp.up_proj" in names
    wide = frozenset({"model.layers.0.mlp.up_proj"}) if bits == 4 else frozenset[str]()
    backend.quantize(
        exported, lm.source, tmp_path / "q", Scheme("weight_only", bits=bits, block_size=32, wide=wide), rows
    )
    before, after = (
        unpack(backend.load(folder, threads=1).scores(rows), lm.source.spec).log_likelihood
        for folder in (exported.directory, tmp_path / "q")
    )
    np.testing.assert_allclose(before, after, rtol=0.002 if bits == 8 else 0.05)
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (exported.directory, tmp_path / "q")]
    assert sizes[1] < sizes[0] * 0.4
    graph = openvino.Core().read_model(str(tmp_path / "q" / "openvino_model.xml"))
    kinds = [node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert "u8" in kinds
    assert ("u4" in kinds) == (bits == 4)


def test_rows_that_are_no_multiple_of_a_block_take_a_smaller_one(tmp_path: Path) -> None:
    shape = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", **shape))
    assert inputs.source is not None
    backend: Any = load_backend("openvino")
    rows = inputs.data.validation.inputs
    exported = backend.export(inputs.source, tmp_path / "float", rows[:2])
    backend.quantize(exported, inputs.source, tmp_path / "q", Scheme("weight_only", bits=4, block_size=128), rows)
    graph = openvino.Core().read_model(str(tmp_path / "q" / "openvino_model.xml"))
    kinds = [node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert "u4" in kinds
    assert np.isfinite(backend.load(tmp_path / "q", threads=1).scores(rows)).all()


def test_only_weights_become_integers(lm: Inputs, tmp_path: Path) -> None:
    assert lm.source is not None
    backend: Any = load_backend("openvino")
    exported = backend.export(lm.source, tmp_path / "float", lm.data.validation.inputs[:2])
    with pytest.raises(ConfigError, match="weight_only"):
        backend.quantize(exported, lm.source, tmp_path / "q", Scheme("static"), [])
    assert not (tmp_path / "q").exists()


def test_the_steps_for_language_models_work_on_it(lm: Inputs, tmp_path: Path) -> None:
    """Quantizing searches on it, and guessing takes its tokens back out of the graph's state."""
    from dataclasses import replace

    from mlflow_slim.techniques.quantize_weight_only import QuantizeWeightOnly
    from mlflow_slim.techniques.speculate_lookup import SpeculateLookup

    assert lm.source is not None
    context = context_of(lm, tmp_path / "a", "openvino")
    small = QuantizeWeightOnly(bits=4, max_drop=0.5).apply(lm.source, context)
    assert "calibration_drop" in small.lineage[-1].notes["openvino"]
    fast = SpeculateLookup().apply(small, replace(context, workdir=tmp_path / "b"))
    assert fast.lineage[-1].notes["openvino"]["identical_prompts"] > 0


def test_a_model_that_cannot_be_traced_is_named(lm: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lm.source is not None

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(openvino, "convert_model", fail)
    with pytest.raises(ExportError, match=r"convert LlamaForCausalLM: no such operator\. Write export\.backends=torch"):
        load_backend("openvino").export(lm.source, tmp_path / "ov", lm.data.validation.inputs[:2])
    assert not (tmp_path / "ov").exists()


def test_a_recipe_on_it_logs_a_model_that_answers(store: Any, tmp_path: Path) -> None:
    import mlflow

    from mlflow_slim.pipeline import run

    measure = {"timing_s": 4, "energy_s": 0, "fresh_starts": 1, "wait_s": 0, "prompts": 3}
    recipe = recipe_of(
        make_language_model(tmp_path / "lm"),
        rows_file(tmp_path),
        steps=[{"technique": "quantize.weight_only"}],
        export={"backends": ["openvino"], "baseline": False},
        measure=measure,
    )
    outcome = run(recipe)
    last = outcome.reports[-1]
    assert last.metrics["throughput/batch_tokens_per_s"] > 0  # which is faster is for benchmarks to say
    assert last.metrics["speedup/batch"] > 0
    assert last.metrics["memory/peak_mib"] > 0
    assert last.params["slim.measure.prompts"] == "3"
    assert store.client.get_run(outcome.points[-1].run_id).data.tags["slim.reload"] == "same"
    (text,) = mlflow.pyfunc.load_model(outcome.points[-1].model_uri).predict(["what is"], params={"max_new_tokens": 3})
    assert isinstance(text, str)
