"""The MLflow flavor ``mlflow_slim``: an exported model as an MLflow model that serves without this package.

A saved model holds the exported folder as it is (``bundle/``) and a copy of `mlflow_slim.runtime` (``code/``)
under a name made of the digest of its sources, so that models of different versions live in one process.
``python_function`` is served by that copy. Beside it stand the flavors that are true of the folder: ``onnx`` for
an ONNX bundle, ``transformers`` for a torch bundle, both over the same weights.

`load_model` runs nothing from the model: it compares every file with the manifest and uses our own runtime.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, bundle, manifest
from .artifact import ExportedModel
from .errors import InputNotFound, IntegrityError, TrackingError, UnsafeModelError
from .runtime import BundleError, load
from .runtime.narrowed import KEY
from .runtime.pyfunc import Served, serving_threads
from .signatures import default_example, default_signature

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

__all__ = [
    "FLAVOR_NAME",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "save_model",
    "verify_model",
]

logger = logging.getLogger(__name__)

FLAVOR_NAME = "mlflow_slim"
_BUNDLE = "bundle"
_CODE = "code"
_RUNTIME = Path(__file__).parent / "runtime"
_LOADER = re.compile(r"slim_runtime_([0-9a-f]{8})\.pyfunc")
_PIPELINES = {
    "text-classification": "TextClassificationPipeline",
    "token-classification": "TokenClassificationPipeline",
}
"""What transformers calls its own way to answer, for the tasks whose torch models can be read as its flavor."""
_REQUIREMENTS = {
    "onnxruntime": ("mlflow-skinny", "onnxruntime", "tokenizers", "numpy", "pandas"),
    "openvino": ("mlflow-skinny", "openvino", "tokenizers", "numpy", "pandas"),
    "torch": ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas"),
}


_TASK_REQUIREMENTS = {"text-generation": ("jinja2",), "image-classification": ("pillow",)}


def _pyfunc() -> Any:
    """``mlflow.pyfunc``, whose import warns about type hints of MLflow's own (3.17)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        import mlflow.pyfunc

    return mlflow.pyfunc


