"""Logged ONNX models of every task in a new virtual environment that has nothing but what their requirements say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny_classifier

from mlflow_slim import flavor
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_task

PROBE = """
import importlib.util, json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1], model_config={"threads": 1})
found = model.predict(json.loads(sys.argv[2]))
if hasattr(found, "to_json"):
    found = json.loads(found.to_json(orient="records"))
absent = ["torch", "transformers", "mlflow_slim", "onnx", "safetensors"]
print(json.dumps({
    "found": found.tolist() if hasattr(found, "tolist") else found,
    "importable": [name for name in absent if importlib.util.find_spec(name) is not None],
}))
"""
TEXTS = ["a very good film", "bad", "this was not a great story"]
QUESTIONS = [
    {"question": "who was it ?", "context": "a person and an animal " * 12},
    {"question": "a ?", "context": "b"},
]
SHAPES: Mapping[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "text-classification": ("SequenceClassification", ("negative", "positive"), {"multi_label": False, "pair": False}),
    "token-classification": ("TokenClassification", ("O", "B-X", "I-X"), {"spans": True}),
    "feature-extraction": ("SequenceClassification", ("a", "b"), {"pooling": "mean", "normalize": True, "pair": False}),
    "question-answering": (
        "QuestionAnswering",
        ("a", "b"),
        {"stride": 8, "max_answer_length": 30, "unanswerable": True, "pair": True},
    ),
}


def saved_text_model(task: str, folder: Path) -> Path:
    import transformers

    head, labels, spec = SHAPES[task]
    save_tiny_classifier(folder / "tiny", labels, head=head, initializer_range=0.3)
    own = {"labels": list(labels)} if task.endswith("classification") else {}
    model = getattr(transformers, load_task(task).library_class).from_pretrained(str(folder / "tiny")).eval()
    source = OptimizedModel(
        model,
        transformers.AutoTokenizer.from_pretrained(str(folder / "tiny")),
        task,
        {**own, **spec, "max_length": 48},
    )
    rows: list[Any] = TEXTS if task != "question-answering" else [tuple(row.values()) for row in QUESTIONS]
    flavor.save_model(load_backend("onnxruntime").export(source, folder / "exported", rows), folder / "saved")
    return folder / "saved"


def saved_image_model(folder: Path, picture: str) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=2, **shape)).eval()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    spec = {"labels": ["left", "right"], "multi_label": False, "modality": "image"}
    source = OptimizedModel(model, processor, "image-classification", spec)
    flavor.save_model(load_backend("onnxruntime").export(source, folder / "exported", [picture]), folder / "saved")
    return folder / "saved"


def names_in(saved: Path) -> set[str]:
    return {line.partition("==")[0] for line in (saved / "requirements.txt").read_text().split()}


@pytest.mark.slow
def test_models_of_every_task_answer_where_only_their_requirements_are_installed(
    tmp_path: Path, new_environment: Callable[..., Any]
) -> None:
    from test_image_classification import as_text
    from test_image_classification import picture as draw

    picture = as_text(draw("left", 1))
    models = {task: saved_text_model(task, tmp_path / task) for task in SHAPES}
    rows = {task: TEXTS if task != "question-answering" else QUESTIONS for task in SHAPES}
    expected = {"mlflow-skinny", "onnxruntime", "tokenizers", "numpy", "pandas"}
    assert all(names_in(saved) == expected for saved in models.values())
    install, ask = new_environment
    install((models["text-classification"] / "requirements.txt").read_text().split())
    for task, saved in models.items():
        _check(ask(saved, rows[task]), flavor.load_model(saved, threads=1).predict(rows[task]))
    images = saved_image_model(tmp_path / "images", picture)
    assert names_in(images) == expected | {"pillow"}
    install((images / "requirements.txt").read_text().split())
    _check(ask(images, [picture]), flavor.load_model(images, threads=1).predict([picture]))


def _check(found: Any, wanted: Any) -> None:
    """Answers from there are those from here."""
    if hasattr(wanted, "to_json"):
        wanted = json.loads(wanted.to_json(orient="records"))
    wanted = wanted.tolist() if hasattr(wanted, "tolist") else wanted
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(other, dict) and "score" in other:
            assert one == {**other, "score": pytest.approx(other["score"], abs=1e-6)}
        elif isinstance(other, dict):
            assert [entity["word"] for entity in one["entities"]] == [entity["word"] for entity in other["entities"]]
        else:
            assert one == (other if isinstance(other, str) else pytest.approx(other, abs=1e-6))


@pytest.fixture
def new_environment(tmp_path: Path) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Installs into a virtual environment of its own, and asks a model there."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def install(requirements: list[str]) -> None:
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True, env=environment, cwd=tmp_path)

    def ask(saved: Path, rows: Any) -> Any:
        done = subprocess.run(
            [python, "-c", PROBE, str(saved), json.dumps(rows)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["importable"] == []
        return answer["found"]

    return install, ask
