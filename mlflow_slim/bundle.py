"""Writes an exported model's folder so that it is either whole or not there, and reads it back.

Every backend writes the same frame (``slim.json``, ``manifest.json``, tokenizer) around weights of its own. The
folder is made beside its final name and renamed when the last file is in it. Reading for use is
`mlflow_slim.runtime`'s job, because a served model does it without this package.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, manifest
from .artifact import ExportedModel, OptimizationCost, OptimizedModel, StepRecord
from .chat import chat_inputs
from .errors import ExportError, IntegrityError, ModelError
from .runtime import tasks
from .runtime.bundle import FORMAT, NAME, BundleError, read_bundle
from .runtime.images import ImageFile, decode

__all__ = [
    "KNOWN_INPUTS",
    "adopt",
    "check_labels",
    "compare",
    "content_digest",
    "count_parameters",
    "evaluating",
    "find",
    "image_settings",
    "input_names",
    "lengthened",
    "padding_inputs",
    "read",
    "save",
    "save_processor",
    "set_engine",
    "staged",
    "write",
]

KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A temporary folder beside ``directory`` that becomes it on leaving; nothing is left when the body fails.

    Raises:
        ExportError: ``directory`` exists, can't be written, or the disk is full.
    """
    directory = Path(directory)
    if directory.exists() or directory.is_symlink():
        raise ExportError(f"{directory} exists already and is not overwritten. Remove it or name another folder.")
    work: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        yield work
        work.chmod(0o755)  # mkdtemp makes it readable by its owner alone
        work.rename(directory)
    except Exception as error:
        # safetensors has an exception of its own, and shutil gathers texts: neither carries the number
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        if not (full or isinstance(error, OSError)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        if full:
            reason = "the disk is full. Free some space or name a folder on another disk"
        raise ExportError(f"{directory} can't be written: {reason}. Nothing was left behind.") from error
    finally:
        if work is not None and work.exists():
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """``model`` in eval mode inside; each of its modules back in its own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_labels(source: OptimizedModel) -> None:
    """Raises ModelError unless the head of ``source`` has one output for each label."""
    labels, outputs = source.spec.get("labels"), getattr(source.model.config, "num_labels", None)
    if labels is not None and outputs != len(labels):
        raise ModelError(
            f"The model has {outputs} outputs and the task {len(labels)} labels. Fine-tune it on the data first."
        )


def count_parameters(model: Any) -> tuple[int, int]:
    """Number of weights of a torch module and how many are not zero; shared weights count once."""
    import torch

    with torch.no_grad():
        weights = list(model.parameters())
        return sum(w.numel() for w in weights), sum(int(torch.count_nonzero(w)) for w in weights)


def input_names(model: Any, tokenizer: Any) -> list[str]:
    """Names of the arrays the model is called with: those its tokenizer makes and its ``forward`` takes.

    Raises:
        ModelError: The tokenizer makes something no backend here can pass on.
    """
    import inspect

    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    if "input_ids" not in names or not set(names) <= set(KNOWN_INPUTS):
        raise ModelError(
            f"{type(model).__name__} with {type(tokenizer).__name__} is called with {', '.join(names) or 'nothing'}. "
            f"Exporting knows {', '.join(KNOWN_INPUTS)}; use another model."
        )
    return [name for name in KNOWN_INPUTS if name in names]


def _fast(tokenizer: Any, sample: Sequence[Any]) -> Any:
    if getattr(tokenizer, "is_fast", False):
        return tokenizer
    import transformers
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    kind = type(tokenizer).__name__
    advice = "Use the model's fast tokenizer (a folder with tokenizer.json)."
    try:
        fast_class: Any = transformers.PreTrainedTokenizerFast  # untyped upstream
        fast = fast_class(
            tokenizer_object=convert_slow_tokenizer(tokenizer),
            model_input_names=list(tokenizer.model_input_names),
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # upstream raises whatever its converters stumble on
        raise ModelError(
            f"The tokenizer {kind} has no tokenizer.json and can't be converted: {error}. {advice}"
        ) from error
    for text in sample:
        args = (text,) if isinstance(text, str) else tuple(text)
        if fast(*args)["input_ids"] != tokenizer(*args)["input_ids"]:
            raise ModelError(f"The tokenizer {kind} has no tokenizer.json and converts to other tokens. {advice}")
    return fast


def save_processor(source: OptimizedModel, directory: Path, sample: Sequence[Any], *, whole: bool) -> dict[str, Any]:
    """Writes what encodes for the model; gives the ``inputs`` section of ``slim.json``.

    Args:
        source: The model with its processor.
        directory: Where to write.
        sample: Inputs on which what was written must agree with the original.
        whole: True for every file ``from_pretrained`` reads, False for what our runtime needs.

    Raises:
        ModelError: A tokenizer has no fast form or no padding token, or images are made ready in a way of their own.
    """
    if hasattr(source.processor, "image_mean"):
        return _save_image_processor(source, directory, sample, whole=whole)
    return _save_tokenizer(source, directory, sample, whole=whole)


def _save_image_processor(
    source: OptimizedModel, directory: Path, sample: Sequence[Any], *, whole: bool
) -> dict[str, Any]:
    processor = source.processor
    settings = image_settings(processor)
    ours, theirs = (
        np.asarray(encode(list(sample))["pixel_values"])
        for encode in (ImageFile(settings), lambda texts: processor([decode(x) for x in texts], return_tensors="np"))
    )
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=1e-4):
        raise ModelError(
            f"{type(processor).__name__} makes images ready in a way of its own, which can't be done without it. Use a "
            "model whose processor resizes, crops, rescales and normalizes and does nothing else."
        )
    if whole:
        processor.save_pretrained(str(directory))
    return {"names": ["pixel_values"], "image": settings}


def image_settings(processor: Any) -> dict[str, Any]:
    """What transformers' processor does to an image, as `mlflow_slim.runtime.images.ImageFile` takes it."""

    def sides(size: Any) -> dict[str, int]:
        found = {
            key: getattr(size, key, None) or (size.get(key) if isinstance(size, Mapping) else None)
            for key in ("height", "width", "shortest_edge")
        }
        return {key: int(value) for key, value in found.items() if value}

    def asked(name: str) -> bool:
        return bool(getattr(processor, name, False))

    normal = asked("do_normalize")
    return {
        "size": sides(processor.size) if asked("do_resize") else None,
        "resample": 2 if getattr(processor, "resample", None) is None else int(processor.resample),
        "crop": sides(processor.crop_size) if asked("do_center_crop") else None,
        "factor": float(processor.rescale_factor) if asked("do_rescale") else 1.0,
        "mean": [float(x) for x in processor.image_mean] if normal else [0.0] * 3,
        "std": [float(x) for x in processor.image_std] if normal else [1.0] * 3,
    }


def _save_tokenizer(source: OptimizedModel, directory: Path, sample: Sequence[Any], *, whole: bool) -> dict[str, Any]:
    tokenizer = _fast(source.processor, sample)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} has no padding token, so texts can't be batched. "
            "Set tokenizer.pad_token before exporting."
        )
    if whole:
        tokenizer.save_pretrained(str(directory))
    else:
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    # upstream writes where it was loaded from, which is a path of the author's machine
    for path in directory.glob("tokenizer_config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("name_or_path", None)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    of_chats: dict[str, Any] = (
        chat_inputs(tokenizer, getattr(source.model, "generation_config", None))
        if tasks.find(source.task).KIND == "generator"
        else {}
    )
    return {**of_chats, "names": input_names(source.model, tokenizer), **padding_inputs(tokenizer)}


