from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_slim.class_names import model_labels
from mlflow_slim.errors import DataError, ModelError
from mlflow_slim.tasks.text_classification import TASK


def tables(labels: list[Any], pairs: bool = False) -> Any:
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(len(labels))], "label": labels})
    if pairs:
        frame["text_pair"] = [f"other {i}" for i in range(len(labels))]
    return SimpleNamespace(train=frame, validation=frame, test=frame, report={}, name="t", source="t.csv")


def config(*names: str) -> dict[str, Any]:
    return {"architectures": ["BertForSequenceClassification"], "id2label": {str(i): n for i, n in enumerate(names)}}


def test_labels_of_the_data_are_sorted_with_numbers_by_value() -> None:
    data = TASK.make_data(tables([10, 9, 2, 10]))
    assert data.spec["labels"] == ["2", "9", "10"]
    assert data.train.references.tolist() == [2, 1, 0, 2]


def test_the_order_of_a_trained_head_is_kept_when_its_names_fit() -> None:
    data = TASK.make_data(tables(["neg", "pos", "neg"]), config=config("pos", "neg", "neutral"))
    assert data.spec["labels"] == ["pos", "neg", "neutral"]
    assert data.train.references.tolist() == [1, 0, 1]
    assert data.report["labels_from"] == "model"


def test_integer_labels_are_class_ids_of_a_trained_head_when_they_fit() -> None:
    data = TASK.make_data(tables([0, 1, 1]), config=config("neg", "pos"))
    assert (data.spec["labels"], data.train.references.tolist()) == (["neg", "pos"], [0, 1, 1])


def test_other_labels_than_the_heads_make_a_head_of_their_own() -> None:
    data = TASK.make_data(tables(["good", "bad"]), config=config("neg", "pos"))
    assert data.spec["labels"] == ["bad", "good"]
    assert data.report["labels_from"] == "data"


def test_booleans_are_labels_by_name_and_never_class_ids() -> None:
    data = TASK.make_data(tables([True, False]), config=config("neg", "pos"))
    assert data.spec["labels"] == ["False", "True"]


def test_names_with_slashes_and_spaces_stay_as_they_are() -> None:
    assert TASK.make_data(tables(["a/b c", "Ünï cödé"])).spec["labels"] == ["a/b c", "Ünï cödé"]


def test_lists_of_labels_make_multi_label_data() -> None:
    data = TASK.make_data(tables([["a", "c"], [], ["b"]]))
    assert data.spec["multi_label"]
    assert data.train.references.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_lists_and_plain_labels_together_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 2"):
        TASK.make_data(tables([["a"], "b"]))


def test_pairs_become_pairs() -> None:
    data = TASK.make_data(tables(["a", "b"], pairs=True))
    assert data.spec["pair"]
    assert data.test.inputs[1] == ("text 1", "other 1")


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="one label 'a'"):
        TASK.make_data(tables(["a", "a"]))


def test_measuring_an_exported_model_refuses_labels_that_it_lacks() -> None:
    with pytest.raises(DataError, match="doesn't know: c"):
        TASK.make_data(tables(["a", "c"]), spec={"labels": ["a", "b"], "multi_label": False})


def test_only_classifiers_have_labels() -> None:
    assert model_labels({"architectures": ["BertModel"], "id2label": {"0": "a"}}, "ForSequenceClassification") is None
    assert model_labels(config("a", "b"), "ForSequenceClassification") == ["a", "b"]


def test_a_matching_head_is_trained_and_another_is_fresh(make_tiny_classifier: Callable[..., Path]) -> None:
    folder = make_tiny_classifier(labels=("a", "b"))
    settings = json.loads((folder / "config.json").read_text())
    same = TASK.load_model(folder, TASK.make_data(tables(["a", "b"]), config=settings), max_length=None, seed=0)
    other = TASK.load_model(folder, TASK.make_data(tables(["x", "y"]), config=settings), max_length=16, seed=0)
    assert same.trained and not other.trained
    assert (same.spec["max_length"], other.spec["max_length"]) == (128, 16)
    assert other.model.config.id2label == {0: "x", 1: "y"}


