"""Graphs that other tools exported, taken as they are, so that they can be measured and ranked with the rest.

A folder of optimum (``model.onnx``, or ``openvino_model.xml`` of optimum-intel), of sentence-transformers with files
under ``onnx/`` or ``openvino/``, or a plain ONNX file: beside the graph, or in the folder above, lie the tokenizer and
the ``config.json`` that names the labels. Nothing of it is code, and nothing is unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, bundle
from .catalog import load_backend
from .errors import InputNotFound, ModelError, UnsafeModelError, first_line
from .measurement.spans import marks_spans
from .runtime import onnx_engine, openvino_engine, tasks
from .runtime.bundle import FORMAT, NAME
from .runtime.external_data import check_external_data, external_locations
from .runtime.questions import usual_stride
from .runtime.torch_engine import quiet_transformers
from .safety import check_model_directory
from .tasks.feature_extraction import sentence_settings

if TYPE_CHECKING:
    from .artifact import ExportedModel

__all__ = ["adopt_graph", "find_graph"]

_KINDS = {".onnx": "onnxruntime", ".xml": "openvino"}
_PLACES = ("", "onnx", "openvino")


def find_graph(name: str) -> Path | None:
    """The graph that a user names: its file, or a folder that has one and no weights of transformers' own.

    Raises:
        InputNotFound: It names a graph's file that isn't there.
        ModelError: The folder has several graphs, so one of them must be named.
    """
    path = Path(name).expanduser()
    if path.suffix in _KINDS:
        if not path.is_file():
            raise InputNotFound(f"There is no file {str(path.absolute())!r}.")
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")) or any((path / own).is_file() for own in (NAME, "MLmodel")):
        return None
    found = [file for place in _PLACES for kind in _KINDS for file in sorted((path / place).glob(f"*{kind}"))]
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found[:6])
        raise ModelError(f"{name} has several graphs: {names}. Name one of them: model={found[0]}")
    return found[0] if found else None


def adopt_graph(
    graph: Path,
    name: str,
    *,
    task: str,
    pair: bool,
    max_length: int | None,
    directory: Path,
    answer: Mapping[str, Any] | None = None,
) -> ExportedModel:
    """The graph as a point's model, in a folder of its own.

    Args:
        graph: What `find_graph` gave.
        name: As the user named it.
        task: Name of the task.
        pair: Whether rows are pairs of texts.
        max_length: Longest input in tokens; None for the tokenizer's own limit.
        directory: Made here.
        answer: How questions are answered, as in a recipe.

    Raises:
        ModelError: There is no tokenizer or config, or the graph can't be used for the task.
        UnsafeModelError: A file would run code or lies outside its folder.
    """
    if task not in _SPECS:
        raise ModelError(f"{name} is a graph that was made elsewhere; of those {', '.join(_SPECS)} can be measured.")
    home = next((folder for folder in (graph.parent, graph.parent.parent) if (folder / "config.json").is_file()), None)
    if home is None:
        raise ModelError(f"{name} has no config.json beside it or in the folder above, so its labels aren't known.")
    config = check_model_directory(home, require_weights=False)
    own = _SPECS[task](config, home, name)
    tokenizer = _tokenizer(home, name)
    limit = min(tokenizer.model_max_length, int(config.get("max_position_embeddings") or 10**9))
    length = max_length or own.pop("usual_length", None) or (limit if limit < 10**9 else 512)
    backend = _KINDS[graph.suffix]
    spec = {**own, "pair": pair and task == "text-classification", "max_length": length}
    if task == "question-answering":
        spec |= {"pair": True} | {key: value for key, value in (answer or {}).items() if value is not None}
        spec["stride"] = usual_stride(length) if spec["stride"] is None else spec["stride"]
    with bundle.staged(directory) as work:
        _copy(graph, work, backend)
        tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
        content = {
            "format": FORMAT,
            "backend": backend,
            "task": task,
            "spec": spec,
            "inputs": {"names": _input_names(work, backend, name), **bundle.padding_inputs(tokenizer)},
            "lineage": [],
            "parameters": 0,  # a graph may hold them in any form
            "nonzero_parameters": 0,
            "notes": {"name": name},
            "mlflow_slim_version": __version__,
        }
        bundle.save(work, content)
    try:
        _try(directory, backend, task, spec, name)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return bundle.read(directory, verify=False)


def _of_classes(config: Mapping[str, Any], home: Path, name: str) -> dict[str, Any]:  # noqa: ARG001 - one shape
    multi_label = config.get("problem_type") == "multi_label_classification"
    return {"labels": _labels(config, name), "multi_label": multi_label}


def _of_words(config: Mapping[str, Any], home: Path, name: str) -> dict[str, Any]:  # noqa: ARG001
    labels = _labels(config, name)
    return {"labels": labels, "spans": marks_spans(labels)}


def _of_vectors(config: Mapping[str, Any], home: Path, name: str) -> dict[str, Any]:  # noqa: ARG001
    found = sentence_settings(home)
    length = found["max_length"]
    return {
        "pooling": "mean",
        "normalize": False,
        **found["spec"],
        **({"usual_length": length} if length is not None else {}),
    }


def _of_answers(config: Mapping[str, Any], home: Path, name: str) -> dict[str, Any]:  # noqa: ARG001
    return {"max_answer_length": 30, "unanswerable": False, "stride": None}


_SPECS: Mapping[str, Callable[[Mapping[str, Any], Path, str], dict[str, Any]]] = {
    "text-classification": _of_classes,
    "token-classification": _of_words,
    "feature-extraction": _of_vectors,
    "question-answering": _of_answers,
}
"""What a task must know of a graph, from the ``config.json`` and the folder beside it."""


def _labels(config: Mapping[str, Any], name: str) -> list[str]:
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names:
        raise ModelError(f"The config.json of {name} has no id2label, so its labels aren't known. Add them there.")
    try:
        return [str(names[key]) for key in sorted(names, key=int)]
    except ValueError as error:
        raise ModelError(f"The id2label of {name} has keys that are no numbers: {', '.join(names)}.") from error


def _tokenizer(home: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            found: Any = AutoTokenizer.from_pretrained(
                str(home), local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"The tokenizer of {name} can't be loaded: {first_line(error)}") from error
    if not found.is_fast or found.pad_token is None:
        lack = "padding token" if found.is_fast else "fast form (tokenizer.json)"
        raise ModelError(f"The tokenizer of {name} has no {lack}. Save it with one.")
    return found


def _copy(graph: Path, work: Path, backend: str) -> None:
    """The graph under the name that it is served by, and its weights beside it; links are refused."""
    if graph.is_symlink():
        graph = _followed(graph)
    if backend == "openvino":
        shutil.copyfile(graph, work / openvino_engine.MODEL)
        weights = graph.with_suffix(".bin")
        if not weights.is_file():
            raise ModelError(f"{graph.name} has no weights beside it: {weights.name} is missing.")
        shutil.copyfile(weights, (work / openvino_engine.MODEL).with_suffix(".bin"))
        return
    try:
        check_external_data(graph)
        others = external_locations(graph)
    except ValueError as error:
        raise UnsafeModelError(str(error)) from error
    shutil.copyfile(graph, work / onnx_engine.MODEL)
    for location in sorted(others):
        (work / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.parent / location, work / location)


def _followed(graph: Path) -> Path:
    """Where a link leads, when that is a graph without files of its own elsewhere, as in the hub's cache."""
    target = graph.resolve()
    if graph.suffix != ".onnx" or external_locations(target):
        raise UnsafeModelError(f"{graph} is a link, and weights lie beside it. Copy the folder with its files.")
    return target


