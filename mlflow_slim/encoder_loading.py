"""Loads an encoder with the head of a task from a local folder, and refuses one that would be partly random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import OptimizedModel
from .errors import ModelError, first_line
from .interfaces import Task

if TYPE_CHECKING:
    from .data.tables import InputKind

__all__ = ["check_offsets", "load_encoder", "load_processor", "load_with_head"]

_KINDS = {
    "texts": "a text encoder saved by transformers",
    "images": "an image model saved by transformers with its preprocessor_config.json",
}


def load_encoder(
    directory: Path,
    task: Task,
    spec: Mapping[str, Any],
    *,
    max_length: int | None,
    seed: int,
    settings: Mapping[str, Any],
    special_tokens_of_pairs: bool = False,
    usual_length: int | None = None,
) -> OptimizedModel:
    """A model with the task's head; ``trained`` is False when the head is fresh.

    Weights are loaded as float32 from safetensors only, no code of the model's own runs, and the network is not asked.

    Args:
        directory: A folder that passed `mlflow_slim.safety.check_model_directory`.
        task: Whose class loads it.
        spec: What the task learned from the data; ``max_length`` is added.
        max_length: Longest input in tokens; None for the model's own limit.
        seed: Seed of a fresh head.
        settings: What its configuration says of the head.
        special_tokens_of_pairs: Whether an input is two texts.
        usual_length: Longest input where ``max_length`` is None and the model takes as much; None for its own limit.

    Raises:
        ModelError: transformers can't load it, its encoder isn't all there, or ``max_length`` is more than it
            can take.
    """
    model, tokenizer, fresh = load_with_head(directory, task, seed=seed, settings=settings)
    limit = _length_limit(model, tokenizer)
    least = tokenizer.num_special_tokens_to_add(pair=special_tokens_of_pairs) + 1
    if max_length is not None and max_length < least:
        raise ModelError(
            f"max_length is {max_length}, which leaves no room for text: this tokenizer adds {least - 1} tokens of "
            "its own. Raise it, or leave it out."
        )
    if max_length is not None and limit is not None and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but this model takes {limit} tokens at most. Lower it, or leave it out."
        )
    if getattr(model.config, "pad_token_id", None) is None:
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"The tokenizer in {str(directory)!r} has no padding token, so texts can't be batched. "
                "Set one (tokenizer.pad_token = ...) and save the model again."
            )
        model.config.pad_token_id = tokenizer.pad_token_id
    own = {**spec, "max_length": max_length or min(x for x in (usual_length, limit or 512) if x)}
    return OptimizedModel(model.eval(), tokenizer, task.name, own, trained=not fresh, source=str(directory))


def check_offsets(tokenizer: Any, what: str) -> None:
    """Raises ModelError when a tokenizer doesn't say which characters its tokens stand for; ``what`` is sought."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} doesn't say which characters a token stands for, so {what} can't be "
            "found in it. Use the model's fast tokenizer (a folder with tokenizer.json)."
        )


def load_with_head(directory: Path, task: Task, *, seed: int, settings: Mapping[str, Any]) -> tuple[Any, Any, bool]:
    """A model, its tokenizer or image processor, and whether the head is fresh; see `load_encoder`.

    Raises:
        ModelError: transformers can't load it, or its encoder isn't all there.
    """
    import torch
    import transformers

    from .runtime.narrowed import narrow, shapes_in
    from .runtime.torch_engine import quiet_transformers

    auto: Any = getattr(transformers, task.library_class)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            processor = load_processor(directory, task.inputs)
            model, info = auto.from_pretrained(
                str(directory),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                **settings,
            )
            if shapes := shapes_in(directory):
                info = narrow(model, info, directory, shapes)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"transformers can't load {str(directory)!r} for {task.name}: {first_line(error)} Give a folder or "
            f"hub id of {_KINDS[task.inputs]}."
        ) from error
    _check_encoder(model, info, directory)
    fresh = bool(info["missing_keys"]) or bool(info.get("mismatched_keys"))
    return model, processor, fresh


def _check_encoder(model: Any, info: Mapping[str, Any], directory: Path) -> None:
    """Refuses a model whose encoder would be partly random, which transformers fills in without an error.

    Only the head, and the pooler that masked language models come without, may be fresh.

    Raises:
        ModelError: Weights of the encoder are missing, or have other shapes than ``config.json`` says.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = {str(key): "is missing" for key in info["missing_keys"] if ".pooler." not in f".{key}"}
    mismatched = {
        str(key): f"is {tuple(found)} and not {tuple(wanted)}" for key, found, wanted in info.get("mismatched_keys", ())
    }
    faults = {key: how for key, how in sorted({**missing, **mismatched}.items()) if key.startswith(prefix)}
    if faults:
        key, how = next(iter(faults.items()))
        raise ModelError(
            f"{len(faults)} weights of the encoder in {str(directory)!r} don't fit its config.json: {key} {how}. "
            "They would be random. Copy or download the model again, weights and config together."
        )


def _length_limit(model: Any, tokenizer: Any) -> int | None:
    """Most tokens the model can take, None when it has no limit.

    RoBERTa-like models count positions from ``padding_idx + 1``, so their table holds fewer than it has rows.
    """
    limits = []
    if 0 < tokenizer.model_max_length < 10**9:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        offset = 0
        for name, module in model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                offset = int(module.padding_idx) + 1
        limits.append(positions - offset)
    return min(limits) if limits else None


def load_processor(directory: Path, inputs: InputKind) -> Any:
    """The tokenizer, or the image processor, of a folder that ``save_pretrained`` wrote."""
    from transformers import AutoImageProcessor, AutoTokenizer

    from .runtime.torch_engine import quiet_transformers

    kind: Any = AutoImageProcessor if inputs == "images" else AutoTokenizer  # their types are of other calls
    own = {"backend": "pil"} if inputs == "images" else {"use_fast": True}
    with quiet_transformers():
        return kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False, **own)
