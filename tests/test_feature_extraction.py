"""Feature extraction: vectors as sentence-transformers gives them, judged by neighbours or by people's scores."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VOCABULARY, make_tokenizer, save_tiny_classifier, step_context
from test_pipeline import BUDGET, store  # noqa: F401  (a fixture)

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.data import read_tables
from mlflow_slim.errors import ConfigError, DataError, MeasurementError, ModelError
from mlflow_slim.interfaces import Context
from mlflow_slim.measurement.neighbours import kept_neighbours, nearest, spearman
from mlflow_slim.runtime.pooling import POOLINGS, finish, pool
from mlflow_slim.tasks.feature_extraction import TASK

WORDS = [word for word in VOCABULARY if word.isalpha() and len(word) > 2]


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]


def save_encoder(folder: Path, *, pooling: str = "mean", normalize: bool = True, seed: int = 0, **config: Any) -> Path:
    """A tiny BERT with the files that sentence-transformers writes beside it."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "initializer_range": 0.08}
        BertModel(BertConfig(**options, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if normalize else {})}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    mode = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}[pooling]
    modes = {f"pooling_mode_{name}": name == mode for name in ("mean_tokens", "cls_token", "max_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    return folder


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three files of texts."""
    folder = tmp_path_factory.mktemp("data")
    texts = list(dict.fromkeys(sentences(600)))
    parts = {"train": texts[160:], "validation": texts[:40], "test": texts[40:160]}
    for name, own in parts.items():
        rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(own)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read(path: Path, **how: Any) -> Any:
    return read_tables(str(path), **{"label": None, "labels": "scores", **how})


@pytest.fixture(scope="module")
def ready(
    encoder_dir: Path, texts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OptimizedModel, Context]:
    data = TASK.make_data(read(texts_file))
    source = TASK.load_model(encoder_dir, data, max_length=None, seed=0)
    data = TASK.complete(data, lambda rows: TASK.outputs(source.model, source.processor, rows, source.spec))
    context = step_context(TASK, data, tmp_path_factory.mktemp("work"), source)
    return source, context


# --- the model


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_sentence_transformers(pooling: str, texts_file: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = save_encoder(tmp_path / "model", pooling=pooling, normalize=pooling != "cls")
    source = TASK.load_model(folder, TASK.make_data(read(texts_file)), max_length=None, seed=0)
    assert source.trained and source.spec["pooling"] == pooling and source.spec["max_length"] == 20
    texts = [*sentences(20, seed=3), "good " * 50]
    wanted = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(TASK.outputs(source.model, source.processor, texts, source.spec), wanted, atol=1e-5)


def test_how_to_pool_can_be_named(encoder_dir: Path, texts_file: Path) -> None:
    data = TASK.make_data(read(texts_file), options={"embed": {"pooling": "max", "normalize": False}})
    source = TASK.load_model(encoder_dir, data, max_length=16, seed=0)
    assert (source.spec["pooling"], source.spec["normalize"], source.spec["max_length"]) == ("max", False, 16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"type": "sentence_transformers.models.Dense", "path": "2_Dense"}, "a module Dense behind the transformer"),
        ({"type": "sentence_transformers.models.Pooling", "path": "../.."}, "which says how it pools"),
    ],
)
def test_more_than_pooling_is_refused(change: dict[str, str], why: str, texts_file: Path, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules[:1], change]))
    with pytest.raises(ModelError, match=why):
        TASK.load_model(folder, TASK.make_data(read(texts_file)), max_length=None, seed=0)


def test_an_encoder_that_is_not_all_there_is_refused(texts_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_encoder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.1.output" not in key and "pooler" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"don't fit its config\.json"):
        TASK.load_model(folder, TASK.make_data(read(texts_file)), max_length=None, seed=0)


def test_pooling_in_numpy_is_pooling_in_torch(ready: tuple[OptimizedModel, Context]) -> None:
    from types import SimpleNamespace

    import torch

    draw = np.random.default_rng(0)
    states = draw.normal(size=(3, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    for how in POOLINGS:
        found = TASK.answer(
            SimpleNamespace(last_hidden_state=torch.tensor(states)),
            {"attention_mask": torch.tensor(mask)},
            {"pooling": how},
        )
        np.testing.assert_allclose(found.numpy(), pool(states, mask, how), atol=1e-6)
    with pytest.raises(ValueError, match="pooling must be one of"):
        pool(states, mask, "median")


# --- data and quality


def write_pairs(path: Path, count: int = 90) -> Path:
    one, other = sentences(count, 1), sentences(count, 2)
    draw = random.Random(0)
    rows = [{"a": a, "b": b, "score": round(draw.random() * 5, 1)} for a, b in zip(one, other, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_scored_and_every_text_of_them_is_learned(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl")
    data = TASK.make_data(read(path, text="a", text_pair="b", label="score"))
    assert data.test.references.dtype == np.float64 and isinstance(data.test.inputs[0], tuple)
    assert all(isinstance(text, str) for text in data.train.inputs)
    assert TASK.headline(data.test.references, {})[0] == "spearman"
    assert TASK.complete(data, lambda rows: np.zeros((len(rows), 4))) is data
    with pytest.raises(DataError, match="Pairs of texts need a score"):
        TASK.make_data(read(path, text="a", text_pair="b"))
    with pytest.raises(DataError, match="A score is of a pair"):
        TASK.make_data(read(path, text="a", label="score"))
    with path.open("a") as file:
        file.write(json.dumps({"a": "x", "b": "y", "score": "much"}) + "\n")
    with pytest.raises(DataError, match="no number in 'score'"):
        read(path, text="a", text_pair="b", label="score")


def test_a_second_text_that_is_ignored_would_show(ready: tuple[OptimizedModel, Context], tmp_path: Path) -> None:
    """Scores that only the two texts together explain: with one of them alone there is no correlation."""
    model, _ = ready
    one, other = sentences(400, 5), sentences(400, 6)
    texts = list(zip(one, [a if i % 2 else b for i, (a, b) in enumerate(zip(one, other, strict=True))], strict=True))
    references = np.array([float(i % 2) for i in range(400)])
    outputs = TASK.outputs(model.model, model.processor, texts, model.spec)
    assert TASK.quality(outputs, references, model.spec)["spearman"] > 0.8
    alone = np.stack([outputs[:, 0], np.roll(outputs[:, 0], 1, axis=0)], axis=1)
    assert abs(TASK.quality(alone, references, model.spec)["spearman"]) < 0.2


def test_neighbours_are_counted_as_they_are() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]], dtype=np.float32)
    near = nearest(vectors)
    assert near[:, 0].tolist() == [1, 0, 3, 2, 2]
    assert kept_neighbours(near, near).tolist() == [1] * 5
    assert kept_neighbours(np.array([[1, 2]]), np.array([[2, 3]])).tolist() == [0.5]
    many = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    units = many / np.linalg.norm(many, axis=1, keepdims=True)
    near = units @ units.T
    np.fill_diagonal(near, -2)
    assert (nearest(many) == np.argsort(-near, axis=1, kind="stable")[:, :10]).mean() > 0.999
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 4, 9])) == pytest.approx(1)
    assert np.isnan(spearman(np.array([1.0, 1, 1]), np.array([1.0, 4, 9])))


def test_a_difference_is_paired_and_never_sure_of_few_equal_rows(ready: tuple[OptimizedModel, Context]) -> None:
    model, context = ready
    references = context.data.test.references
    same = TASK.difference("recall_at_10", references, references, references, model.spec, seed=0)
    assert same.value == 0 and same.lo < 0 < same.hi
    noise = np.random.default_rng(0).normal(size=references.shape) * 0.1
    worse = TASK.difference("recall_at_10", references, references + noise, references, model.spec, seed=0)
    assert worse.hi < 0
    drop = TASK.quality(references + noise, references, model.spec)["recall_at_10"] - 1
    assert worse.value == pytest.approx(drop)
    found = TASK.changes(references, references + noise, context.data.test, model.spec)
    assert found.metrics["agreement"] == pytest.approx(1 + drop)
    assert found.metrics["mean_cosine"] < 1
    assert found.tables["broken_rows"][0]["kept"] <= found.tables["broken_rows"][-1]["kept"]
    with pytest.raises(MeasurementError, match="not finite"):
        TASK.quality(references * np.nan, references, model.spec)


# --- steps and runtimes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distill.logits", {"layers": 1, "epochs": 6, "learning_rate": 2e-3, "batch_size": 16}),
        pytest.param(
            "distill.hidden",
            {"layers": 1, "epochs": 6, "learning_rate": 2e-3, "batch_size": 16},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune.heads",
            {"sparsity": 0.5, "importance": "activation", "epochs": 4, "learning_rate": 2e-3},
            marks=pytest.mark.slow,
        ),
        ("prune.width", {"sparsity": 0.5, "epochs": 4, "learning_rate": 2e-3}),
        pytest.param(
            "prune.depth", {"layers": 1, "epochs": 6, "learning_rate": 2e-3, "batch_size": 16}, marks=pytest.mark.slow
        ),
        pytest.param("prune.magnitude", {"sparsity": 0.2, "epochs": 1}, marks=pytest.mark.slow),
        pytest.param("prune.wanda", {"sparsity": 0.2}, marks=pytest.mark.slow),
        ("prune.vocabulary", {}),
        ("quantize.embedding", {"dtype": "int8"}),
        ("quantize.embedding", {"dtype": "binary"}),
        ("quantize.embedding", {"dtype": "float32", "dimensions": 16}),
    ],
)
def test_a_student_keeps_more_neighbours_than_chance(
    ready: tuple[OptimizedModel, Context], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, context = ready
    step: Any = load_technique(name)(**options)
    work = replace(context, workdir=tmp_path)
    if hasattr(step, "check"):
        step.check(model)
    outcome = step.apply(model, work)
    test = context.data.test
    outputs = TASK.outputs(outcome.model, outcome.processor, test.inputs, outcome.spec)
    recall = TASK.quality(outputs, test.references, outcome.spec)["recall_at_10"]
    assert recall > 3 * 10 / len(test), recall
    exported = load_backend("onnxruntime").export(outcome, tmp_path / "model", test.inputs[:8])
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(test.inputs, batch_size=7)
    assert (np.abs(found - outputs) < 1e-3).mean() > 0.99
    assert not hasattr(outcome.model, "slim_projection")


def test_a_student_of_another_width_learns_through_a_matrix_that_goes(
    ready: tuple[OptimizedModel, Context], tmp_path: Path
) -> None:
    model, context = ready
    folder = save_encoder(tmp_path / "student", hidden_size=16, seed=5)
    student = TASK.load_model(folder, TASK.make_data(read_like(context)), max_length=None, seed=0)
    work = replace(context, workdir=tmp_path, load_model=lambda _: student)
    step = load_technique("distill.logits")(student="other", epochs=8, learning_rate=5e-3, batch_size=16)
    outcome = step.apply(model, work)
    vectors = TASK.outputs(outcome.model, outcome.processor, context.data.test.inputs, outcome.spec)
    recall = TASK.quality(vectors, context.data.test.references, outcome.spec)["recall_at_10"]
    losses = outcome.lineage[-1].notes["losses"]
    assert vectors.shape[1] == 16 and losses[-1] < 0.6 * losses[0], losses
    assert recall > 3 * 10 / len(vectors), recall
    assert not hasattr(outcome.model, "slim_projection")


def read_like(context: Context) -> Any:
    from types import SimpleNamespace

    frames = {name: getattr(context.data, name).frame for name in ("train", "validation", "test")}
    return SimpleNamespace(**frames, report={"columns": {"text": "text"}}, name="t", source="t")


def test_there_is_nothing_to_fine_tune_or_to_take_gradients_of(ready: tuple[OptimizedModel, Context]) -> None:
    model, context = ready
    with pytest.raises(ModelError, match="Write importance=activation"):
        load_technique("prune.heads")(sparsity=0.5, importance="taylor").apply(model, context)
    with pytest.raises(ModelError, match="no labels to learn from"):
        load_technique("finetune.full")(epochs=1).apply(model, context)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_an_exported_model_answers_as_its_source(
    ready: tuple[OptimizedModel, Context], backend: str, tmp_path: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    model, context = ready
    texts = [*context.data.test.inputs, "good " * 60]
    pairs = list(zip(texts[:9], texts[9:18], strict=True))
    exported = load_backend(backend).export(model, tmp_path / "model", pairs[:4] if backend == "torch" else texts[:8])
    predictor = load_backend(backend).load(exported.directory, threads=1)
    for inputs in (texts, pairs):
        wanted = TASK.outputs(model.model, model.processor, inputs, model.spec)
        np.testing.assert_allclose(predictor.predict(inputs, batch_size=5), wanted, atol=2e-4)


@pytest.mark.parametrize("name", ["quantize.dynamic", pytest.param("quantize.static", marks=pytest.mark.slow)])
def test_integer_weights_and_integer_vectors_together(
    ready: tuple[OptimizedModel, Context], name: str, tmp_path: Path
) -> None:
    model, context = ready
    backend = load_backend("onnxruntime")
    work = replace(context, workdir=tmp_path, backends={"onnxruntime": backend})
    outcome = load_technique(name)(calibration_rows=16, max_drop=None).apply(model, work)
    outcome = load_technique("quantize.embedding")(dtype="int8", dimensions=24).apply(outcome, work)
    exported = backend.export(outcome, tmp_path / "final", context.data.validation.inputs[:4])
    found = backend.load(exported.directory, threads=1).predict(context.data.test.inputs)
    assert found.shape[1] == 24 and found.min() >= -128 and found.max() <= 127 and (found % 1 == 0).all()
    assert outcome.lineage[-1].notes["bytes_per_vector"] == 24
    assert TASK.quality(found, context.data.test.references, outcome.spec)["recall_at_10"] > 0.4


def test_vectors_are_cut_before_they_are_brought_to_length_one() -> None:
    vectors = np.array([[3.0, 4, 12], [0, 2, 5]], dtype=np.float32)
    found = finish(vectors, {"normalize": True, "dimensions": 2})
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 1]], atol=1e-6)
    spec = {"normalize": False, "output": "int8", "low": [0, 0, 0], "high": [3, 4, 24]}
    assert finish(vectors, spec).tolist() == [[127, 127, 0], [-128, 0, -75]]
    assert finish(vectors - 2.5, {"normalize": False, "output": "binary"}).tolist() == [[1, 1, 1], [-1, -1, 1]]


def test_vectors_of_no_model_are_not_rounded(tmp_path: Path, ready: tuple[OptimizedModel, Context]) -> None:
    model, _ = ready
    with pytest.raises(ConfigError, match="gives none"):
        load_technique("quantize.embedding")().check(replace(model, task="text-classification"))
    with pytest.raises(ConfigError, match="dimensions is 99"):
        load_technique("quantize.embedding")(dimensions=99).check(model)


# --- recipes


@pytest.fixture(scope="module")
def outcome(store: Any, texts_file: Path, encoder_dir: Path) -> Any:  # noqa: F811
    more = {"steps.distill.epochs": 4, "steps.distill.layers": 1, "steps.distill.learning_rate": 2e-3}
    return slim.run(
        "distill-embeddings",
        model=str(encoder_dir),
        data=str(texts_file),
        **{**BUDGET, "track.experiment": "slim", "export.baseline": True, **more},
    )


def test_the_recipe_measures_neighbours_and_logs_vectors(outcome: Any, store: Any) -> None:  # noqa: F811
    import mlflow

    names = [point.exported.variant for point in outcome.points]
    assert names[1] == "baseline@onnxruntime"
    assert names[-1] == "distill.logits+quantize.dynamic+quantize.embedding@onnxruntime"
    assert outcome.reports[0].metrics["quality/recall_at_10"] == pytest.approx(1, abs=0.01)
    assert outcome.reports[1].metrics["quality/recall_at_10"] == pytest.approx(1, abs=0.01)
    assert 0.2 < outcome.reports[-1].metrics["quality/recall_at_10"] < 1
    for point, kind in ((outcome.points[0], "float32"), (outcome.points[-1], "int8")):
        assert store.get_run(point.run_id).data.tags["slim.reload"] == "same"
        found = mlflow.pyfunc.load_model(point.model_uri).predict(["a good film", "the red movie"])
        assert found.shape == (2, 32) and str(found.dtype) == kind


@pytest.mark.slow
def test_logged_models_are_measured_on_scored_pairs(outcome: Any, tmp_path: Path) -> None:
    columns = {"text": "a", "text_pair": "b", "label": "score", "task": "feature-extraction"}
    again = slim.run(
        "evaluate",
        model=outcome.points[-1].model_uri,
        against=outcome.points[0].model_uri,
        data=str(write_pairs(tmp_path / "pairs.jsonl")),
        **columns,
        **{**BUDGET, "track.experiment": "slim"},
    )
    assert "quality/spearman_delta_lo" in again.reports[-1].metrics
    assert again.reports[0].tags["slim.quality.metric"] == "spearman"


@pytest.mark.slow
def test_logged_models_are_measured_on_neighbours_again(outcome: Any, texts_file: Path) -> None:
    again = slim.run(
        "evaluate",
        model=outcome.points[-1].model_uri,
        against=outcome.points[0].model_uri,
        data=str(texts_file),
        label=None,
        task="feature-extraction",
        **{**BUDGET, "track.experiment": "slim"},
    )
    wanted = outcome.reports[-1].metrics["quality/recall_at_10"]
    assert again.reports[-1].metrics["quality/recall_at_10"] == pytest.approx(wanted, abs=1e-6)


def test_a_classifier_is_a_model_of_vectors_too(texts_file: Path, tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "model")
    source = TASK.load_model(folder, TASK.make_data(read(texts_file)), max_length=None, seed=0)
    assert source.spec["pooling"] == "mean" and not source.spec["normalize"]