@pytest.mark.parametrize(("key", "value", "how"), [("intermediate_size", 48, "is"), ("num_hidden_layers", 3, "miss")])
def test_an_encoder_that_does_not_fit_its_config_is_refused(
    make_tiny_classifier: Callable[..., Path], key: str, value: int, how: str
) -> None:
    folder = make_tiny_classifier(labels=("a", "b"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(
        ModelError, match=rf"weights of the encoder in .* don't fit its config.json: bert\.encoder.*{how}"
    ):
        TASK.load_model(folder, TASK.make_data(tables(["a", "b"])), max_length=None, seed=0)


def test_a_missing_pooler_is_made_fresh(make_tiny_classifier: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_classifier(labels=("a", "b"))
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key and "classifier" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert not TASK.load_model(folder, TASK.make_data(tables(["a", "b"])), max_length=None, seed=0).trained


def test_a_fresh_head_comes_from_the_seed(make_tiny_classifier: Callable[..., Path]) -> None:
    folder = make_tiny_classifier(labels=("a", "b"))
    data = TASK.make_data(tables(["x", "y", "z"]))
    heads = [TASK.load_model(folder, data, max_length=None, seed=s).model.classifier.weight for s in (1, 1, 2)]
    assert bool((heads[0] == heads[1]).all())
    assert not bool((heads[0] == heads[2]).all())


def test_single_label_heads_are_not_taken_for_multi_label_ones(make_tiny_classifier: Callable[..., Path]) -> None:
    folder = make_tiny_classifier(labels=("a", "b"))
    settings = json.loads((folder / "config.json").read_text())
    data = TASK.make_data(tables([["a"], ["a", "b"]]), config=settings)
    assert not TASK.load_model(folder, data, max_length=None, seed=0).trained


def test_a_longer_max_length_than_the_model_takes_is_refused(tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match="max_length is 129, but this model takes 128"):
        TASK.load_model(tiny_classifier_dir, TASK.make_data(tables(["a", "b"])), max_length=129, seed=0)


def test_changes_against_itself_are_none() -> None:
    data = TASK.make_data(tables(["a", "b"] * 60))
    outputs = np.random.default_rng(0).normal(size=(120, 2)).astype(np.float32)
    changes = TASK.changes(outputs, outputs, data.test, data.spec)
    assert changes.metrics["agreement"] == 1
    assert changes.metrics["negative_flips"] == changes.metrics["positive_flips"] == 0
    assert changes.metrics["worst_slice_delta"] == 0
    assert changes.tables["broken_rows"] == []


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "mcc"])
def test_the_difference_of_a_worse_model_is_negative_with_its_interval_around_it(metric: str) -> None:
    data = TASK.make_data(tables(["a", "b"] * 100))
    right = np.eye(2)[data.test.references].astype(np.float32)
    worse = right.copy()
    worse[:40] = worse[:40, ::-1]
    difference = TASK.difference(metric, right, worse, data.test.references, data.spec, seed=0)
    assert difference.lo < difference.value < 0
    assert difference.value == pytest.approx({"accuracy": -0.2, "f1_macro": -0.2, "mcc": -0.4}[metric], abs=1e-6)


def test_a_fresh_head_depends_on_the_seed_and_leaves_torchs_randomness_alone(
    make_tiny_classifier: Callable[..., Path],
) -> None:
    import torch

    directory = make_tiny_classifier(labels=("x", "y", "z"))
    data = TASK.make_data(tables(["a", "b", "a", "b"]))
    before = torch.get_rng_state()
    heads = [
        TASK.load_model(directory, data, max_length=None, seed=seed).model.classifier.weight.detach().clone()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("metric", ["f1_macro", "mcc"])
def test_few_rows_on_which_both_agree_are_not_enough_to_certify(metric: str) -> None:
    """The bootstrap shows no spread when no answer differs; two rows of a class still prove nothing."""
    data = TASK.make_data(tables(["a"] * 22 + ["b"] * 2))
    outputs = np.eye(2)[data.test.references].astype(np.float32)
    difference = TASK.difference(metric, outputs, outputs, data.test.references, data.spec, seed=0)
    assert difference.value == 0
    assert difference.lo < -0.1


def test_many_rows_on_which_both_agree_are_enough_to_certify() -> None:
    data = TASK.make_data(tables(["a"] * 1500 + ["b"] * 1500))
    outputs = np.eye(2)[data.test.references].astype(np.float32)
    difference = TASK.difference("f1_macro", outputs, outputs, data.test.references, data.spec, seed=0)
    assert -0.01 < difference.lo < 0


def test_few_positives_of_multi_label_data_are_not_enough_to_certify() -> None:
    data = TASK.make_data(tables([["a"], ["b"], ["a", "b"], []] * 6))
    outputs = (data.test.references * 2 - 1).astype(np.float32)
    for metric in ("f1_macro", "f1_micro"):
        assert TASK.difference(metric, outputs, outputs, data.test.references, data.spec, seed=0).lo < -0.03


def test_a_max_length_without_room_for_text_is_refused(tiny_classifier_dir: Path) -> None:
    with pytest.raises(ModelError, match="leaves no room for text"):
        TASK.load_model(tiny_classifier_dir, TASK.make_data(tables(["a", "b"])), max_length=2, seed=0)


@pytest.mark.parametrize("metric", TASK.judged_by({"multi_label": False}))
def test_a_metric_of_epochs_is_the_one_of_the_report(metric: str) -> None:
    data = TASK.make_data(tables(["a", "b", "c"] * 20))
    outputs = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    fast = TASK.judge(metric, outputs, data.test.references, data.spec)
    assert fast == pytest.approx(TASK.quality(outputs, data.test.references, data.spec)[metric])
