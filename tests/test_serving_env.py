"""A logged ONNX model in a new virtual environment that has nothing but what its requirements say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv

import pytest
from conftest import save_tiny_classifier

from mlflow_slim import flavor
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend

TEXTS = ["a very good film", "bad", "this was not a great story"]

PROBE = """
import importlib.util, json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1], model_config={"threads": 1})
table = model.predict(json.loads(sys.argv[2]))
absent = ["torch", "transformers", "mlflow_slim", "onnx", "safetensors"]
print(json.dumps({
    "label": table["label"].tolist(),
    "score": table["score"].tolist(),
    "importable": [name for name in absent if importlib.util.find_spec(name) is not None],
}))
"""


@pytest.mark.slow
def test_an_onnx_model_predicts_where_only_its_requirements_are_installed(tmp_path):
    import transformers

    save_tiny_classifier(tmp_path / "tiny", initializer_range=0.3)
    source = OptimizedModel(
        transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "tiny")).eval(),
        transformers.AutoTokenizer.from_pretrained(str(tmp_path / "tiny")),
        "text-classification",
        {"labels": ["negative", "positive"], "multi_label": False, "pair": False, "max_length": 32},
    )
    flavor.save_model(load_backend("onnxruntime").export(source, tmp_path / "exported", TEXTS), tmp_path / "saved")
    wanted = flavor.load_model(tmp_path / "saved", threads=1).predict(TEXTS)

    requirements = (tmp_path / "saved" / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} == {
        "mlflow-skinny",
        "onnxruntime",
        "tokenizers",
        "numpy",
        "pandas",
    }
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True, env=environment, cwd=tmp_path)
    done = subprocess.run(
        [python, "-c", PROBE, str(tmp_path / "saved"), json.dumps(TEXTS)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["importable"] == []
    assert found["label"] == wanted["label"].tolist()
    assert found["score"] == pytest.approx(wanted["score"].tolist(), abs=1e-6)
