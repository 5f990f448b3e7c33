"""The pruning techniques on tiny models and real training: parts go, the source stays, zeros stay zero."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer
from pydantic import ValidationError
from test_backends import random_texts, tiny_source

from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_task, load_technique
from mlflow_slim.errors import ModelError
from mlflow_slim.interfaces import Context
from mlflow_slim.scoring import outputs_of
from mlflow_slim.structure import find_parts
from mlflow_slim.vocabulary import trim

torch = pytest.importorskip("torch")
TASK = load_task("text-classification")


def split(texts: list[str], references: np.ndarray) -> Any:
    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return len(texts)

    return Rows(name="train", inputs=texts, references=references, digest="0")


def context(source: OptimizedModel, folder: Path, **changes: Any) -> Context:
    """Rows whose right answers are the source's own."""
    texts = random_texts(48, seed=5)
    rows = TASK.encode(source.processor, texts, source.spec)
    references = outputs_of(source.model, source.processor, rows).argmax(-1)
    data: Any = SimpleNamespace(train=split(texts, references), validation=split(texts, references))
    options = {
        "task": TASK,
        "data": data,
        "seed": 0,
        "threads": 1,
        "device": "cpu",
        "workdir": folder,
        "load_model": lambda _: source,
        "report": lambda *_: None,
        "original": source,
        **changes,
    }
    return Context(**options)


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def source() -> OptimizedModel:
    return tiny_source()


QUICK = {"epochs": 1, "batch_size": 16}


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("prune.heads", {"sparsity": 0.5, **QUICK}, "heads_kept"),
        ("prune.heads", {"sparsity": 0.5, "importance": "activation", "recovery": "none"}, "heads_kept"),
        ("prune.width", {"sparsity": 0.5, **QUICK}, "neurons_kept"),
        ("prune.width", {"sparsity": 0.25, "hidden_sparsity": 0.5, "recovery": "finetune", **QUICK}, "width_kept"),
        ("prune.width", {"sparsity": 0.5, "importance": "activation", "recovery": "none"}, "neurons_kept"),
        ("prune.depth", {"layers": 1, **QUICK}, "layers_kept"),
        ("prune.depth", {"importance": "last", "recovery": "none"}, "layers_kept"),
    ],
)
def test_parts_go_and_the_source_stays(
    name: str, options: dict[str, Any], kept: str, source: OptimizedModel, tmp_path: Path
) -> None:
    before = state(source.model)
    pruned = load_technique(name)(**options).apply(source, context(source, tmp_path))
    after = source.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    size, full = (sum(p.numel() for p in model.parameters()) for model in (pruned.model, source.model))
    assert size < full
    record = pruned.lineage[-1]
    assert record.technique == name
    assert record.notes[kept]
    json.dumps([record.options, record.notes])
    assert ("losses" in record.notes) == (options.get("recovery") != "none")
    assert not pruned.model.training
    for backend in ("torch", "onnxruntime"):  # each compares the answers of what it saved
        exported = load_backend(backend).export(pruned, tmp_path / backend, random_texts(6, seed=1))
        assert exported.parameters == size


def test_the_baseline_teaches_and_not_the_model_of_the_step_before(source: OptimizedModel, tmp_path: Path) -> None:
    """With alpha 1 the answers of the teacher are all there is to learn from."""

    def always(label: int) -> OptimizedModel:
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.zero_()
            model.classifier.bias[label] = 3.0
        return OptimizedModel(model, source.processor, source.task, source.spec)

    step = load_technique("prune.width")(sparsity=0.1, alpha=1, temperature=1, epochs=15, learning_rate=2e-2)
    outcome = step.apply(always(0), context(source, tmp_path, original=always(1)))
    rows = TASK.encode(source.processor, random_texts(48, seed=5), source.spec)
    assert set(outputs_of(outcome.model, source.processor, rows).argmax(-1).tolist()) == {1}


def test_scores_find_the_head_and_the_neurons_that_say_nothing(source: OptimizedModel, tmp_path: Path) -> None:
    model = copy.deepcopy(source.model)
    for parts in find_parts(model):
        with torch.no_grad():  # the last head and every even neuron are heard by nobody
            model.get_submodule(parts.mixed).weight[:, -parts.head_size :] = 0
            model.get_submodule(parts.down).weight[:, ::2] = 0
    deaf = OptimizedModel(model, source.processor, source.task, source.spec)
    before = find_parts(model)[0]
    for importance in ("taylor", "activation"):
        options = {"importance": importance, "recovery": "none"}
        heads = load_technique("prune.heads")(sparsity=1 / before.heads, **options).apply(deaf, context(deaf, tmp_path))
        assert heads.lineage[-1].notes["heads_kept"] == [list(range(before.heads - 1))] * len(find_parts(model))
        narrow = load_technique("prune.width")(sparsity=0.5, **options).apply(deaf, context(deaf, tmp_path))
        rows = TASK.encode(deaf.processor, random_texts(8, seed=2), deaf.spec)
        wanted, found = (outputs_of(m.model, deaf.processor, rows) for m in (deaf, narrow))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "zero_share"),
    [({"sparsity": 0.6}, 0.6), ({"sparsity": 0.6, "scope": "global"}, 0.6), ({"pattern": "2:4"}, 0.5)],
)
def test_zeros_stay_zero_while_the_rest_is_trained(
    options: dict[str, Any], zero_share: float, source: OptimizedModel, tmp_path: Path
) -> None:
    step = load_technique("prune.magnitude")
    once = step(**options, recovery="none").apply(source, context(source, tmp_path))
    trained = step(**options, epochs=2, batch_size=8, learning_rate=1e-2).apply(source, context(source, tmp_path))
    assert trained.lineage[-1].notes["zero_share"] == pytest.approx(zero_share, abs=0.01)
    moved = False
    for (name, first), (_, second) in zip(once.model.named_parameters(), trained.model.named_parameters(), strict=True):
        if ".layer." in name and first.ndim == 2:
            assert not second[first == 0].any(), name
            moved = moved or not torch.equal(first, second)
    assert moved
    assert "not faster" in trained.lineage[-1].notes["caution"]


