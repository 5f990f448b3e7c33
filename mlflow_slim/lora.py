"""Small matrices of low rank are trained beside frozen ones and merged: Hu et al. 2021, arXiv:2106.09685, by peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

from .artifact import OptimizedModel
from .errors import ModelError
from .interfaces import Context
from .learning import learn_labels
from .runtime.torch_engine import quiet_transformers
from .structure import find_parts
from .training import FitOptions

__all__ = ["Adapters", "learn_adapters"]


@dataclass(frozen=True)
class Adapters:
    """What is trained.

    Attributes:
        rank: Rank of each adapter, >= 1.
        alpha: Scale; adapters count alpha / rank times.
        dropout: Dropout on what the adapters read, 0 to below 1.
        targets: Which matrices get one: attention, or those of the feed-forward parts too.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: Literal["attention", "all"] = "all"


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
    from peft import LoraConfig, get_peft_model

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
        adapted: Any = get_peft_model(copy.deepcopy(source.model), config)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    notes: dict[str, Any] = {
        "adapted_matrices": len(chosen),
        "adapter_parameters": sum(weight.numel() for weight in trained),
        "adapter_mib": round(sum(weight.numel() * weight.element_size() for weight in trained) / 2**20, 3),
    }
    notes |= learn_labels(replace(source, model=adapted), context, options, label=label).notes()
    rows = context.data.validation.inputs[: context.task.check_rows]
    expected = context.task.outputs(adapted.eval(), source.processor, rows, source.spec)
    merged = adapted.merge_and_unload()
    for weight in merged.parameters():
        weight.requires_grad_(True)
    merged.__dict__.pop("peft_config", None)
    merged.__dict__.pop("_hf_peft_config_loaded", None)
    found = context.task.outputs(merged, source.processor, rows, source.spec)
    if not np.allclose(expected, found, rtol=1e-3, atol=1e-3):
        raise ModelError("Merging the adapters changed the answers. Train all weights of this model instead.")
    return merged.eval(), notes


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