def padding_inputs(tokenizer: Any) -> dict[str, Any]:
    """How texts are padded and cut, for the ``inputs`` section of ``slim.json``; the tokenizer has a padding token."""
    return {
        "pad_token": str(tokenizer.pad_token),
        "pad_id": int(tokenizer.pad_token_id),
        "pad_type_id": int(getattr(tokenizer, "pad_token_type_id", 0)),
        "padding_side": str(tokenizer.padding_side),
        "truncation_side": str(tokenizer.truncation_side),
    }


def lengthened(text: Any, max_length: int) -> Any:
    """The input, or each text of a pair, repeated until it surely has more than ``max_length`` tokens.

    Not much more: tokenizers builds every combination of the parts it cuts off a pair.
    """
    if not isinstance(text, str):
        return tuple(lengthened(part, max_length) for part in text)
    return f"{text} " * (12 * max_length // (len(text) + 1) + 1)


def compare(
    expected: Callable[[Sequence[Any]], np.ndarray],
    found: Callable[[Sequence[Any]], np.ndarray],
    sample: Sequence[Any],
    *,
    max_length: int | None,
    tolerance: float,
    what: str,
) -> float:
    """Largest difference of two ways to answer, over batches of several sizes and lengths, padding included.

    Args:
        expected: Raw outputs of the source for a batch.
        found: Raw outputs of the exported model for the same batch.
        sample: Real inputs; the shortest, the longest, all, and one past any ``max_length`` are tried.
        max_length: Tokens at which inputs are cut off; None where they have no length.
        tolerance: Largest difference allowed, as a share of the largest output (and 1e-5 beside it).
        what: Names the exported model in the message.

    Raises:
        ExportError: The difference is above the tolerance, or an output is not finite.
    """
    if not sample:
        raise ExportError("Checking the exported model needs a sample of inputs, got none. Pass a few rows.")

    def size(text: Any) -> int:
        return len(text) if isinstance(text, str) else sum(map(len, text))

    ordered = sorted(sample, key=size)
    longest = ordered[-1]
    batches = [ordered[:1], [ordered[0], longest], ordered[:32][::-1]]
    if max_length is not None:
        batches.append([lengthened(longest, max_length)])
    worst = 0.0
    for batch in batches:
        wanted, got = expected(batch), found(batch)
        if not np.isfinite(wanted).all():
            raise ModelError(
                "The model itself answers with values that are no numbers. Its weights are damaged, or training "
                "went wrong: look for NaN in them."
            )
        if wanted.shape != got.shape or not np.isfinite(got).all():
            raise ExportError(
                f"{what} gives outputs of shape {got.shape} (finite: {bool(np.isfinite(got).all())}), "
                f"its source {wanted.shape}. The model can't be exported this way."
            )
        difference = float(np.abs(wanted - got).max())
        allowed = 1e-5 + tolerance * float(np.abs(wanted).max())
        if difference > allowed:
            raise ExportError(
                f"{what} differs from its source by {difference:.2g} on a batch of {len(batch)}, "
                f"more than the {allowed:.2g} allowed. It was not kept."
            )
        worst = max(worst, difference)
    return worst


def write(
    source: OptimizedModel,
    directory: Path,
    *,
    backend: str,
    inputs: Mapping[str, Any],
    notes: Mapping[str, Any],
    engine: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``slim.json``, then ``manifest.json``, the last file; ``engine`` is how to run it, where not as usual."""
    parameters, nonzero = count_parameters(source.model)
    content = {
        "format": FORMAT,
        "backend": backend,
        "task": source.task,
        "spec": dict(source.spec),
        "inputs": dict(inputs),
        "lineage": [asdict(record) for record in source.lineage],
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "notes": dict(notes),
        "mlflow_slim_version": __version__,
    }
    if engine:
        content["engine"] = dict(engine)
    save(directory, content)


def save(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` as ``slim.json``, then ``manifest.json`` over all that lies there."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=_plain)
    (directory / NAME).write_text(text + "\n", encoding="utf-8")
    manifest.write(directory)


def adopt(source: OptimizedModel, directory: Path, *, backend: str) -> ExportedModel:
    """Copies the folder that a step built for ``backend`` into ``directory``, with the lineage of ``source``.

    Raises:
        ExportError: There is no build for this backend, or ``directory`` exists or can't be written.
        IntegrityError: The build is not what its manifest says.
    """
    if backend not in source.builds:
        raise ExportError(
            f"{source.variant} exists only for {', '.join(source.builds)}, not for {backend}. "
            f"Write export.backends={','.join(source.builds)}."
        )
    built = source.builds[backend]
    try:
        content = read_bundle(built).content
    except BundleError as error:
        raise IntegrityError(str(error)) from error
    with staged(Path(directory)) as work:
        shutil.copytree(built, work, dirs_exist_ok=True)
        write(
            source,
            work,
            backend=backend,
            inputs=content["inputs"],
            notes=content["notes"],
            engine=content.get("engine"),
        )
    return read(directory, verify=False)


def set_engine(directory: Path, engine: Mapping[str, Any]) -> None:
    """Adds to how an exported folder is run, see `mlflow_slim.runtime.predictor.load`."""
    content = json.loads((directory / NAME).read_text(encoding="utf-8"))
    content["engine"] = {**content.get("engine", {}), **engine}
    save(directory, content)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def content_digest(directory: str | Path) -> str:
    """sha256 over what decides the answers, hex: weights, tokenizer, task and engine, not how the model was made.

    Two folders with the same one are the same model on the same runtime, whenever they were made.
    """
    directory = Path(directory)
    content = json.loads((directory / NAME).read_text(encoding="utf-8"))
    files = json.loads((directory / manifest.NAME).read_text(encoding="utf-8"))["files"]
    deciding = {key: content.get(key) for key in ("backend", "engine", "task", "spec", "inputs")}
    listed = {name: entry["sha256"] for name, entry in files.items() if name != NAME}
    text = json.dumps([deciding, listed], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find(directory: str | Path) -> Path:
    """The bundle's folder in a bundle or in a saved MLflow model of ours.

    Raises:
        IntegrityError: There is no bundle in either place.
    """
    directory = Path(directory)
    for folder in (directory, directory / "bundle"):
        if (folder / NAME).is_file():
            return folder
    raise IntegrityError(
        f"{directory} holds no {NAME}, so it is no model of mlflow_slim. Give one that a recipe logged."
    )


def read(directory: str | Path, *, verify: bool = True) -> ExportedModel:
    """The exported model in a folder, compared with its manifest first.

    Raises:
        IntegrityError: No bundle there, or a file differs from the manifest.
    """
    try:
        bundle = read_bundle(directory, verify=verify)
        content = bundle.content
        lineage = tuple(
            StepRecord(
                record["technique"],
                record["options"],
                record["notes"],
                OptimizationCost(**record["cost"]) if record["cost"] else None,
            )
            for record in content["lineage"]
        )
        return ExportedModel(
            directory=Path(directory),
            backend=bundle.backend,
            task=bundle.task,
            spec=bundle.spec,
            lineage=lineage,
            parameters=int(content["parameters"]),
            nonzero_parameters=int(content["nonzero_parameters"]),
            notes=content["notes"],
        )
    except BundleError as error:
        raise IntegrityError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{Path(directory) / NAME} lacks or garbles {error}. Export the model again.") from error
