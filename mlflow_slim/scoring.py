"""Raw outputs of a model in memory over many rows, in batches of like length, and its validation score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .runtime.predictor import concatenate

if TYPE_CHECKING:
    import numpy as np

    from .artifact import OptimizedModel
    from .interfaces import Context

__all__ = ["outputs_of", "validation_scorer"]


Rows: TypeAlias = Sequence[Mapping[str, Any]]


def outputs_of(
    model: Any,
    processor: Any,
    rows: Rows,
    answers: Callable[[Any, Mapping[str, Any], Rows], np.ndarray] | None = None,
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """What a model answers to rows, float32, in their order.

    Args:
        model: A transformers model, in eval mode.
        processor: Its tokenizer, for padding, or image processor.
        rows: Token ids or pixels row by row; columns that aren't the model's inputs are left out.
        answers: From what the model gives for a batch, the batch, and its rows, to ``(rows, ...)``; None for the
            logits. Those with fewer words are filled up with zeros.
        batch_size: Rows per forward pass.
    """
    import numpy as np
    import torch

    from .training import as_batch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i].get("input_ids", ())))
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in as_batch(processor, [rows[i] for i in chosen]).items()}
            found = model(**batch)
            if answers is None:
                parts.append(found.logits.float().cpu().numpy())
            else:
                parts.append(answers(found, batch, [rows[i] for i in chosen]))
    ordered = concatenate(parts)
    outputs = np.empty_like(ordered)
    outputs[order] = ordered
    return outputs


def validation_scorer(source: OptimizedModel, context: Context) -> tuple[str, Callable[[Any], float]]:
    """The metric to choose epochs by, and a function of the model that gives it on the validation rows.

    It is the user's metric or else the one that the labels call for, as in the final judgement, seen on other rows;
    the task may know one that goes with it and costs less.
    """
    task, validation = context.task, context.data.validation
    metric = task.training_metric(context.metric or task.headline(validation.references, source.spec)[0])

    def score(model: Any) -> float:
        outputs = task.outputs(model, source.processor, validation.inputs, source.spec)
        return task.judge(metric, outputs, validation.references, source.spec)

    return metric, score
