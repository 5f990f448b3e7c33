"""``finetune.lora``: small matrices of low rank beside the frozen ones are trained and then merged into them.

Hu et al. 2021 (arXiv:2106.09685), through peft. What is trained fits in a few MiB; after merging, the model is an
ordinary one with the shape and the latency of the one it came from.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ModelError
from ..interfaces import Context
from ..learning import learn_labels
from ..runtime.torch_engine import quiet_transformers
from ..structure import find_parts
from ..training import FitOptions

__all__ = ["FinetuneLora"]


class FinetuneLora(BaseModel):
    """Trains low-rank adapters and the task's head on the labels, then merges the adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "finetune.lora"
    generates: ClassVar[bool] = True

    rank: int = Field(8, ge=1, le=1024, description="Rank of each adapter.")
    alpha: int = Field(16, ge=1, description="Scale of the adapters; they count alpha / rank times.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what the adapters read.")
    targets: Literal["attention", "all"] = Field(
        "all", description="Which matrices get an adapter: attention, or those of the feed-forward parts too."
    )
    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate of AdamW; adapters take a high one.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when it isn't known where this model's matrices are; looks at names only."""
        find_parts(source.model)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """A trained copy of ``source`` with the adapters merged.

        Raises:
            ModelError: The parts of this architecture aren't known, or merging changed the answers.
            TrainingDiverged: The loss became NaN or infinite.
        """
        import numpy as np
        import torch
        from peft import LoraConfig, get_peft_model

        chosen = [
            name
            for parts in find_parts(source.model)
            for name in (*parts.queries, parts.mixed, *((*parts.up, parts.down) if self.targets == "all" else ()))
        ]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
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
        options = FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay)
        notes |= learn_labels(replace(source, model=adapted), context, options, label=self.name).notes()
        rows = context.data.validation.inputs[: context.task.check_rows]
        expected = context.task.outputs(adapted.eval(), source.processor, rows, source.spec)
        merged = adapted.merge_and_unload()
        for weight in merged.parameters():
            weight.requires_grad_(True)
        merged.__dict__.pop("peft_config", None)
        merged.__dict__.pop("_hf_peft_config_loaded", None)
        found = context.task.outputs(merged, source.processor, rows, source.spec)
        if not np.allclose(expected, found, rtol=1e-3, atol=1e-3):
            raise ModelError("Merging the adapters changed the answers. Use finetune.full for this model.")
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), merged.eval())


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