def _input_names(work: Path, backend: str, name: str) -> list[str]:
    """Names of the graph's inputs, in the order that encoders know; raises ModelError when one is unknown."""
    try:
        if backend == "openvino":
            import openvino

            graph = openvino.Core().read_model(str(work / openvino_engine.MODEL))
            names = [port.get_any_name() for port in graph.inputs]
        else:
            session, _ = onnx_engine.open_session(work / onnx_engine.MODEL, threads=1)
            names = [one.name for one in session.get_inputs()]
    except Exception as error:  # both runtimes raise kinds of their own
        raise ModelError(f"{backend} can't open {name}: {first_line(error)}") from error
    unknown = [one for one in names if one not in bundle.KNOWN_INPUTS]
    if unknown or "input_ids" not in names:
        raise ModelError(
            f"The graph {name} takes {', '.join(names)}; known are {', '.join(bundle.KNOWN_INPUTS)}. Export it again."
        )
    return [one for one in bundle.KNOWN_INPUTS if one in names]


def _try(directory: Path, backend: str, task: str, spec: Mapping[str, Any], name: str) -> None:
    """Raises ModelError unless the graph answers as its task does, to texts of several lengths in one batch."""
    texts: Sequence[Any] = ["a", "a longer text than the other one", bundle.lengthened("a", int(spec["max_length"]))]
    rows = [(text, text) for text in texts] if spec["pair"] else texts
    checked = tasks.find(task).check_rows(rows, spec)
    try:
        outputs = load_backend(backend).load(directory, threads=1).predict(checked)
    except Exception as error:  # both runtimes raise kinds of their own
        raise ModelError(f"The graph {name} can't be run: {first_line(error)}") from error
    if "labels" not in spec:
        return
    if outputs.ndim != (3 if "spans" in spec else 2) or outputs.shape[-1] != len(spec["labels"]):
        raise ModelError(
            f"The first output of the graph {name} has the shape {outputs.shape} for {len(rows)} texts; config.json "
            f"names {len(spec['labels'])} labels. Give a graph of a classifier whose first output is the logits."
        )