def _runtime_digest(folder: Path) -> str:
    """First 8 hex digits of the sha256 over the Python sources below ``folder``, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        text = path.read_bytes().replace(b"\r\n", b"\n")  # the same on a checkout with Windows line ends
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()[:8]


def get_default_pip_requirements(backend: str = "onnxruntime", task: str = "text-classification") -> list[str]:
    """What serving needs, at the versions installed here.

    Args:
        backend: ``onnxruntime`` or ``torch``.
        task: Chat templates of language models need jinja2, images Pillow.
    """
    found = []
    for name in (*_REQUIREMENTS[backend], *_TASK_REQUIREMENTS.get(task, ())):
        # mlflow and mlflow-skinny are released together; the one not installed has the other's version
        known = name if name != "mlflow-skinny" else "mlflow"
        try:
            version = importlib.metadata.version(known)
        except importlib.metadata.PackageNotFoundError:
            version = importlib.metadata.version("mlflow-skinny") if known == "mlflow" else ""
        # "2.13.0+cpu" names a build that only one index has
        found.append(f"{name}=={version.partition('+')[0]}")
    return found


def get_default_conda_env(backend: str = "onnxruntime") -> dict[str, Any]:
    """The same as a conda environment."""
    from mlflow.utils import environment

    untyped: Any = environment
    env: dict[str, Any] = untyped._mlflow_conda_env(additional_pip_deps=get_default_pip_requirements(backend))
    return env


def _exported(exported: ExportedModel | str | Path) -> ExportedModel:
    """The bundle, read anew and compared with its manifest."""
    return bundle.read(exported.directory if isinstance(exported, ExportedModel) else exported)


def _add_onnx_flavor(model: Model) -> None:
    import onnx

    model.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=f"{_BUNDLE}/model.onnx",
        providers=["CPUExecutionProvider"],
        onnx_session_options=None,
        code=None,
    )


def _has_engine(path: Path) -> bool:
    """True when the bundle is not run as transformers would run it."""
    return "engine" in json.loads((path / _BUNDLE / "slim.json").read_text(encoding="utf-8"))


def _add_transformers_flavor(model: Model, path: Path, exported: ExportedModel) -> None:
    """Lets ``mlflow.transformers.load_model`` read the same weights; only the tokenizer is there twice.

    Not for shapes that transformers can't load.
    """
    import transformers

    config = json.loads((path / _BUNDLE / "config.json").read_text(encoding="utf-8"))
    if KEY in config:
        return
    tokenizer = json.loads((path / _BUNDLE / "tokenizer_config.json").read_text(encoding="utf-8"))
    target = path / "components" / "tokenizer"
    target.mkdir(parents=True)
    for file in sorted((path / _BUNDLE).iterdir()):
        if file.suffix != ".safetensors" and file.name not in (
            "slim.json",
            manifest.NAME,
            "model.safetensors.index.json",
        ):
            shutil.copyfile(file, target / file.name)
    model.add_flavor(
        "transformers",
        transformers_version=transformers.__version__,
        code=None,
        task=exported.task,
        instance_type=_PIPELINES[exported.task],
        pipeline_model_type=config["architectures"][0],
        model_binary=_BUNDLE,
        components=["tokenizer"],
        tokenizer_type=tokenizer["tokenizer_class"],
    )


def save_model(
    exported: ExportedModel | str | Path,
    path: str | Path,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Sequence[str] | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    validate_serving_input: bool = False,  # noqa: ARG001 - MLflow acts on it after saving, and hands it on to here
) -> None:
    """Saves an exported model as an MLflow model.

    Args:
        exported: What a backend exported, or its folder.
        path: Folder to make; must not exist or be empty.
        mlflow_model: Filled in by `log_model`.
        signature: Default: strings in, label and score out (for pairs the columns ``text`` and ``text_pair``).
        input_example: Default: one made-up row.
        pip_requirements: Default: what the backend needs to serve, pinned; nothing is inferred.
        metadata: Kept in MLmodel.
        validate_serving_input: For MLflow's own ``Model.log``.

    Raises:
        IntegrityError: ``exported`` is not what its manifest says.
        ModelError: No signature is known for its task.
        mlflow.MlflowException: ``path`` holds something.
    """
    import yaml

    pyfunc = _pyfunc()
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import _save_example
    from mlflow.utils import environment, model_utils
    from mlflow.utils.file_utils import get_total_file_size

    exported = _exported(exported)
    path = Path(path)
    untyped_environment: Any = environment
    untyped_models: Any = model_utils
    untyped_models._validate_and_prepare_target_save_path(str(path))
    shutil.copytree(exported.directory, path / _BUNDLE)
    runtime = f"slim_runtime_{_runtime_digest(_RUNTIME)}"
    shutil.copytree(_RUNTIME, path / _CODE / runtime, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))

    model = Model() if mlflow_model is None else mlflow_model
    model.signature = signature or default_signature(exported)
    form = exported.spec.get("serve_as", "text")
    if metadata is not None or form != "text":  # MLflow's deployments look there for what a model answers
        model.metadata = {**({"task": form} if form != "text" else {}), **(metadata or {})}
    _save_example(model, default_example(exported) if input_example is None else input_example, str(path))
    model.add_flavor(
        FLAVOR_NAME,
        slim_version=__version__,
        backend=exported.backend,
        task=exported.task,
        variant=exported.variant,
        data=_BUNDLE,
        digest=manifest.digest(path / _BUNDLE),
        code=None,
    )
    if exported.backend == "onnxruntime":
        _add_onnx_flavor(model)
    elif exported.backend == "torch" and not _has_engine(path) and exported.task in _PIPELINES:
        _add_transformers_flavor(model, path, exported)
    pyfunc.add_to_model(
        model,
        loader_module=f"{runtime}.pyfunc",
        data=_BUNDLE,
        code=_CODE,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"threads": 0},  # a key must be there for a user to override it; 0 means all CPUs
    )
    if size := get_total_file_size(str(path)):
        model.model_size_bytes = size
    model.save(str(path / MLMODEL_FILE_NAME))

    defaults = None if pip_requirements is not None else get_default_pip_requirements(exported.backend, exported.task)
    conda_env, requirements, constraints = untyped_environment._process_pip_requirements(defaults, pip_requirements)
    (path / "conda.yaml").write_text(yaml.safe_dump(conda_env, default_flow_style=False), encoding="utf-8")
    if constraints:
        (path / "constraints.txt").write_text("\n".join(constraints), encoding="utf-8")
    (path / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    untyped_environment._PythonEnv.current().to_yaml(str(path / "python_env.yaml"))


def log_model(
    exported: ExportedModel | str | Path,
    name: str = "model",
    *,
    run_id: str | None = None,
    model_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Sequence[str] | str | None = None,
) -> ModelInfo:
    """Logs an exported model to a run, as a LoggedModel.

    Args:
        exported: What a backend exported, or its folder.
        name: Name of the LoggedModel.
        run_id: The run; default the active one.
        model_id: A LoggedModel that exists already and waits for its files; by default one is made.
        params: Kept with the LoggedModel.
        tags: Tags of the LoggedModel; ``slim.digest`` (sha256 of the manifest) is added.
        metadata: Kept in MLmodel.
        registered_model_name: Registers a version under this name too.
        signature: As in `save_model`.
        input_example: As in `save_model`.
        pip_requirements: As in `save_model`.

    Raises:
        IntegrityError: ``exported`` is not what its manifest says; nothing was logged then.
    """
    _pyfunc()
    from mlflow.models import Model

    exported = _exported(exported)
    info: ModelInfo = Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        flavor_name=FLAVOR_NAME,
        run_id=run_id,
        model_id=model_id,
        params=dict(params) if params is not None else None,
        tags={"slim.digest": manifest.digest(exported.directory), **(tags or {})},
        metadata=dict(metadata) if metadata is not None else None,
        registered_model_name=registered_model_name,
        exported=exported,
        signature=signature,
        input_example=input_example,
        pip_requirements=pip_requirements,
        # our own check compares outputs in a fresh process; MLflow's would load the model a second time here
        validate_serving_input=False,
    )
    return info


def _same_file(left: Path, right: Path) -> bool:
    return left.is_file() and right.is_file() and left.read_bytes() == right.read_bytes()


def verify_model(path: str | Path) -> list[str]:
    """What makes a saved model folder unfit to load, one sentence each; empty when it is as we wrote it.

    Looks at MLmodel (which module would be run), the shipped runtime (its name is the digest of its sources), the
    manifest of the bundle, and the tokenizer that is there twice.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))
        flavors = content["flavors"]
        ours, served = flavors[FLAVOR_NAME], flavors["python_function"]
        data, digest, loader, code = ours["data"], ours["digest"], served["loader_module"], served.get("code")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        return [f"MLmodel lacks or garbles {error}"]
    faults = []
    match = _LOADER.fullmatch(str(loader))
    if match is None or code != _CODE:
        faults.append(f"MLmodel names the loader {loader!r} with code in {code!r}, not the runtime of mlflow_slim")
    else:
        package = path / _CODE / str(loader).partition(".")[0]
        if not package.is_dir() or _runtime_digest(package) != match[1]:
            faults.append(f"the code in {package.name} is not what its name says")
        beside = [item for item in (path / _CODE).rglob("*") if "__pycache__" not in item.parts and item.is_file()]
        strange = [item.name for item in beside if item.suffix != ".py" or not item.is_relative_to(package)]
        if strange:
            faults.append(f"code/ holds other files: {', '.join(sorted(strange))}")
    if data != _BUNDLE or served.get("data") != _BUNDLE:
        faults.append(f"MLmodel names the folder {data!r}, not {_BUNDLE!r}")
        return faults
    for name, conf in flavors.items():
        if name != "python_function" and isinstance(conf, dict) and conf.get("code"):
            faults.append(f"the flavor {name} names code of its own")
    if found := manifest.verify(path / _BUNDLE):
        return faults + found
    if manifest.digest(path / _BUNDLE) != digest:
        faults.append("the manifest is another than MLmodel says")
    for copy in (path / "components").rglob("*"):
        if copy.is_file() and not _same_file(copy, path / _BUNDLE / copy.name):
            faults.append(f"{copy.relative_to(path).as_posix()} differs from the bundle's")
    return faults


