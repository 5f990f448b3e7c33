"""The MLflow flavor on a real store: what is saved loads everywhere it says, answers alike, and shows tampering."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import save_tiny_classifier

from mlflow_slim import flavor
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend
from mlflow_slim.errors import InputNotFound, IntegrityError, UnsafeModelError

# upstream: mlflow's sqlite store leaves connections to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

BACKENDS = ["torch", "onnxruntime"]
LABELS = ["negative", "positive", "so / so"]
TEXTS = ["a very good film", "bad", "this was not a great story", "the red animal is small"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """``{backend: exported folder}`` and the saved MLflow models of a tiny classifier."""
    import transformers

    root = tmp_path_factory.mktemp("flavor")
    save_tiny_classifier(root / "tiny", LABELS, initializer_range=0.3)
    source = OptimizedModel(
        transformers.AutoModelForSequenceClassification.from_pretrained(str(root / "tiny")).eval(),
        transformers.AutoTokenizer.from_pretrained(str(root / "tiny")),
        "text-classification",
        {"labels": LABELS, "multi_label": False, "pair": False, "max_length": 32},
    )
    found = {}
    for name in BACKENDS:
        exported = load_backend(name).export(source, root / name, TEXTS)
        flavor.save_model(exported, root / f"saved-{name}")
        found[name] = (exported, root / f"saved-{name}")
    return found


@pytest.fixture
def copy_of(folders, tmp_path):
    def make(backend):
        return shutil.copytree(folders[backend][1], tmp_path / "copy")

    return make


@pytest.fixture
def store(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/x.db")
    experiment = mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    yield experiment
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pyfunc_and_our_loader_answer_every_form_of_input_alike(folders, backend):
    import mlflow

    exported, saved = folders[backend]
    served = mlflow.pyfunc.load_model(str(saved), model_config={"threads": 1})
    ours = flavor.load_model(saved, threads=1)
    raw = load_backend(backend).load(exported.directory, threads=1).predict(TEXTS)
    wanted = [LABELS[index] for index in raw.argmax(axis=1)]
    for data in (TEXTS, pd.Series(TEXTS), pd.DataFrame({"any": TEXTS}), np.array(TEXTS), [{"text": t} for t in TEXTS]):
        table = served.predict(data)
        assert table["label"].tolist() == wanted
        assert list(table.columns) == ["label", "score"]
        pd.testing.assert_frame_equal(table, ours.predict(data))
    assert served.predict(TEXTS[0])["label"].tolist() == wanted[:1]
    assert served.predict({"text": TEXTS[0]})["label"].tolist() == wanted[:1]


def test_both_backends_give_the_same_labels_and_close_scores(folders):
    torch_table, onnx_table = (flavor.load_model(folders[name][1], threads=1).predict(TEXTS) for name in BACKENDS)
    assert torch_table["label"].tolist() == onnx_table["label"].tolist()
    np.testing.assert_allclose(torch_table["score"], onnx_table["score"], atol=1e-5)


def test_answers_and_signature_equal_those_of_mlflow_transformers(folders, tmp_path):
    import mlflow
    import transformers

    exported, saved = folders["torch"]
    folder = str(exported.directory)
    pipe = transformers.pipeline(
        "text-classification",
        model=transformers.AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.transformers.save_model(
            pipe,
            str(tmp_path / "theirs"),
            pip_requirements=["transformers"],
            model_card=None,
            task="text-classification",
        )
        theirs = mlflow.pyfunc.load_model(str(tmp_path / "theirs"))
        wanted = theirs.predict(TEXTS)
    served = mlflow.pyfunc.load_model(str(saved))
    assert served.metadata.signature.inputs == theirs.metadata.signature.inputs
    assert served.metadata.signature.outputs == theirs.metadata.signature.outputs
    pd.testing.assert_frame_equal(served.predict(TEXTS), wanted, check_exact=False, atol=1e-6)
    ranked = served.predict(TEXTS, params={"top_k": 2})
    assert list(ranked.columns) == [0, 1]
    assert [cell["label"] for cell in ranked[0]] == wanted["label"].tolist()


def test_the_other_flavors_of_the_folder_load_the_same_weights(folders):
    import mlflow
    import onnxruntime

    saved = folders["onnxruntime"][1]
    graph = mlflow.onnx.load_model(str(saved))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    assert [item.name for item in session.get_outputs()] == ["logits"]
    saved = folders["torch"][1]
    pipe = mlflow.transformers.load_model(str(saved))
    assert [answer["label"] for answer in pipe(TEXTS)] == flavor.load_model(saved).predict(TEXTS)["label"].tolist()
    assert len(list(saved.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_model_names_exact_requirements_and_no_path_of_this_machine(folders, backend):
    _, saved = folders[backend]
    lines = (saved / "requirements.txt").read_text().split()
    names = [line.partition("==")[0] for line in lines]
    expected = {
        "onnxruntime": ["mlflow-skinny", "onnxruntime", "tokenizers", "numpy", "pandas"],
        "torch": ["mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas"],
    }
    assert names == expected[backend]
    assert all("==" in line and "+" not in line for line in lines)
    for path in saved.rglob("*"):
        if path.is_file():
            assert str(saved.parent).encode() not in path.read_bytes(), path.name
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_logged_model_carries_its_digest_and_loads_by_uri(folders, store, backend):
    import mlflow

    exported, _ = folders[backend]
    with mlflow.start_run(experiment_id=store) as run:
        pass
    info = flavor.log_model(
        exported,
        "student",
        run_id=run.info.run_id,
        params={"a": 1},
        tags={"slim.variant": "x"},
        registered_model_name="r",
    )
    logged = mlflow.get_logged_model(info.model_id)
    assert logged.source_run_id == run.info.run_id
    assert logged.status == "READY"
    assert logged.tags["slim.variant"] == "x"
    assert len(logged.tags["slim.digest"]) == 64
    assert mlflow.active_run() is None
    for uri in (info.model_uri, "models:/r/1"):
        assert flavor.load_model(uri, threads=1).predict(TEXTS)["label"].tolist() == (
            flavor.load_model(exported_saved(folders, backend), threads=1).predict(TEXTS)["label"].tolist()
        )


def exported_saved(folders, backend):
    return folders[backend][1]


def test_a_flipped_byte_is_refused_by_our_loader_and_by_pyfunc(copy_of):
    import mlflow

    saved = copy_of("onnxruntime")
    weights = saved / "bundle" / "model.onnx"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx has another sha256"):
        flavor.load_model(saved)
    with pytest.raises(Exception, match=r"model\.onnx has another sha256"):
        mlflow.pyfunc.load_model(str(saved))


def edit_mlmodel(saved, change):
    import yaml

    content = yaml.safe_load((saved / "MLmodel").read_text())
    change(content["flavors"])
    (saved / "MLmodel").write_text(yaml.safe_dump(content))


def test_another_loader_in_mlmodel_is_refused(copy_of):
    saved = copy_of("onnxruntime")
    edit_mlmodel(saved, lambda flavors: flavors["python_function"].update(loader_module="evil"))
    with pytest.raises(UnsafeModelError, match="names the loader 'evil'"):
        flavor.load_model(saved)


def test_changed_or_added_code_is_refused_and_never_run(copy_of):
    saved = copy_of("onnxruntime")
    (runtime,) = (saved / "code").iterdir()
    for file, message in (
        (runtime / "pyfunc.py", "not what its name says"),
        (saved / "code" / "numpy.py", "other files"),
    ):
        before = file.read_text() if file.exists() else None
        file.write_text(f"open({str(saved / 'ran')!r}, 'w')\n")
        with pytest.raises(UnsafeModelError, match=message):
            flavor.load_model(saved)
        file.write_text(before) if before is not None else file.unlink()
    assert not (saved / "ran").exists()
    assert flavor.verify_model(saved) == []


def test_a_manifest_that_is_missing_or_replaced_is_refused(copy_of):
    saved = copy_of("torch")
    path = saved / "bundle" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="the manifest is another than MLmodel says"):
        flavor.load_model(saved)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        flavor.load_model(saved)


def test_a_missing_model_is_named(tmp_path, store):
    with pytest.raises(InputNotFound, match="There is no folder nowhere"):
        flavor.load_model("nowhere")
    with pytest.raises(InputNotFound, match="holds no MLmodel file"):
        flavor.load_model(tmp_path)
    with pytest.raises(InputNotFound, match=r"models:/ghost/1 can't be fetched"):
        flavor.load_model("models:/ghost/1")


def test_a_broken_bundle_is_refused_before_anything_is_saved(folders, tmp_path):
    broken = shutil.copytree(folders["onnxruntime"][0].directory, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json has"):
        flavor.save_model(broken, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def post(port, payload):
    body = json.dumps(payload).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.mark.slow
def test_raw_strings_are_answered_over_rest(folders, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, saved = folders["onnxruntime"]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local"]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        stdout=log,
        stderr=subprocess.STDOUT,
        # mlflow starts uvicorn by name, also when this environment is not activated
        env={**os.environ, "MLFLOW_SLIM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    try:
        for _ in range(180):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        wanted = flavor.load_model(saved, threads=1).predict(TEXTS).to_dict("records")
        for payload in (
            {"inputs": TEXTS},
            {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS]}},
            {"dataframe_records": [{"text": text} for text in TEXTS]},
        ):
            found = post(port, payload)["predictions"]
            assert [row["label"] for row in found] == [row["label"] for row in wanted]
            assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-6)
        assert post(port, {"inputs": TEXTS[0]})["predictions"][0]["label"] == wanted[0]["label"]
        ranked = post(port, {"inputs": TEXTS[:1], "params": {"top_k": 2}})["predictions"]
        assert len(ranked[0]) == 2
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(port, {"inputs": ["good", ""]})
        assert "row 1 is an empty text" in refused.value.read().decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
