from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer

from mlflow_slim.errors import ModelError
from mlflow_slim.importance import gates, keep_most_important
from mlflow_slim.structure import find_parts, keep_heads, keep_neurons, keep_width, narrowed_shapes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 32}
BERT_LIKE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    **SIZES,
}
ARCHITECTURES = {
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
    "electra": {**BERT_LIKE, "embedding_size": 4},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, **SIZES},
    "mpnet": BERT_LIKE,
    "deberta-v2": {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
}
WITH_HEADS = ("bert", "roberta", "electra", "distilbert")


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, num_labels=3, **ARCHITECTURES[kind])
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # answers that depend on every part
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def answers(model: Any) -> Any:
    ids = torch.arange(4, 16).reshape(2, 6)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_a_model_without_some_heads_answers_like_one_in_which_they_say_nothing(kind: str) -> None:
    model = tiny(kind)
    kept = {0: [1, 3], 1: [0, 1, 2]}
    pruned = keep_heads(model, kept)
    parts = find_parts(model)
    masks = {p.mixed: torch.tensor([[float(head in kept[p.layer]) for head in range(p.heads)]]) for p in parts}
    with gates(model, {p.mixed: p.head_size for p in parts}, masks):
        expected = answers(model)
    torch.testing.assert_close(answers(pruned), expected, rtol=1e-5, atol=1e-5)
    assert [p.heads for p in find_parts(pruned)] == [2, 3]
    assert not torch.allclose(answers(model), expected, atol=1e-4)  # they did say something


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_model_without_some_neurons_answers_like_one_in_which_they_say_nothing(kind: str) -> None:
    model = tiny(kind)
    kept = {0: list(range(0, 24, 2)), 1: list(range(12))}
    pruned = keep_neurons(model, kept)
    parts = find_parts(model)
    masks = {p.down: torch.tensor([[float(unit in kept[p.layer]) for unit in range(24)]]) for p in parts}
    with gates(model, {p.down: 1 for p in parts}, masks):
        expected = answers(model)
    torch.testing.assert_close(answers(pruned), expected, rtol=1e-5, atol=1e-5)
    assert narrowed_shapes(pruned) == {}, "the configuration says it all when layers keep equally many"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_hidden_states_become_narrower_everywhere(kind: str) -> None:
    model = tiny(kind)
    pruned = keep_width(model, range(8))
    assert answers(pruned).shape == (2, 3)
    assert pruned.config.hidden_size == 8
    assert sum(p.numel() for p in pruned.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2"])
def test_heads_that_layers_share_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"can't be taken out one by one.*prune\.width"):
        keep_heads(tiny(kind), {0: [0]})


def test_unknown_layers_are_refused_with_what_to_do_instead() -> None:
    config = transformers.AutoConfig.for_model(
        "mobilebert", num_hidden_layers=2, hidden_size=16, num_attention_heads=4, vocab_size=90
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"mobilebert.*prune\.depth"):
        find_parts(model)


def test_every_step_of_a_chain_looks_at_the_model_before_the_first_is_done() -> None:
    from mlflow_slim.artifact import OptimizedModel
    from mlflow_slim.catalog import load_technique
    from mlflow_slim.pipeline import _check_fit

    source = OptimizedModel(tiny("mpnet"), None, "text-classification", {})
    distill, prune = load_technique("distill.logits"), load_technique("prune.width")
    _check_fit([distill(), prune()], source)
    with pytest.raises(ModelError, match="one by one"):
        _check_fit([distill(), prune(head_sparsity=0.5)], source)
    _check_fit([distill(student="another"), prune(head_sparsity=0.5)], source)  # which is not known yet


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_most_important_units_stay(scope: Any) -> None:
    scores = [np.array([1.0, 9.0, 2.0, 8.0]), np.array([40.0, 30.0, 20.0, 10.0])]
    kept = keep_most_important(scores, 0.5, scope=scope)
    assert kept == [[1, 3], [0, 1]]


def test_global_scope_leaves_each_layer_one_unit() -> None:
    scores = [np.array([1.0, 1.0]), np.array([1.0, 100.0])]
    kept = keep_most_important(scores, 0.5, scope="global")
    assert sum(map(len, kept)) == 2
    assert all(kept)


@pytest.mark.parametrize("kind", WITH_HEADS)
@pytest.mark.parametrize("prune", ["heads", "width", "uneven"])
def test_narrowed_models_survive_saving_and_loading(kind: str, prune: str, tmp_path: Path) -> None:
    from mlflow_slim.artifact import OptimizedModel
    from mlflow_slim.catalog import load_backend
    from mlflow_slim.runtime.torch_engine import load_model

    model = copy.deepcopy(tiny(kind))
    pruned = {
        "heads": lambda: keep_heads(model, {0: [1, 3], 1: [0]}),
        "width": lambda: keep_width(model, range(8)),
        "uneven": lambda: keep_neurons(model, {0: range(5), 1: range(7)}),
    }[prune]()
    assert narrowed_shapes(pruned)
    spec = {"labels": ["a", "b", "c"], "multi_label": False, "pair": False, "max_length": 16}
    source = OptimizedModel(pruned, make_tokenizer(), "text-classification", spec)
    exported = load_backend("torch").export(source, tmp_path / "torch", ["good film", "bad"])
    again = load_model(exported.directory, "AutoModelForSequenceClassification").eval()
    torch.testing.assert_close(answers(again), answers(pruned))
    with pytest.raises((RuntimeError, ValueError)):  # transformers says so, and doesn't answer with other weights
        transformers.AutoModelForSequenceClassification.from_pretrained(str(exported.directory))
