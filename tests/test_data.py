"""Rows in, three clean tables out: formats, columns, labels, bad rows, leaks."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_slim.data import Tables, digest_rows, read_tables
from mlflow_slim.errors import DataError, InputNotFound


def rows(count: int = 60, classes: int = 2) -> list[dict[str, Any]]:
    return [{"text": f'row {i}, said "it"; a | b', "label": i % classes, "id": i} for i in range(count)]


def write(path: Path, records: list[dict[str, Any]], separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(records)
    return path


def membership(tables: Tables) -> dict[str, set[str]]:
    return {name: set(getattr(tables, name)["text"]) for name in ("train", "validation", "test")}


def test_demo_has_three_disjoint_splits_of_sixteen_balanced_classes():
    tables = read_tables("demo")
    assert (len(tables.train), len(tables.validation), len(tables.test)) == (4000, 800, 1600)
    assert set(tables.report["label_counts"]["test"].values()) == {100}
    assert set(tables.report["inputs_shared_between_splits"].values()) == {0}


def test_the_same_rows_come_out_of_every_format(tmp_path):
    records = rows()
    frame = pd.DataFrame(records)
    write(tmp_path / "a.csv", records)
    write(tmp_path / "b.tsv", records, "\t")
    (tmp_path / "c.json").write_text(json.dumps(records))
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    frame.to_parquet(tmp_path / "e.parquet")
    frame.to_json(tmp_path / "f.json")
    (tmp_path / "g.json").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "h.json").write_text(json.dumps({"data": records, "version": 1}))
    (tmp_path / "i.json").write_text(json.dumps({k: [r[k] for r in records] for k in records[0]}))
    for name in ("a.csv", "d.jsonl", "e.parquet"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    digests = {p.name: digest_rows(read_tables(str(p)).train) for p in sorted(tmp_path.iterdir())}
    assert len(digests) == 12
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_separators_and_byte_order_marks_are_recognised(tmp_path, separator, encoding):
    records = [{"Bewertung": f"gut, schön; {i} | na\tja\nzweite Zeile", "Sterne": i % 5} for i in range(50)]
    tables = read_tables(str(write(tmp_path / "a.csv", records, separator, encoding)), text="Bewertung", label="Sterne")
    found = pd.concat([tables.train, tables.validation, tables.test])
    assert set(found["text"]) == {r["Bewertung"] for r in records}
    assert set(found["label"].tolist()) == {0, 1, 2, 3, 4}


def test_a_first_line_that_names_the_separator_is_not_a_header(tmp_path):
    path = write(tmp_path / "a.csv", rows(), ";")
    path.write_text("sep=;\n" + path.read_text())
    assert len(read_tables(str(path)).train) == 48


def test_bare_quotes_in_a_tsv_swallow_no_lines(tmp_path):
    lines = ["text\tlabel"]
    for i in range(40):
        lines.append(
            f'"opened {i}\t{i % 2}' if i % 4 == 0 else f'closed" {i}\t{i % 2}' if i % 4 == 2 else f"x{i}\t{i % 2}"
        )
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    tables = read_tables(str(tmp_path / "a.tsv"))
    assert sum(tables.report["rows"].values()) == 40
    assert "quotes were read as plain characters" in tables.report["notes"]


def test_quotes_escaped_by_a_backslash_are_read(tmp_path):
    lines = ["text,label", *(f'"he said \\"yes, {i}\\"",{i % 2}' for i in range(40))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    tables = read_tables(str(tmp_path / "a.csv"))
    assert 'he said "yes, 0"' in set().union(*membership(tables).values())


def test_other_encodings_are_refused_with_the_line(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nok,1\nschön,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text: byte 0xf6 at line 3.*iconv"):
        read_tables(str(tmp_path / "a.csv"))


def test_long_texts_keep_every_word(tmp_path):
    records = [{"text": " ".join(f"w{i}_{j}" for j in range(30_000)), "label": i % 2} for i in range(12)]
    tables = read_tables(str(write(tmp_path / "a.csv", records)))
    assert len(tables.test["text"][0].split()) == 30_000
    assert csv.field_size_limit() == 131_072


# -- columns


def test_a_wrong_column_names_the_columns_found_and_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", [{"review": "a", "stars": 1, "id": 2}])
    with pytest.raises(
        DataError, match=r"no column 'reviw' \(text=reviw\). Did you mean 'review'\?.*'review', 'stars', 'id'"
    ):
        read_tables(str(path), text="reviw", label="stars")


def test_case_and_spaces_in_a_column_name_are_pointed_out(tmp_path):
    path = write(tmp_path / "a.csv", [{"Review Text": "a", "label": 1}])
    with pytest.raises(DataError, match=r"Did you mean 'Review Text'\? Case and spaces count"):
        read_tables(str(path), text="review text")


def test_both_wrong_columns_are_named_at_once(tmp_path):
    path = write(tmp_path / "a.csv", [{"a": "x", "b": 1}])
    with pytest.raises(DataError, match=r"no column 'text'.*no column 'label'.*add one"):
        read_tables(str(path))


def test_other_columns_are_kept_and_one_named_like_ours_gets_a_name_of_its_own(tmp_path):
    records = [{"review": f"r{i}", "stars": i % 2, "text": f"t{i}", "price": i * 0.5} for i in range(30)]
    pd.DataFrame(records).to_parquet(tmp_path / "a.parquet")
    train = read_tables(str(tmp_path / "a.parquet"), text="review", label="stars").train
    assert list(train.columns) == ["text", "label", "text_original", "price"]
    assert train["text"].str.startswith("r").all() and train["text_original"].str.startswith("t").all()
    assert train["price"].dtype == "float64" and train["label"].dtype == "int64"


def test_one_column_can_not_be_both_text_and_label():
    with pytest.raises(DataError, match="text and label both name the column 'text'"):
        read_tables("demo", label="text")


def test_pairs_keep_both_texts_and_count_as_one_input(tmp_path):
    records = [{"q": f"question {i // 2}", "a": f"answer {i}", "ok": bool(i % 2)} for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    tables = read_tables(str(tmp_path / "a.json"), text="q", text_pair="a", label="ok")
    assert list(tables.train.columns) == ["text", "text_pair", "label"]
    assert tables.train["label"].dtype == "bool"
    assert sum(tables.report["rows"].values()) == 60


def test_lists_in_the_text_column_are_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": ["a", "b"], "label": 1}] * 20))
    with pytest.raises(DataError, match="Column 'text' holds list values, not text"):
        read_tables(str(tmp_path / "a.json"))


# -- labels


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1], int),
        ([True, False], bool),
        (["a/b c", "d"], str),
        ([1.5, 2.0], str),
        (["01", "02"], str),
        ([-1, 1], int),
    ],
)
def test_labels_are_of_one_kind_in_csv_and_parquet(tmp_path, values, kind):
    records = [{"text": f"t{i}", "label": values[i % 2]} for i in range(40)]
    pd.DataFrame(records).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(records).to_csv(tmp_path / "a.csv", index=False)
    from_csv, from_parquet = (read_tables(str(tmp_path / n)).train["label"].tolist() for n in ("a.csv", "a.parquet"))
    assert from_csv == from_parquet
    assert {type(x) for x in from_csv} == {kind}


def test_ints_that_pandas_made_floats_for_a_gap_are_ints_again(tmp_path):
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(40)], "label": [i % 3 for i in range(39)] + [None]})
    assert frame["label"].dtype == "float64"
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.parquet", "a.csv"):
        tables = read_tables(str(tmp_path / name), on_bad_rows="drop")
        assert set(tables.train["label"].tolist()) == {0, 1, 2}
        assert tables.train["label"].dtype == "int64"
        assert tables.report["dropped"] == {"all": {"no label in 'label'": 1}}


def test_none_is_a_class_among_words_and_a_gap_among_numbers(tmp_path):
    words = [{"text": f"t{i}", "label": ["None", "for"][i % 2]} for i in range(40)]
    assert set(read_tables(str(write(tmp_path / "a.csv", words))).train["label"]) == {"None", "for"}
    numbers = [{"text": f"t{i}", "label": [0, 1, "None"][i % 3]} for i in range(60)]
    tables = read_tables(str(write(tmp_path / "b.csv", numbers)), on_bad_rows="drop")
    assert set(tables.train["label"].tolist()) == {0, 1} and tables.report["dropped"]["all"] == {
        "no label in 'label'": 20
    }


def test_numbers_in_one_split_and_their_text_in_another_are_the_same_labels(tmp_path):
    write(tmp_path / "train.csv", rows(40))
    (tmp_path / "test.jsonl").write_text(
        "\n".join(json.dumps({"text": f"t{i}", "label": str(i % 2)}) for i in range(9))
    )
    tables = read_tables(str(tmp_path))
    assert set(tables.train["label"].tolist()) == set(tables.test["label"].tolist()) == {"0", "1"}


def test_outer_whitespace_of_labels_is_stripped_and_reported(tmp_path):
    records = [{"text": f"t{i}", "label": ["pos ", "neg", "pos"][i % 3]} for i in range(60)]
    tables = read_tables(str(write(tmp_path / "a.csv", records)))
    assert set(tables.train["label"]) == {"pos", "neg"}
    assert "labels with outer whitespace, stripped: 20" in tables.report["notes"]


def test_several_labels_a_row_from_lists_separators_and_lists_kept_as_text(tmp_path):
    names = [["a"], ["b", "c"], [], ["a", "c"]]
    records = [{"text": f"t{i}", "label": names[i % 4]} for i in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    pd.DataFrame(records).to_parquet(tmp_path / "b.parquet")
    pd.DataFrame(records).to_csv(tmp_path / "c.csv", index=False)
    write(tmp_path / "d.csv", [{**r, "label": "|".join(r["label"]) or "[]"} for r in records])
    found = [
        read_tables(str(tmp_path / n), label_separator=s)
        for n, s in (("a.json", None), ("b.parquet", None), ("c.csv", None), ("d.csv", "|"))
    ]
    assert {digest_rows(t.test) for t in found} == {digest_rows(found[0].test)}
    assert ["b", "c"] in found[0].train["label"].tolist() and [] in found[0].train["label"].tolist()


def test_lists_and_single_labels_do_not_mix(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "label": ["x"]}, {"text": "b", "label": "x"}]))
    with pytest.raises(DataError, match="lists in 1 rows and single labels in 1"):
        read_tables(str(tmp_path / "a.json"))


def test_one_class_only_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": f"t{i}", "label": "same"} for i in range(30)])
    with pytest.raises(DataError, match=r"'label' has one class only.* have 'same'"):
        read_tables(str(path))


def test_a_column_of_ids_is_not_taken_for_labels(tmp_path):
    path = write(tmp_path / "a.csv", rows(100))
    with pytest.raises(DataError, match="'id' has 100 different values in the 100 rows"):
        read_tables(str(path), label="id")


# -- bad rows


def bad_rows(path: Path) -> Path:
    records: list[dict[str, Any]] = [{"text": f"t{i}", "label": ["a", "b"][i % 2]} for i in range(40)]
    records[2]["text"], records[5]["text"], records[7]["label"] = "", "  \t", None
    path.write_text(json.dumps(records))
    return path


def test_rows_without_text_or_label_are_refused_with_counts_and_row_numbers(tmp_path):
    with pytest.raises(DataError, match=r"3 rows of .* can't be used") as caught:
        read_tables(str(bad_rows(tmp_path / "a.json")))
    assert "all: 2 with no text in 'text' (rows 3, 6); all: 1 with no label in 'label' (row 8)" in str(caught.value)


def test_rows_without_text_or_label_are_dropped_and_counted_when_asked(tmp_path):
    tables = read_tables(str(bad_rows(tmp_path / "a.json")), on_bad_rows="drop")
    assert tables.report["dropped"] == {"all": {"no text in 'text'": 2, "no label in 'label'": 1}}
    assert tables.report["rows_read"] == {"all": 40} and sum(tables.report["rows"].values()) == 37


def test_lines_with_another_number_of_fields_are_bad_rows(tmp_path):
    path = write(tmp_path / "a.csv", rows(40))
    path.write_text(path.read_text() + "one,two,three,four\nlonely\n")
    with pytest.raises(DataError, match=r"2 with another number of fields than the 3 of the header \(rows 41, 42\)"):
        read_tables(str(path))
    assert sum(read_tables(str(path), on_bad_rows="drop").report["rows"].values()) == 40


def test_labels_that_train_lacks_are_refused_by_name_or_dropped(tmp_path):
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", [{"text": f"x{i}", "label": [0, 1, 7][i % 3]} for i in range(12)])
    with pytest.raises(
        DataError, match=r"test: 4 with a label in 'label' that train has in no row: 7 \(rows 3, 6, 9, 12\)"
    ):
        read_tables(str(tmp_path))
    tables = read_tables(str(tmp_path), on_bad_rows="drop")
    assert set(tables.test["label"].tolist()) == {0, 1} and len(tables.test) == 8
    assert tables.report["dropped"]["test"] == {"label not in train": 4}


def test_lone_surrogates_are_bad_rows(tmp_path):
    records = [{"text": f"t{i}", "label": i % 2} for i in range(30)]
    records[0]["text"] = "\ud800 broken"
    (tmp_path / "a.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match="isn't valid Unicode"):
        read_tables(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\xef\xbb\xbf\n", "is empty"),
        ("a.csv", b"text,label\n", "columns but no rows"),
        ("a.json", b"[]", "no column 'text'"),
        ("a.json", b"{not json", "is not JSON"),
        ("a.json", b"3", "holds no table"),
        ("a.json", b"[" * 100_000, "nested too deeply|is not JSON"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{broken\n', "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]", "row 1 is int, not an object"),
        ("a.parquet", b"PAR1 not really", "not a Parquet file"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00broken", "damaged gzip"),
        ("a.xlsx", b"PK", "ending that isn't known"),
    ],
)
def test_unreadable_files_are_named_with_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_tables(str(tmp_path / name))
    assert name in str(caught.value)


# -- leaks


def test_inputs_of_test_are_taken_out_of_train_and_counted(tmp_path):
    write(
        tmp_path / "train.csv",
        [*rows(40), {"text": "shared", "label": 0, "id": 1}, {"text": "val", "label": 1, "id": 1}],
    )
    write(tmp_path / "validation.csv", [{"text": t, "label": 1, "id": 0} for t in ("val", "shared", "own")])
    write(tmp_path / "test.csv", [{"text": t, "label": 1, "id": 0} for t in ("shared", "other ")])
    tables = read_tables(str(tmp_path))
    assert tables.report["inputs_shared_between_splits"] == {
        "train and test": 1,
        "train and validation": 2,
        "validation and test": 1,
    }
    assert tables.report["removed_as_also_in_a_later_split"] == {"train": 2, "validation": 1}
    assert tables.report["inputs_with_contradictory_labels"] == 1
    assert len(tables.train) == 40 and list(tables.validation["text"]) == ["val", "own"] and len(tables.test) == 2


def test_the_same_file_as_train_and_test_is_refused(tmp_path):
    path = str(write(tmp_path / "a.csv", rows(40)))
    with pytest.raises(DataError, match=r"Every row of train .* is also in"):
        read_tables(path, test_split=path, validation_split=path)


def test_digest_depends_on_inputs_labels_and_their_order_only():
    frame = pd.DataFrame({"text": ["a", "b"], "label": [0, 1], "x": [1, 2]})
    assert digest_rows(frame) == digest_rows(frame.drop(columns="x").astype({"text": object}))
    assert digest_rows(frame) != digest_rows(frame[::-1])
    assert digest_rows(frame) != digest_rows(frame.assign(label=["0", "1"]))
    assert len(digest_rows(frame)) == 64


def test_a_split_does_not_change_with_the_order_of_the_rows(tmp_path):
    records = rows(100, 3)
    (tmp_path / "a.json").write_text(json.dumps(records))
    random.Random(1).shuffle(records)
    (tmp_path / "b.json").write_text(json.dumps(records))
    a, b, c = (read_tables(str(tmp_path / n), seed=s) for n, s in (("a.json", 0), ("b.json", 0), ("a.json", 1)))
    assert membership(a) == membership(b) != membership(c)


def test_missing_local_files_fail_at_once_naming_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").touch()
    for source, hint in (
        ("./revews.csv", "Did you mean 'reviews.csv'"),
        ("nothing.parquet", str(tmp_path)),
        ("/x/y/z", "/x/y/z"),
    ):
        with pytest.raises(InputNotFound, match=hint):
            read_tables(source)


def test_a_hub_data_set_is_not_asked_for_when_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFound, match=r"'owner/reviews' \(revision v1\): HF_HUB_OFFLINE is set") as caught:
        read_tables("owner/reviews@v1")
    assert str(tmp_path / "owner") in str(caught.value)


def test_what_the_reading_noticed_is_told_to_people(tmp_path):
    from mlflow_slim.inputs import _describe

    path = tmp_path / "reviews.csv"
    path.write_text("text;label\n" + "".join(f"review {i};{'ab'[i % 2]}\n" for i in range(40)))
    assert any("separator: semicolon" in line for line in _describe(read_tables(str(path))))
