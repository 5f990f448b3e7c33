"""What is copied into a served model: encoding, order, answers, threads, and the checks before opening a file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_tokenizer

from mlflow_slim import manifest, runtime
from mlflow_slim.runtime import Bundle, BundleError, Predictor, pyfunc, read_bundle
from mlflow_slim.runtime.encoder import TokenizerFile
from mlflow_slim.runtime.external_data import check_external_data, external_locations
from mlflow_slim.runtime.tasks import find
from mlflow_slim.runtime.tasks.text_classification import answers, check_rows

INPUTS = {
    "names": ["input_ids", "attention_mask", "token_type_ids"],
    "pad_token": "[PAD]",
    "pad_id": 0,
    "pad_type_id": 0,
    "padding_side": "right",
    "truncation_side": "right",
}
SINGLE = {"labels": ["bad", "good"], "multi_label": False, "pair": False, "max_length": 16}


class CountingEngine:
    """Answers with the number of real tokens, and remembers the shapes it saw."""

    settings: dict[str, object] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, batch):
        self.shapes.append(batch["input_ids"].shape)
        return batch["attention_mask"].sum(axis=1, keepdims=True).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer().backend_tokenizer.save(str(path))
    return path


def predictor_with(engine, tokenizer_file):
    spec = {**SINGLE, "max_length": 64}
    bundle = Bundle(tokenizer_file.parent, "onnxruntime", "text-classification", spec, INPUTS, {})
    return Predictor(bundle, TokenizerFile(tokenizer_file, INPUTS, max_length=64), engine, 1)


def test_the_runtime_imports_only_what_a_served_model_has():
    folder = Path(runtime.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if top in (
                    "torch",
                    "transformers",
                    "onnxruntime",
                    "openvino",
                    "safetensors",
                    "torchao",
                    "jinja2",
                    "PIL",
                ):
                    assert id(node) in inside, f"{path.name} imports {top} at its top"
                found.add(top)
    assert found - set(sys.stdlib_module_names) == {
        "PIL",
        "jinja2",
        "numpy",
        "onnxruntime",
        "openvino",
        "pandas",
        "safetensors",
        "tokenizers",
        "torch",
        "torchao",
        "transformers",
    }


def test_importing_the_runtime_brings_neither_torch_nor_transformers():
    code = (
        "import sys, mlflow_slim.runtime.pyfunc; print(sorted({'torch', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("pair", [False, True])
def test_encoding_equals_that_of_the_transformers_tokenizer(tokenizer_file, pair):
    tokenizer = make_tokenizer()
    texts = ["a very good film", "bad", "this was not a great story " * 9, "Zürich? no!"]
    rows = [(text, texts[-number - 1]) for number, text in enumerate(texts)] if pair else texts
    wanted = tokenizer(
        texts, texts[::-1] if pair else None, truncation=True, max_length=16, padding="longest", return_tensors="np"
    )
    found = TokenizerFile(tokenizer_file, INPUTS, max_length=16)(rows)
    assert set(found) == set(wanted)
    for name, array in found.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, wanted[name])
    assert found["input_ids"].shape[1] == 16


@pytest.mark.parametrize("side", ["right", "left"])
def test_very_long_pairs_are_cut_to_the_same_tokens_without_building_every_part(tokenizer_file, side):
    tokenizer = make_tokenizer()
    tokenizer.truncation_side = side
    encode = TokenizerFile(tokenizer_file, {**INPUTS, "truncation_side": side}, max_length=16)
    long, longer = "good film very bad story " * 15, "the awful book was slow " * 16
    for pair in ((long, longer), (longer, long), (long, "bad"), ("bad", long)):
        wanted = tokenizer(*pair, truncation=True, max_length=16)["input_ids"]
        assert encode([pair])["input_ids"][0].tolist() == wanted
    assert encode([("good " * 20_000, "bad " * 20_000)])["input_ids"].shape == (1, 16)


def test_padding_side_is_taken_from_the_bundle(tokenizer_file):
    left = TokenizerFile(tokenizer_file, {**INPUTS, "padding_side": "left"}, max_length=16)(["good", "a good film"])
    assert left["attention_mask"][0].tolist() == [0, 0, 1, 1, 1]


def test_predictions_come_in_the_order_of_the_inputs_though_batches_are_sorted_by_length(tokenizer_file):
    engine = CountingEngine()
    predictor = predictor_with(engine, tokenizer_file)
    counts = [5, 1, 9, 3, 7, 2, 8]
    found = predictor.predict(["good " * count for count in counts], batch_size=2)
    assert found[:, 0].tolist() == [count + 2 for count in counts]
    assert engine.shapes == [(2, 4), (2, 7), (2, 10), (1, 11)]


def test_predicting_nothing_says_that_the_list_is_empty(tokenizer_file):
    predictor = predictor_with(CountingEngine(), tokenizer_file)
    with pytest.raises(ValueError, match="the list is empty"):
        predictor.predict([])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predictor.predict(["a"], batch_size=0)


def test_scores_are_a_softmax_and_the_best_label_comes_first():
    table = answers(np.array([[0.0, np.log(3.0)], [2.0, 2.0]], dtype=np.float32), SINGLE, {})
    assert table["label"] == ["good", "bad"]
    assert table["score"] == pytest.approx([0.75, 0.5])


def test_scores_of_extreme_logits_are_finite_and_warn_of_nothing():
    table = answers(np.array([[-200.0, 200.0]], dtype=np.float32), {**SINGLE, "multi_label": True}, {"top_k": 2})
    assert [table[rank][0]["score"] for rank in (0, 1)] == [1.0, pytest.approx(0.0)]


def test_multi_label_scores_are_sigmoids():
    table = answers(np.array([[0.0, np.log(3.0)]], dtype=np.float32), {**SINGLE, "multi_label": True}, {"top_k": 5})
    assert [table[0][0]["score"], table[1][0]["score"]] == pytest.approx([0.75, 0.5])
    assert [table[0][0]["label"], table[1][0]["label"]] == ["good", "bad"]


@pytest.mark.parametrize(("multi_label", "classes"), [(False, 3), (True, 3)])
def test_answers_equal_those_of_the_transformers_pipeline_class(multi_label, classes):
    from types import SimpleNamespace

    import torch
    from transformers import TextClassificationPipeline

    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, classes)).astype(np.float32) * 4
    labels = [f"l{number}" for number in range(classes)]
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    config = SimpleNamespace(problem_type=kind, num_labels=classes, id2label=dict(enumerate(labels)))
    pipe = SimpleNamespace(model=SimpleNamespace(config=config))
    spec = {"labels": labels, "multi_label": multi_label}
    best, ranked = answers(outputs, spec, {}), answers(outputs, spec, {"top_k": 2})
    for number, row in enumerate(outputs):
        wanted = {"logits": torch.from_numpy(row[None])}
        one = TextClassificationPipeline.postprocess(pipe, wanted)
        assert best["label"][number] == one["label"]
        assert best["score"][number] == pytest.approx(one["score"], abs=1e-6)
        two = TextClassificationPipeline.postprocess(pipe, wanted, top_k=2, _legacy=False)
        assert [ranked[rank][number]["label"] for rank in range(2)] == [answer["label"] for answer in two]


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_one_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k must be at least 1, got {top_k}"):
        answers(np.zeros((1, 2), dtype=np.float32), SINGLE, {"top_k": top_k})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "There are no rows"),
        (["good", None], "row 1 has no text"),
        (["good", float("nan")], "row 1 has no text"),
        (["good", "  "], "row 1 is an empty text"),
        ([7], "row 0 is a int, 7, not a text"),
        ([("a", "b")], "row 0 holds 2 texts; this model takes one text"),
        ([{"txt": "a"}], r"row 0 has unknown keys \['txt'\]"),
    ],
)
def test_a_bad_row_is_named_in_the_error(rows, message):
    with pytest.raises(ValueError, match=message):
        check_rows(rows, SINGLE)


def test_pairs_come_as_tuples_lists_or_dicts():
    pair = {**SINGLE, "pair": True}
    rows = [("a", "b"), ["a", "b"], {"text": "a", "text_pair": "b"}]
    assert check_rows(rows, pair) == [("a", "b")] * 3
    with pytest.raises(ValueError, match="row 0 holds 1 texts; this model takes a pair"):
        check_rows(["a"], pair)
    with pytest.raises(ValueError, match="row 0, text_pair, has no text"):
        check_rows([("a", None)], pair)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (pd.Series(["a", "b"]), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (pd.DataFrame({0: ["a", "b"]}), ["a", "b"]),
        (pd.DataFrame({"review": ["a"]}), ["a"]),
        (pd.DataFrame({"id": [1], "text": ["a"]}), [{"text": "a"}]),
        (pd.DataFrame({"text_pair": ["b"], "text": ["a"]}), [{"text": "a", "text_pair": "b"}]),
        (
            pd.DataFrame({"text": [["a", "c"]], "text_pair": [["b", "d"]]}),
            [{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": "d"}],
        ),
        ({"text": "a"}, [{"text": "a"}]),
        ([("a", "b")], [("a", "b")]),
    ],
)
def test_every_form_of_input_becomes_rows(data, rows):
    assert pyfunc.rows_of(data) == rows


def test_a_table_of_unknown_columns_is_refused():
    with pytest.raises(ValueError, match=r"The table has the columns a, b\. Send one column"):
        pyfunc.rows_of(pd.DataFrame({"a": ["x"], "b": ["y"]}))


def test_serving_threads_are_the_config_then_the_variable_then_all_cpus(monkeypatch):
    monkeypatch.delenv(pyfunc.THREADS_VARIABLE, raising=False)
    assert pyfunc.serving_threads({"threads": 0}) == pyfunc.available_cpus() >= 1
    monkeypatch.setenv(pyfunc.THREADS_VARIABLE, "3")
    assert pyfunc.serving_threads({"threads": 0}) == 3
    assert pyfunc.serving_threads({"threads": 2}) == 2
    monkeypatch.setenv(pyfunc.THREADS_VARIABLE, "many")
    with pytest.raises(ValueError, match="MLFLOW_SLIM_THREADS must be a whole number of threads, got 'many'"):
        pyfunc.serving_threads()


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"'mind-reading' can't be served\. Known: .*text-classification"):
        find("mind-reading")


def write_bundle(folder, **changes):
    content = {"format": 1, "backend": "onnxruntime", "task": "text-classification", "spec": SINGLE, "inputs": INPUTS}
    (folder / "slim.json").write_text(json.dumps({**content, **changes}))
    manifest.write(folder)


def test_a_bundle_of_a_newer_format_is_refused(tmp_path):
    write_bundle(tmp_path, format=2)
    with pytest.raises(BundleError, match="has format 2, this version reads 1"):
        read_bundle(tmp_path)


def test_every_kind_of_change_is_found_by_the_manifest(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(b"0123456789")
    write_bundle(tmp_path)
    assert manifest.verify(tmp_path) == []
    weights = tmp_path / "sub" / "weights"
    weights.write_bytes(b"0123456780")
    assert manifest.verify(tmp_path) == ["sub/weights has another sha256 than when it was written"]
    weights.write_bytes(b"012")
    assert manifest.verify(tmp_path) == ["sub/weights has 3 bytes, expected 10"]
    weights.unlink()
    assert manifest.verify(tmp_path) == ["sub/weights is missing"]
    weights.symlink_to(tmp_path / "slim.json")
    assert manifest.verify(tmp_path) == ["sub/weights is a link or not a plain file"]
    weights.unlink()
    weights.write_bytes(b"0123456789")
    (tmp_path / "extra").write_text("x")
    assert manifest.verify(tmp_path) == ["extra is not listed in manifest.json"]
    (tmp_path / "manifest.json").write_text("[]")
    assert "can't be read" in manifest.verify(tmp_path)[0]
    (tmp_path / "manifest.json").unlink()
    assert manifest.verify(tmp_path) == ["manifest.json is missing"]


def onnx_with_weights_at(folder, location):
    import onnx
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "8")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    deep = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=weights)],
        "branch",
        [],
        [helper.make_empty_tensor_value_info("c")],
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=deep, else_branch=deep)
    graph = helper.make_graph([node], "g", [helper.make_empty_tensor_value_info("x")], [])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_external_weights_are_found_inside_branches_of_the_graph(tmp_path):
    path = onnx_with_weights_at(tmp_path, "model.onnx.data")
    (tmp_path / "model.onnx.data").write_bytes(b"\0" * 8)
    assert external_locations(path) == {"model.onnx.data"}
    check_external_data(path)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "sub/../../secret", "link", "linked/secret", "hard"]
)
def test_external_weights_outside_the_folder_or_behind_links_are_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 8)
    (folder / "link").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "sub").mkdir()
    os.link(secret, folder / "hard")
    with pytest.raises(ValueError, match="refused"):
        check_external_data(onnx_with_weights_at(folder, location))


def test_a_file_that_is_no_onnx_is_named_as_such(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a sound ONNX file"):
        external_locations(path)
