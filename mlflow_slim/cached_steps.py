"""What decides the outcome of a step, and outcomes on disk and back: between the pipeline and the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import bundle
from .artifact import OptimizationCost, OptimizedModel, StepRecord
from .cache import VARIABLE, Entry, StepCache, code_digest, content_key, files_digest
from .catalog import load_backend, load_task
from .encoder_loading import load_processor
from .interfaces import MODEL_OPTIONS, Context, Technique
from .runtime import tasks
from .runtime.narrowed import KEY
from .runtime.torch_engine import load_model

__all__ = ["do_cached", "model_digest", "step_key"]

logger = logging.getLogger(__name__)
_SAYS_NOTHING = frozenset(
    (
        *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"),
        *("id2label", "label2id", "problem_type", KEY),
    )
)
"""What saving and loading changes in a configuration, and what weights, spec and shapes say already."""
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "peft", "onnxruntime", "openvino", "nncf", "accelerate")


def step_key(
    step: Technique, source: OptimizedModel, context: Context, find_model: Callable[[str], Path] | None
) -> str:
    """The content key of a step: everything that its outcome depends on.

    Args:
        step: The technique with its options.
        source: The model it starts from.
        context: Rows, seed, device, original.
        find_model: Gives the folder of a model that the step names, by that name.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    options: Any = step
    others = {option: getattr(step, option, None) for option in MODEL_OPTIONS}
    return content_key(
        {
            "technique": step.name,
            "options": options.model_dump(mode="json"),
            "code": code_digest(),
            "source": model_digest(source),
            "original": model_digest(context.original) if context.original is not None else None,
            **{
                option: files_digest(find_model(name)) if name and find_model else None
                for option, name in others.items()
            },
            "train": context.data.train.digest,
            "validation": context.data.validation.digest,
            "seed": context.seed,
            "threads": context.threads,  # sums in another order are other weights after a while
            "device": context.device.split(":")[0],
            "metric": context.metric,
            "backends": sorted(context.backends) if getattr(step, "runs_on", ()) else None,
            "machine": platform.machine(),
            "versions": versions,
        }
    )


def model_digest(model: OptimizedModel) -> str:
    """sha256 over weights, shapes, configuration, tokenizer and spec."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    config = {key: value for key, value in model.model.config.to_dict().items() if key not in _SAYS_NOTHING}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    if hasattr(model.processor, "backend_tokenizer"):
        tokenizer = json.loads(model.processor.backend_tokenizer.to_str())
        settings = ("truncation", "padding")  # left from its last call
        kept = {key: value for key, value in tokenizer.items() if key not in settings}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    elif hasattr(model.processor, "image_mean"):
        digest.update(json.dumps(bundle.image_settings(model.processor), sort_keys=True).encode())
    digest.update(json.dumps(dict(model.spec), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def do_cached(
    step: Technique,
    source: OptimizedModel,
    context: Context,
    work: Callable[[], OptimizedModel],
    find_model: Callable[[str], Path] | None = None,
) -> OptimizedModel:
    """The outcome of ``work``, which does the step, or the same from the cache; its last record has its cost.

    Args:
        step: The technique with its options.
        source: The model it starts from.
        context: What it gets besides.
        work: Does the step and gives its outcome, with the cost in its last record.
        find_model: As for `step_key`.
    """
    cache = StepCache.from_environment() if int(os.environ.get("WORLD_SIZE", "1")) == 1 else None
    if cache is None or not hasattr(step, "model_dump"):
        return work()
    key = step_key(step, source, context, find_model)
    with cache.locked(key):
        entry = cache.find(key)
        if entry is not None:
            try:
                return _load(entry, step, source)
            except Exception as error:  # an entry that can't be used is no reason to fail
                logger.warning("A cached step can't be loaded (%s); it is done again", error)
                return work()
        outcome = work()
        content = {
            "technique": step.name,
            "record": asdict(outcome.lineage[-1]),
            "spec": dict(outcome.spec),
            "source": outcome.source,
            "builds": sorted(outcome.builds),
        }
        parameters = bundle.count_parameters(outcome.model)[0]
        cache.store(key, content, lambda folder: _write(outcome, context, folder), size=4 * parameters)
        return outcome


def _write(outcome: OptimizedModel, context: Context, folder: Path) -> None:
    import shutil

    if outcome.builds:
        for name, built in outcome.builds.items():
            shutil.copytree(built, folder / "builds" / name)
    else:
        load_backend("torch").export(outcome, folder / "model", context.data.validation.inputs[:8])


def _load(entry: Entry, step: Technique, source: OptimizedModel) -> OptimizedModel:
    content = entry.content
    stored = content["record"]
    cost = stored["cost"]
    record = StepRecord(
        stored["technique"],
        stored["options"],
        stored["notes"],
        replace(OptimizationCost(**cost), reused=True) if cost else None,
    )
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(content["created"]))
    logger.info("%s: done on %s already, taken from the cache (%s=off does it anew)", step.name, when, VARIABLE)
    if content["builds"]:
        builds = {name: entry.folder / "builds" / name for name in content["builds"]}
        return source.after(record, source.model, builds=builds)
    folder = entry.folder / "model"
    model = load_model(folder, tasks.find(source.task).LIBRARY_CLASS).eval()
    return source.after(
        record, model, processor=load_processor(folder, load_task(source.task).inputs), spec=content["spec"]
    )
