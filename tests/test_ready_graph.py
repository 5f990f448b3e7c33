"""Graphs that other tools exported, through the recipe ``evaluate``: measured like any other, or refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)

import mlflow_slim as slim
from mlflow_slim.catalog import load_backend
from mlflow_slim.errors import InputNotFound, ModelError, UnsafeModelError
from mlflow_slim.ready_graph import adopt_graph, find_graph

onnx = pytest.importorskip("onnx")
TEXTS = ["good film", "a bad one, and a long one at that, which nobody should see", "x"]


@pytest.fixture(scope="module")
def folder(tiny_classifier_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As optimum writes it: graph, config and tokenizer, and no weights beside them."""
    import torch
    import transformers

    made = tmp_path_factory.mktemp("optimum") / "model"
    shutil.copytree(tiny_classifier_dir, made, ignore=shutil.ignore_patterns("*.safetensors"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_classifier_dir).eval()
    model.config.return_dict = False
    ids = torch.ones(2, 5, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own insides
        torch.onnx.export(
            model,
            (),
            str(made / "model.onnx"),
            kwargs=dict.fromkeys(names, ids),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return made


def adopt(graph: Path, directory: Path, **how: Any) -> Any:
    how = {"task": "text-classification", "pair": False, "max_length": None, **how}
    return adopt_graph(graph, str(graph), directory=directory, **how)


def test_a_folder_with_a_graph_is_measured_against_its_original(
    folder: Path,
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    store: Any,  # noqa: F811
) -> None:
    outcome = slim.run("evaluate", **options(folder, reviews, against=str(tiny_classifier_dir)))
    first, last = outcome.reports
    assert [point.exported.backend for point in outcome.points] == ["torch", "onnxruntime"]
    assert last.metrics["quality/agreement"] == 1
    assert last.metrics["quality/log_loss"] == pytest.approx(first.metrics["quality/log_loss"], rel=1e-3)
    assert "size/parameters_m" not in last.metrics
    assert "made elsewhere" in last.tags["slim.absent.size/parameters_m"]
    import mlflow

    loaded = mlflow.pyfunc.load_model(outcome.points[1].model_uri)
    assert set(loaded.predict(TEXTS)["label"]) <= {"negative", "positive"}


@pytest.mark.parametrize("where", ["file", "subfolder", "external", "openvino"])
def test_it_is_found_wherever_tools_put_it(where: str, folder: Path, tiny_classifier_dir: Path, tmp_path: Path) -> None:
    import numpy as np

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    graph = copy / "model.onnx"
    if where == "subfolder":  # as sentence-transformers and the hub's own exports
        (copy / "onnx").mkdir()
        graph = graph.rename(copy / "onnx" / "model_quantized.onnx")
    elif where == "external":
        model = onnx.load(str(graph))
        graph.unlink()
        onnx.save(model, str(graph), save_as_external_data=True, location="weights.bin")
    elif where == "openvino":
        openvino = pytest.importorskip("openvino")
        openvino.save_model(openvino.Core().read_model(str(graph)), str(copy / "openvino_model.xml"))
        graph.unlink()
        graph = copy / "openvino_model.xml"
    named = str(graph if where == "file" else copy)
    found = find_graph(named)
    assert found == graph
    exported = adopt(found, tmp_path / "out")
    answers = load_backend(exported.backend).load(exported.directory, threads=1).predict(TEXTS)
    original = load_backend("onnxruntime").load(adopt(folder / "model.onnx", tmp_path / "ref").directory, threads=1)
    np.testing.assert_allclose(answers, original.predict(TEXTS), atol=2e-3)
    assert exported.spec["labels"] == ["negative", "positive"]


def test_what_is_no_graph_of_others_is_left_to_others(folder: Path, tiny_classifier_dir: Path, tmp_path: Path) -> None:
    assert find_graph("demo") is None
    assert find_graph(str(tiny_classifier_dir)) is None
    assert find_graph("models:/x/1") is None
    both = tmp_path / "both"
    shutil.copytree(tiny_classifier_dir, both)
    shutil.copyfile(folder / "model.onnx", both / "model.onnx")
    assert find_graph(str(both)) is None, "with weights of its own it is an ordinary model"
    assert find_graph(str(both / "model.onnx")) is not None
    ours = adopt(folder / "model.onnx", tmp_path / "ours").directory
    assert find_graph(str(ours)) is None
    with pytest.raises(InputNotFound, match=r"gone\.onnx"):
        find_graph(str(tmp_path / "gone.onnx"))
    shutil.copytree(folder, tmp_path / "two")
    shutil.copyfile(folder / "model.onnx", tmp_path / "two" / "model_int8.onnx")
    with pytest.raises(ModelError, match=r"several graphs: model\.onnx, model_int8\.onnx"):
        find_graph(str(tmp_path / "two"))
    (tmp_path / "two" / "onnx").mkdir()
    for name in ("model.onnx", "model_int8.onnx"):
        (tmp_path / "two" / name).rename(tmp_path / "two" / "onnx" / name)
    with pytest.raises(ModelError) as found:
        find_graph(str(tmp_path / "two"))
    assert str(found.value).endswith(f"model={tmp_path / 'two' / 'onnx' / 'model.onnx'}")


def broken(folder: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if kind == "labels":
        config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    elif kind == "no labels":
        config.pop("id2label")
    elif kind == "odd labels":
        config["id2label"] = {"x": "a"}
    elif kind == "code":
        config["auto_map"] = {"AutoModel": "x--y.Z"}
    elif kind == "no config":
        (folder / "config.json").unlink()
        return
    elif kind == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
        (folder / "vocab.txt").unlink(missing_ok=True)
    elif kind == "garbage":
        (folder / "model.onnx").write_bytes(b"no graph at all" * 10)
    elif kind == "inputs":
        model = onnx.load(str(folder / "model.onnx"))
        for value in model.graph.input:
            if value.name == "attention_mask":
                value.name = "pixel_values"
        for node in model.graph.node:
            node.input[:] = ["pixel_values" if name == "attention_mask" else name for name in node.input]
        onnx.save(model, str(folder / "model.onnx"))
    elif kind == "outside":
        model = onnx.load(str(folder / "model.onnx"))
        onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="w.bin", size_threshold=64)
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../w.bin"
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "w.bin").rename(folder.parent / "w.bin")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("labels", ModelError, "names 3 labels"),
        ("no labels", ModelError, "no id2label"),
        ("odd labels", ModelError, "keys that are no numbers"),
        ("code", UnsafeModelError, "auto_map"),
        ("no config", ModelError, r"no config\.json"),
        ("no tokenizer", ModelError, "tokenizer"),
        ("garbage", (ModelError, UnsafeModelError), "can't open|not a sound ONNX file"),
        ("inputs", ModelError, "pixel_values"),
        ("outside", UnsafeModelError, "outside its folder"),
    ],
)
def test_what_cannot_be_used_is_named(kind: str, error: Any, message: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    broken(copy, kind)
    with pytest.raises(error, match=message):
        adopt(copy / "model.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_cannot_be_optimised_and_other_tasks_are_refused(
    folder: Path,
    reviews: Path,  # noqa: F811
    tmp_path: Path,
    store: Any,  # noqa: F811
) -> None:
    for name in (folder, folder / "model.onnx"):
        with pytest.raises(ModelError, match=r"exported already.*-e evaluate"):
            slim.run("quantize", **options(name, reviews))
    with pytest.raises(ModelError, match="question-answering can be measured"):
        adopt(folder / "model.onnx", tmp_path / "out", task="text-generation")


def export_elsewhere(model: Any, target: Path, *outputs: str) -> None:
    """As another tool would: torch.onnx alone, names as transformers has them."""
    import torch

    model.config.return_dict = False
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = ids.clone()
    mask[1, 3:] = 0  # without padding in the example, transformers leaves the mask out
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own insides
        torch.onnx.export(
            model,
            (),
            str(target),
            kwargs={"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)},
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes={key: {0: "batch", 1: "length"} for key in names},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def test_a_graph_of_words_answers_as_the_model_it_came_from(tmp_path: Path) -> None:
    import transformers
    from conftest import save_tiny_classifier

    folder = save_tiny_classifier(tmp_path / "model", ("O", "B-X", "I-X"), head="TokenClassification")
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    (folder / "onnx").mkdir()
    export_elsewhere(model, folder / "onnx" / "model.onnx", "logits")
    exported = adopt(folder / "onnx" / "model.onnx", tmp_path / "own", task="token-classification")
    assert exported.spec["labels"] == ["O", "B-X", "I-X"] and exported.spec["spans"]
    texts = ["a good film", "x"]
    from mlflow_slim.tasks.token_classification import TASK

    model.config.return_dict = True
    processor = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = TASK.outputs(model, processor, texts, exported.spec)
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(texts)
    assert abs(found - wanted).max() < 1e-4


def test_a_folder_of_sentence_transformers_with_a_graph_gives_its_vectors(tmp_path: Path) -> None:
    import transformers
    from test_feature_extraction import save_encoder

    from mlflow_slim.tasks.feature_extraction import TASK

    folder = save_encoder(tmp_path / "model", pooling="cls")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    (folder / "onnx").mkdir()
    export_elsewhere(model, folder / "onnx" / "model.onnx", "last_hidden_state")
    exported = adopt(folder / "onnx" / "model.onnx", tmp_path / "own", task="feature-extraction")
    assert (exported.spec["pooling"], exported.spec["normalize"], exported.spec["max_length"]) == ("cls", True, 20)
    model.config.return_dict = True
    processor = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = TASK.outputs(model, processor, TEXTS, exported.spec)
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(TEXTS)
    assert abs(found - wanted).max() < 1e-4
