"""Raw outputs of a model in memory over many rows, in batches of like length, and its validation score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .artifact import OptimizedModel
    from .interfaces import Context

__all__ = ["outputs_of", "validation_scorer"]


def outputs_of(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 64) -> np.ndarray:
    """Logits ``(rows, classes)``, float32, in the rows' order.

    Args:
        model: A transformers model, in eval mode.
        processor: Its tokenizer, for padding.
        rows: Token ids row by row; columns that aren't the model's inputs are left out.
        batch_size: Rows per forward pass.
    """
    import numpy as np
    import torch

    tensors = set(processor.model_input_names)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    device = next(model.parameters()).device
    outputs: np.ndarray | None = None
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = processor.pad(
                [{k: v for k, v in rows[i].items() if k in tensors} for i in chosen], return_tensors="pt"
            )
            logits = model(**batch.to(device)).logits.float().cpu().numpy()
            if outputs is None:
                outputs = np.empty((len(rows), *logits.shape[1:]), dtype=np.float32)
            outputs[chosen] = logits
    assert outputs is not None, "there is at least one row"
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