def load_model(model_uri: str | Path, *, threads: int | None = None, dst_path: str | Path | None = None) -> Served:
    """The model behind a URI or in a folder, run by our own runtime; no code of the model is run.

    Args:
        model_uri: ``models:/``, ``runs:/``, any MLflow URI, or a local folder.
        threads: Threads to compute with; default ``MLFLOW_SLIM_THREADS``, else the CPUs this process may use.
        dst_path: Where to put what is downloaded.

    Returns:
        ``predict(data)`` answers with labels and scores; ``predictor`` gives raw outputs.

    Raises:
        InputNotFound: Nothing is there.
        UnsafeModelError: MLmodel names code that is not ours.
        IntegrityError: A file differs from what was saved.
    """
    path = _download(model_uri, dst_path)
    if not (path / "MLmodel").is_file():
        raise InputNotFound(
            f"{model_uri} holds no MLmodel file, so it is not an MLflow model. Name one that was logged."
        )
    if faults := verify_model(path):
        text = f"{model_uri} is not as mlflow_slim saved it: {'; '.join(faults)}. Log the model again."
        unsafe = any("loader" in fault or "code" in fault for fault in faults)
        raise UnsafeModelError(text) if unsafe else IntegrityError(text)
    try:
        return Served(load(path / _BUNDLE, threads=threads or serving_threads(), verify=False))
    except BundleError as error:
        raise IntegrityError(str(error)) from error


def _download(model_uri: str | Path, dst_path: str | Path | None) -> Path:
    if Path(model_uri).is_dir():
        return Path(model_uri)
    _pyfunc()
    import mlflow
    from mlflow.exceptions import MlflowException

    if "://" not in str(model_uri) and not re.match(r"[a-z]+:/", str(model_uri)):
        raise InputNotFound(
            f"There is no folder {model_uri}. Name a saved model or an MLflow URI such as models:/name/1."
        )
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=str(model_uri), dst_path=str(dst_path) if dst_path else None
            )
        )
    except (MlflowException, OSError) as error:
        if isinstance(error, OSError) or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise InputNotFound(
                f"{model_uri} can't be fetched: {error}. Check the name and the tracking URI."
            ) from error
        raise TrackingError(f"{model_uri} can't be fetched: {error}. Check the tracking URI.") from error


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Served:
    """Serves a bundle by the installed mlflow_slim; saved models name their own copy of the runtime instead."""
    try:
        return Served(load(path, threads=serving_threads(model_config)))
    except BundleError as error:
        raise IntegrityError(str(error)) from error
