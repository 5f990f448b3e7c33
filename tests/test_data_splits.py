"""Which rows go where: files, folders, saved data sets, and cutting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlflow_slim.data import read_tables
from mlflow_slim.data.splitting import cut
from mlflow_slim.errors import DataError, InputNotFound


def lines(path: Path, count: int, start: int = 0, labels: tuple[Any, ...] = ("a", "b")) -> Path:
    records = [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(start, start + count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def sizes(source: Any, **options: Any) -> tuple[int, int, int]:
    tables = read_tables(str(source), **options)
    return len(tables.train), len(tables.validation), len(tables.test)


def test_one_file_is_cut_80_10_10_in_each_class(tmp_path):
    tables = read_tables(str(lines(tmp_path / "a.jsonl", 200)))
    assert tables.report["label_counts"] == {
        "train": {"a": 80, "b": 80},
        "validation": {"a": 10, "b": 10},
        "test": {"a": 10, "b": 10},
    }
    assert "stratified by label" in tables.report["made"]["test"]


def test_a_folder_without_validation_has_it_cut_from_train(tmp_path):
    lines(tmp_path / "train.jsonl", 100)
    lines(tmp_path / "test.jsonl", 30, 1000)
    tables = read_tables(str(tmp_path))
    assert (len(tables.train), len(tables.validation), len(tables.test)) == (90, 10, 30)
    assert tables.report["made"]["test"] == "as given" and "validation 10%" in tables.report["made"]["validation"]


def test_a_folder_without_test_has_it_cut_from_train(tmp_path):
    lines(tmp_path / "train.jsonl", 100)
    lines(tmp_path / "dev.jsonl", 20, 1000)
    assert sizes(tmp_path) == (90, 20, 10)


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "validation_1", "dev-set", "Val"])
def test_usual_names_of_validation_files_are_known(tmp_path, name):
    lines(tmp_path / "train-data.jsonl", 50)
    lines(tmp_path / f"{name}.jsonl", 10, 1000)
    lines(tmp_path / "testing.jsonl", 12, 2000)
    assert sizes(tmp_path) == (50, 10, 12)


def test_values_csv_is_no_validation_file(tmp_path):
    lines(tmp_path / "train.jsonl", 50)
    lines(tmp_path / "values.jsonl", 10, 1000)
    tables = read_tables(str(tmp_path))
    assert len(tables.validation) == 6 and "files not read: values.jsonl" in tables.report["notes"]


def test_numbered_shards_are_one_split_and_a_lost_shard_is_noticed(tmp_path):
    lines(tmp_path / "data/train-00000-of-00002.jsonl", 30)
    second = lines(tmp_path / "data/train-00001-of-00002.jsonl", 30, 30)
    assert sum(sizes(tmp_path)) == 60
    second.rename(tmp_path / "data/train-00001-of-00003.jsonl")
    with pytest.raises(DataError, match="2 of the 3 shards of train"):
        read_tables(str(tmp_path))


def test_two_files_for_one_split_are_not_chosen_between(tmp_path):
    lines(tmp_path / "train_old.jsonl", 30)
    lines(tmp_path / "train_new.jsonl", 30)
    with pytest.raises(
        DataError, match=r"several files for train: train_new.jsonl, train_old.jsonl. Say which with train_split"
    ):
        read_tables(str(tmp_path))
    assert sum(sizes(tmp_path, train_split="train_new.jsonl")) == 30
    assert sum(sizes(tmp_path, train_split="train_old")) == 30


def test_a_folder_without_train_says_what_it_has(tmp_path):
    lines(tmp_path / "one.jsonl", 30)
    assert sum(sizes(tmp_path)) == 30  # a single file can only be the data
    lines(tmp_path / "two.jsonl", 30)
    with pytest.raises(
        InputNotFound, match=r"no file whose name begins with train \(data files found: one.jsonl, two.jsonl\)"
    ):
        read_tables(str(tmp_path))


def test_one_file_for_each_split(tmp_path):
    a, b, c = (lines(tmp_path / f"{n}.jsonl", k, s) for n, k, s in (("x", 40, 0), ("y", 10, 100), ("z", 12, 200)))
    assert sizes("", train_split=str(a), validation_split=str(b), test_split=str(c)) == (40, 10, 12)
    assert sizes(a, validation_split="y.jsonl", test_split="z.jsonl") == (40, 10, 12)
    assert sizes(a, test_split=str(c)) == (36, 4, 12)
    assert sizes(a, train_split="train", validation_split="validation", test_split="test") == (32, 4, 4)


def test_a_split_file_that_is_missing_is_named(tmp_path):
    a = lines(tmp_path / "x.jsonl", 40)
    with pytest.raises(InputNotFound, match=r"test_split='y.jsonl': there is no file .*y.jsonl"):
        read_tables(str(a), test_split="y.jsonl")
    with pytest.raises(DataError, match="validation_split='dev' is not a file"):
        read_tables(str(a), validation_split="dev")


def test_saved_datasets_give_class_names_and_their_own_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def make(count: int, start: int, label: Any = None) -> Any:
        values = [i % 2 if label is None else label for i in range(count)]
        return datasets.Dataset.from_dict({"text": [f"t{start + i}" for i in range(count)], "label": values}, features)

    whole = datasets.DatasetDict(train=make(60, 0), dev=make(10, 100), test=make(12, 200, -1), extra=make(3, 300))
    whole.save_to_disk(str(tmp_path / "dict"))
    tables = read_tables(str(tmp_path / "dict"))
    assert (len(tables.train), len(tables.validation), len(tables.test)) == (54, 10, 6)
    assert set(tables.train["label"]) == {"neg", "pos"}
    assert any("the test split has no label in any of its 12 rows" in note for note in tables.report["notes"])
    assert "splits not read: extra" in tables.report["notes"]
    assert len(read_tables(str(tmp_path / "dict"), test_split="extra").test) == 3
    with pytest.raises(DataError, match="test: 12 with no label"):
        read_tables(str(tmp_path / "dict"), test_split="test")
    with pytest.raises(DataError, match=r"test_split='tset' is neither a split .* Did you mean 'test'"):
        read_tables(str(tmp_path / "dict"), test_split="tset")

    make(50, 0).select(range(40)).save_to_disk(str(tmp_path / "one"))
    assert sizes(tmp_path / "one") == (32, 4, 4)
    make(50, 0).to_parquet(str(tmp_path / "a.parquet"))
    assert set(read_tables(str(tmp_path / "a.parquet")).train["label"]) == {"neg", "pos"}


def test_a_damaged_saved_dataset_is_a_data_error(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a whole folder of datasets.save_to_disk"):
        read_tables(str(tmp_path))


def test_too_few_rows_say_how_many_are_needed(tmp_path):
    with pytest.raises(DataError, match=r"has 7 usable rows .* needs at least 10"):
        read_tables(str(lines(tmp_path / "a.jsonl", 7)))


def test_rare_classes_stay_in_train_and_no_label_is_unseen(tmp_path):
    path = lines(tmp_path / "a.jsonl", 60)
    path.write_text(path.read_text() + "\n" + json.dumps({"text": "once", "label": "rare"}))
    tables = read_tables(str(path))
    assert tables.report["label_counts"]["train"]["rare"] == 1
    assert "a class has fewer than 3 rows" in tables.report["made"]["train"]
    assert len(tables.test) == len(tables.validation) == 6


def test_equal_inputs_are_never_cut_apart():
    keys = [f"k{i // 4}" for i in range(200)]
    split, _ = cut(keys, ["a", "b"] * 100, {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=0, what="rows")
    sides = [{keys[i] for i in indices} for indices in split.values()]
    assert sorted(i for indices in split.values() for i in indices) == list(range(200))
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_every_label_of_multi_label_rows_is_in_train():
    labels = [[f"l{i}"] if i < 10 else ["l0", f"l{i % 10}"] for i in range(100)]
    split, how = cut(range(100), labels, {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3, what="rows")
    assert {x for i in split["train"] for x in labels[i]} == {f"l{i}" for i in range(10)}
    assert [len(split[n]) for n in ("train", "validation", "test")] == [80, 10, 10] and "lists" in how


def test_more_labels_than_rows_can_carry_is_an_error_with_a_number():
    with pytest.raises(DataError, match=r"nothing is left for validation and test; cutting needs at least 22"):
        cut(
            range(12), [f"l{i}" for i in range(12)], {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=0, what="rows"
        )
