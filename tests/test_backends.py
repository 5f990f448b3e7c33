"""The contract of every backend: what is exported answers as its source, whole folders or none, clear refusals."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings

import numpy as np
import pytest
from conftest import VOCABULARY, make_tokenizer

from mlflow_slim import bundle, manifest
from mlflow_slim.artifact import OptimizationCost, OptimizedModel, StepRecord
from mlflow_slim.catalog import load_backend
from mlflow_slim.errors import ExportError, IntegrityError, ModelError
from mlflow_slim.interfaces import Predictor

WORDS = [word for word in VOCABULARY if word.isalpha() and len(word) > 2]
LABELS = ["news", "sport", "art & film"]
BACKENDS = ["torch", "onnxruntime"]
FAST = ["bert", "roberta"]
OTHERS = ["albert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "xlm-roberta"]
SECRET = "/home/author/secret-model"
THREE_INPUTS = ("albert", "bert", "electra")


def random_texts(count, *, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(1, longest, count)]


def tiny_model(kind, *, labels=LABELS, layers=2):
    import torch
    import transformers

    size = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 80, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    special = {
        "albert": {"embedding_size": 16},
        "electra": {"embedding_size": 16},
        "deberta-v2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
        "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    }
    if kind == "distilbert":
        shape = {"dim": 32, "n_layers": layers, "n_heads": 2, "hidden_dim": 64}
    config = transformers.AutoConfig.for_model(kind, **size, **shape, **special.get(kind, {}))
    config.num_labels = len(labels)
    config.initializer_range = 0.3  # so that labels differ from text to text
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def tiny_source(kind="bert", *, labels=LABELS, pair=False, max_length=24, layers=None, **changes):
    tokenizer = make_tokenizer()
    if kind not in THREE_INPUTS:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    spec = {"labels": labels, "multi_label": False, "pair": pair, "max_length": max_length}
    lineage = (StepRecord("distill.logits", {"temperature": 2.0}, {"layers": [0, 2]}, OptimizationCost(3.5)),)
    layers = layers or (2 if kind == "bert" else 1)  # exporting takes seconds a layer
    model = tiny_model(kind, labels=labels, layers=layers)
    return OptimizedModel(model, tokenizer, "text-classification", spec, lineage=lineage, **changes)


def outputs_of(source, texts):
    """The plain way: one text at a time, so without padding."""
    import torch

    found = []
    with torch.inference_mode():
        for text in texts:
            args = (text,) if isinstance(text, str) else text
            encoded = source.processor(
                *args, truncation=True, max_length=source.spec["max_length"], return_tensors="pt"
            )
            found.append(source.model(**encoded).logits[0].float().numpy())
    return np.stack(found)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports made once: ``exported(kind, backend)`` gives the source and the folder."""
    made = {}

    def get(kind, backend):
        if (kind, backend) not in made:
            source = tiny_source(kind)
            source.model.config._name_or_path = source.processor.name_or_path = SECRET
            folder = tmp_path_factory.mktemp("exported") / "model"
            made[kind, backend] = source, load_backend(backend).export(source, folder, random_texts(12))
        return made[kind, backend]

    return get


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)])
def test_an_exported_model_answers_as_its_source_on_texts_it_never_saw(exported, kind, backend):
    source, model = exported(kind, backend)
    predictor = load_backend(backend).load(model.directory, threads=1)
    assert isinstance(predictor, Predictor)
    texts = random_texts(60, seed=1)
    wanted = outputs_of(source, texts)
    found = predictor.predict(texts, batch_size=7)
    assert found.dtype == np.float32
    assert np.ptp(wanted, axis=0).min() > 0.01, "outputs that hardly vary would show nothing"
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    middle = wanted.mean(axis=0)  # random heads prefer one label; around their mean every label is used
    np.testing.assert_array_equal((found - middle).argmax(axis=1), (wanted - middle).argmax(axis=1))
    assert len(set((found - middle).argmax(axis=1))) == len(LABELS)
    assert model.notes["max_abs_diff"] < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_read_back_is_what_export_returned(exported, backend):
    source, model = exported("bert", backend)
    again = bundle.read(model.directory)
    assert again == model
    assert again.lineage == source.lineage
    assert again.variant == "distill.logits@" + backend
    assert again.parameters == sum(weight.numel() for weight in source.model.parameters())
    assert 0 < again.nonzero_parameters <= again.parameters
    assert manifest.verify(model.directory) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_exporting_pairs_leaves_the_source_and_the_surroundings_as_they_were(tmp_path, backend, capfd, caplog):
    source = tiny_source(pair=True)
    texts = random_texts(20)
    pairs = list(zip(texts, reversed(texts), strict=True))
    source.model.train()
    source.model.bert.embeddings.eval()
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxruntime", "transformers")}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model = load_backend(backend).export(source, tmp_path / "model", pairs[:6])
    assert [str(item.message) for item in heard] == []
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert source.model.training
    assert not source.model.bert.embeddings.training
    assert all((before[name] == tensor).all() for name, tensor in source.model.state_dict().items())
    assert levels == {name: logging.getLogger(name).level for name in levels}
    source.model.eval()
    found = load_backend(backend).load(model.directory, threads=1).predict(pairs)
    np.testing.assert_allclose(found, outputs_of(source, pairs), atol=2e-4)