def test_two_of_four_neighbours_are_the_largest(source: OptimizedModel, tmp_path: Path) -> None:
    step = load_technique("prune.magnitude")(pattern="2:4", recovery="none")
    pruned = step.apply(source, context(source, tmp_path))
    name = find_parts(source.model)[0].down
    old, new = (m.get_submodule(name).weight.reshape(-1, 4) for m in (source.model, pruned.model))
    assert (torch.count_nonzero(new, dim=1) == 2).all()
    assert (new.abs().sum(1) >= old.abs().sum(1) / 2).all()


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "5:4", "2-4", "50%"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="not N:M"):
        load_technique("prune.magnitude")(pattern=pattern)


@pytest.mark.parametrize(
    ("name", "options"),
    [("prune.heads", {"sparsity": 1}), ("prune.width", {"sparsity": 1.0}), ("prune.magnitude", {"sparsity": 50})],
)
def test_nothing_left_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        load_technique(name)(**options)


def test_width_with_nothing_to_do_is_refused(source: OptimizedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing would be taken out"):
        load_technique("prune.width")(sparsity=0).apply(source, context(source, tmp_path))


def test_layers_that_are_not_there_are_found_before_any_work(source: OptimizedModel) -> None:
    with pytest.raises(ModelError, match="layers are 0 to"):
        load_technique("prune.depth")(layers=(0, 77)).check(source)


def test_a_smaller_vocabulary_answers_known_words_as_before(source: OptimizedModel, tmp_path: Path) -> None:
    before = state(source.model)
    ctx = context(source, tmp_path)
    pruned = load_technique("prune.vocabulary")().apply(source, ctx)
    notes = pruned.lineage[-1].notes
    assert notes["tokens_kept"] < notes["tokens_before"]
    assert pruned.model.get_input_embeddings().weight.shape[0] == notes["tokens_kept"] == len(pruned.processor)
    rows, smaller = (TASK.encode(m.processor, ctx.data.train.inputs, source.spec) for m in (source, pruned))
    np.testing.assert_allclose(
        outputs_of(pruned.model, pruned.processor, smaller),
        outputs_of(source.model, source.processor, rows),
        rtol=1e-4,
        atol=1e-5,
    )
    assert [len(row["input_ids"]) for row in rows] == [len(row["input_ids"]) for row in smaller]
    assert all(torch.equal(before[key], value) for key, value in source.model.state_dict().items())
    for backend in ("torch", "onnxruntime"):
        exported = load_backend(backend).export(pruned, tmp_path / backend, ["zebra nice film", "qqq"])
        outputs = load_backend(backend).load(exported.directory, threads=1).predict(["zebra nice film", "nice"])
        assert np.isfinite(outputs).all()


def test_rare_words_are_cut_into_pieces_and_no_text_becomes_unknown(source: OptimizedModel, tmp_path: Path) -> None:
    ctx = context(source, tmp_path)
    pruned = load_technique("prune.vocabulary")(min_count=10_000).apply(source, ctx)
    ids = pruned.processor("great film")["input_ids"]
    assert pruned.processor.unk_token_id not in ids
    assert len(ids) > len(source.processor("great film")["input_ids"])


def _bpe() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        ["the film was good and the plot was great", "a lovely lower lowest newest widest story"] * 4,
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _unigram() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz▁"]
    pieces += [("▁the", -2.0), ("▁film", -3.0), ("▁go", -4.0), ("od", -4.0), ("▁good", -5.0), ("▁plot", -4.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return tokenizer


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_trimmed_tokenizers_cut_known_texts_as_before(kind: str) -> None:
    from tokenizers import Tokenizer

    full = {
        "WordPiece": lambda: make_tokenizer().backend_tokenizer,
        "BPE": _bpe,
        "Unigram": _unigram,
    }[kind]()
    known = ["the film", "the good film", "good"]
    content, order = trim(json.loads(full.to_str()), {token for text in known for token in full.encode(text).ids})
    smaller = Tokenizer.from_str(json.dumps(content))
    assert smaller.get_vocab_size() == len(order) < full.get_vocab_size()
    assert order == sorted(order)
    for text in known:
        old, new = full.encode(text), smaller.encode(text)
        assert new.tokens == old.tokens
        assert [order[number] for number in new.ids] == old.ids
        assert new.special_tokens_mask == old.special_tokens_mask
    other = smaller.encode("plot")
    assert "".join(other.tokens[1:-1]).replace("##", "").lstrip("▁") == "plot"
    assert len(other.tokens) > len(full.encode("plot").tokens)


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="WordLevel"):
        trim({"model": {"type": "WordLevel", "vocab": {}}}, [])
