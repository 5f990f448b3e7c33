"""Small matrices of low rank are trained beside frozen ones and merged: Hu et al. 2021, arXiv:2106.09685, by peft.

The frozen ones may be kept in 4 bits meanwhile (QLoRA: Dettmers et al. 2023, arXiv:2305.14314, by bitsandbytes), which
is for memory: a large model then fits beside its training.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from typing import Any, Literal

from .artifact import OptimizedModel
from .errors import MissingDependency, ModelError
from .interfaces import Context
from .learning import learn_labels
from .runtime.torch_engine import quiet_transformers
from .structure import find_parts
from .training import FitOptions

__all__ = ["Adapters", "check_nf4", "learn_adapters"]

_TOLERANCE = {"float": 1e-3, "nf4": 2e-2}
"""Of answers before and after merging; kernels of 4-bit weights add up in another order and precision."""


@dataclass(frozen=True)
class Adapters:
    """What is trained.

    Attributes:
        rank: Rank of each adapter, >= 1.
        alpha: Scale; adapters count alpha / rank times.
        dropout: Dropout on what the adapters read, 0 to below 1.
        targets: Which matrices get one: attention, or those of the feed-forward parts too.
        base: How the frozen matrices are kept while training: as they are, or in 4 bits.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: Literal["attention", "all"] = "all"
    base: Literal["float", "nf4"] = "float"


def check_nf4() -> None:
    """Raises MissingDependency when bitsandbytes isn't installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(
            "base=nf4 needs bitsandbytes. Install it with: pip install 'mlflow_slim[qlora]'; or write base=float."
        )


def learn_adapters(
    source: OptimizedModel, context: Context, options: FitOptions, adapters: Adapters, *, label: str
) -> tuple[Any, dict[str, Any]]:
    """A copy of the model with adapters that were trained on the labels and merged, and what to note about it.

    Raises:
        ModelError: The parts of this architecture aren't known, or merging changed the answers.
        TrainingDiverged: The loss became NaN or infinite.
    """
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    wide = adapters.targets == "all"
    chosen = [
        name
        for parts in find_parts(source.model)
        for name in (*parts.queries, parts.mixed, *((*parts.up, parts.down) if wide else ()))
    ]
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=chosen,
        modules_to_save=_head_of(source.model),
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        base, plain = copy.deepcopy(source.model), None
        if adapters.base == "nf4":
            before = _nbytes(base)
            plain = _to_nf4(base, context.device)
        adapted: Any = get_peft_model(base, config)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    notes: dict[str, Any] = {
        "adapted_matrices": len(chosen),
        "adapter_parameters": sum(weight.numel() for weight in trained),
        "adapter_mib": round(sum(weight.numel() * weight.element_size() for weight in trained) / 2**20, 3),
    }
    if plain is not None:
        notes["frozen_mib"] = {"float": round(before / 2**20, 2), "nf4": round(_nbytes(base) / 2**20, 2)}
    notes |= learn_labels(replace(source, model=adapted), context, options, label=label).notes()
    rows = context.data.validation.inputs[: context.task.check_rows]
    expected = context.task.outputs(adapted.eval(), source.processor, rows, source.spec)
    if plain is not None:  # peft would round the sum to 4 bits again
        state = get_peft_model_state_dict(adapted)
        adapted = get_peft_model(plain, config)
        set_peft_model_state_dict(adapted, state)
    merged = adapted.merge_and_unload()
    for weight in merged.parameters():
        weight.requires_grad_(True)
    merged.__dict__.pop("peft_config", None)
    merged.__dict__.pop("_hf_peft_config_loaded", None)
    found = context.task.outputs(merged, source.processor, rows, source.spec)
    if not np.allclose(expected, found, rtol=(near := _TOLERANCE[adapters.base]), atol=near):
        raise ModelError("Merging the adapters changed the answers. Train all weights of this model instead.")
    return merged.eval(), notes


def _nbytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _to_nf4(model: Any, device: str) -> Any:
    """Puts the linear matrices of a model but its head into 4 bits, in place.

    Returns:
        A float model with the weights that the 4 bits stand for, on the CPU.
    """
    import bitsandbytes
    import torch

    upstream: Any = bitsandbytes  # untyped
    plain = copy.deepcopy(model)
    outside = [model.get_output_embeddings(), *(model.get_submodule(name) for name in _head_of(model))]
    kept = {id(part) for module in outside if module is not None for part in module.modules()}
    for name, old in list(model.named_modules()):
        if not isinstance(old, torch.nn.Linear) or id(old) in kept:
            continue
        new = upstream.nn.Linear4bit(
            old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=old.weight.dtype
        )
        # On CPUs with bfloat16 it would pack weights for answering when it is asked in between, and train with those.
        new.support_avx512bf16_for_cpu = False
        new.weight = upstream.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = old.bias
        new = new.to(device)  # this rounds
        stands_for = upstream.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
        plain.get_submodule(name).weight.data.copy_(stands_for)
        model.set_submodule(name, new)
    model.is_loaded_in_4bit = True  # how peft knows
    return plain


def _head_of(model: Any) -> list[str]:
    """Names of what belongs to the task and not to the encoder, trained in full: it may be fresh.

    A language model's head is its output embedding and never fresh.
    """
    if model.get_output_embeddings() is not None:
        return []
    prefix = model.base_model_prefix
    head = [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]
    if getattr(getattr(model, prefix, None), "pooler", None) is not None:
        head.append(f"{prefix}.pooler")
    return head