def test_the_onnx_graph_is_fused_and_its_inputs_have_free_axes(exported):
    import onnxruntime

    _, model = exported("bert", "onnxruntime")
    assert model.notes["fused"]["SkipLayerNormalization"] == 4
    assert model.notes["fused"]["BiasGelu"] == 2
    session = onnxruntime.InferenceSession(str(model.directory / "model.onnx"))
    assert {item.name for item in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(item.shape == ["batch", "sequence"] for item in session.get_inputs())
    assert sorted(path.name for path in model.directory.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "slim.json",
        "tokenizer.json",
    ]


def test_inputs_are_those_the_models_forward_takes(exported):
    source, model = exported("roberta", "onnxruntime")
    content = json.loads((model.directory / "slim.json").read_text())
    assert content["inputs"]["names"] == ["input_ids", "attention_mask"]
    assert "roberta" in type(source.model).__name__.lower()


def test_a_torch_folder_loads_in_transformers_as_it_stands(exported):
    import transformers

    _, model = exported("bert", "torch")
    folder = str(model.directory)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pipe = transformers.pipeline("text-classification", model=net, tokenizer=tokenizer)
    assert {pipe(text)[0]["label"] for text in random_texts(30)} <= set(LABELS)
    assert not list(model.directory.glob("*.bin"))


def test_threads_are_set_in_the_engine(exported):
    import torch

    _, graph = exported("bert", "onnxruntime")
    assert load_backend("onnxruntime").load(graph.directory, threads=2).settings["intra_op_threads"] == 2
    _, folder = exported("bert", "torch")
    before = torch.get_num_threads()
    try:
        two = load_backend("torch").load(folder.directory, threads=2)
        load_backend("torch").load(folder.directory, threads=1).predict(["good"])
        assert torch.get_num_threads() == 1
        two.predict(["good"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        load_backend("torch").load(folder.directory, threads=0)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("torch", "float16"),
        ("torch", "bfloat16"),
        pytest.param("onnxruntime", "float16", marks=pytest.mark.slow),
        ("onnxruntime", "bfloat16"),
    ],
)
def test_half_precision_models_export_and_keep_their_labels(tmp_path, backend, dtype):
    import torch

    source = tiny_source()
    half = OptimizedModel(
        copy.deepcopy(source.model).to(getattr(torch, dtype)), source.processor, source.task, source.spec
    )
    model = load_backend(backend).export(half, tmp_path / "model", random_texts(6))
    texts = random_texts(40, seed=2)
    found = load_backend(backend).load(model.directory, threads=1).predict(texts)
    wanted = outputs_of(half, texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    assert half.model.dtype == getattr(torch, dtype)
    if backend == "onnxruntime":
        assert model.notes["widened"] == f"{dtype} to float32"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_existing_folder_is_not_overwritten(tmp_path, backend):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists already and is not overwritten"):
        load_backend(backend).export(tiny_source(), tmp_path / "model", random_texts(2))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_flipped_byte_is_found_before_the_model_is_opened(exported, tmp_path, backend):
    _, model = exported("bert", backend)
    folder = tmp_path / "copy"
    shutil.copytree(model.directory, folder)
    weights = folder / ("model.onnx" if backend == "onnxruntime" else "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=f"{weights.name} has another sha256"):
        load_backend(backend).load(folder, threads=1)
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        load_backend(backend).load(folder, threads=1)


def test_a_model_that_answers_differently_after_export_is_refused_and_not_kept():
    outputs = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(ExportError, match=r"The copy differs from its source by 0\.1 on a batch of 1"):
        bundle.compare(
            lambda texts: outputs[: len(texts)],
            lambda texts: outputs[: len(texts)] * np.float32(1.1),
            ["a", "b"],
            max_length=8,
            tolerance=1e-3,
            what="The copy",
        )
    with pytest.raises(ExportError, match="finite: False"):
        bundle.compare(
            lambda texts: outputs[: len(texts)],
            lambda texts: outputs[: len(texts)] * np.nan,
            ["a", "b"],
            max_length=8,
            tolerance=1e-3,
            what="The copy",
        )


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    with pytest.raises(ExportError, match=r"needs a sample of inputs, got none"):
        load_backend("torch").export(tiny_source(), tmp_path / "deep" / "model", [])
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_full_disk_is_said_plainly_and_leaves_nothing(tmp_path):
    import errno

    with (
        pytest.raises(ExportError, match=r"can't be written: the disk is full\..*Nothing was left behind"),
        bundle.staged(tmp_path / "model") as work,
    ):
        (work / "part").write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_narrowed_layer_is_saved_with_its_shape(tmp_path):
    import torch

    source = tiny_source()
    layer = source.model.bert.encoder.layer[0]
    layer.intermediate.dense = torch.nn.Linear(32, 20)
    layer.output.dense = torch.nn.Linear(20, 32)
    texts = random_texts(5)
    exported = load_backend("torch").export(source, tmp_path / "model", texts)
    found = load_backend("torch").load(exported.directory, threads=1).predict(texts)
    np.testing.assert_allclose(found, outputs_of(source, texts), rtol=1e-4, atol=1e-5)


def test_a_module_of_another_kind_is_refused_by_torch_with_the_way_out(tmp_path):
    import torch

    source = tiny_source()
    source.model.bert.encoder.layer[0].output.add_module("more", torch.nn.Linear(4, 4))
    with pytest.raises(ModelError, match="other parts"):
        load_backend("torch").export(source, tmp_path / "model", random_texts(3))
    assert list(tmp_path.iterdir()) == []


def test_a_head_of_another_size_than_the_labels_is_refused(tmp_path):
    source = tiny_source(labels=["a", "b"])
    wrong = OptimizedModel(source.model, source.processor, source.task, {**source.spec, "labels": LABELS})
    for backend in BACKENDS:
        with pytest.raises(ModelError, match="The model has 2 outputs and the task 3 labels"):
            load_backend(backend).export(wrong, tmp_path / "model", random_texts(2))


def test_a_max_length_beyond_the_model_is_refused(tmp_path):
    source = tiny_source(max_length=200)
    with pytest.raises(ModelError, match="can't take max_length=200 tokens"):
        load_backend("onnxruntime").export(source, tmp_path / "model", random_texts(2))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_padding_token_is_refused(tmp_path):
    source = tiny_source()
    source.processor.pad_token = None
    with pytest.raises(ModelError, match="has no padding token"):
        load_backend("onnxruntime").export(source, tmp_path / "model", random_texts(2))


def test_a_tokenizer_that_has_no_fast_form_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    source = tiny_source()
    slow = OptimizedModel(source.model, ByT5Tokenizer(), source.task, source.spec)
    with pytest.raises(ModelError, match=r"ByT5Tokenizer has no tokenizer\.json and can't be converted"):
        load_backend("onnxruntime").export(slow, tmp_path / "model", random_texts(2))


def test_a_configuration_that_would_run_code_is_refused_at_load(exported, tmp_path):
    _, model = exported("bert", "torch")
    for number, change in enumerate(
        ({"auto_map": {"AutoConfig": "evil.Config"}}, {"_attn_implementation_internal": "someone/kernel"})
    ):
        folder = tmp_path / str(number)
        shutil.copytree(model.directory, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        manifest.write(folder)
        with pytest.raises(IntegrityError, match=f"sets {next(iter(change))} to .* would run code; refused"):
            load_backend("torch").load(folder, threads=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_path_of_the_authors_machine_is_written(exported, backend):
    _, model = exported("bert", backend)
    for path in model.directory.rglob("*"):
        content = path.read_bytes()
        assert SECRET.encode() not in content, path.name
        assert str(model.directory.parent).encode() not in content, path.name
