"""The one training loop: transformers' Trainer with a loss of ours, progress people can read, and a stop on NaN.

Nothing is reported to MLflow or CodeCarbon from here (``report_to=[]``): transformers would log some 200
parameters and start a second emissions tracker when both are installed. Under torchrun
Trainer splits every batch's work among the processes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import TrainingDiverged
from .runtime.torch_engine import quiet_transformers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .artifact import OptimizedModel
    from .interfaces import Context, Split

__all__ = ["FitOptions", "FitResult", "as_batch", "collate", "fit", "pad_before", "pad_behind", "training_rows"]

logger = logging.getLogger(__name__)
BAD_STEPS = 3
"""So many steps in a row with a loss that isn't finite end the training; one alone may be an overflow."""


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the rows, > 0; a fraction is allowed.
        learning_rate: Peak of AdamW's linear schedule with warm-up over the first tenth.
        batch_size: Rows per step.
        weight_decay: Decoupled decay, >= 0.
    """

    epochs: float
    learning_rate: float
    batch_size: int
    weight_decay: float = 0.01


@dataclass(frozen=True)
class FitResult:
    """What training reached.

    Attributes:
        losses: Mean loss of each epoch.
        scores: Validation score after each epoch, of the metric ``metric``.
        best_epoch: The epoch (from 1) whose weights the model now has.
        metric: Name of the validation metric; the best epoch is chosen by it.
        steps: Optimizer steps taken.
    """

    losses: list[float]
    scores: list[float]
    best_epoch: int
    metric: str
    steps: int

    def notes(self) -> dict[str, Any]:
        """As JSON values, for a step's record."""
        return {
            "losses": [round(loss, 5) for loss in self.losses],
            "validation": [round(score, 5) for score in self.scores],
            "validation_metric": self.metric,
            "best_epoch": self.best_epoch,
            "training_steps": self.steps,
        }


@dataclass
class _Progress:
    """What the callback collects while Trainer runs."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bad_steps: int = 0
    total: float = 0.0
    count: int = 0
    best: dict[str, Any] | None = None
    best_epoch: int = 0
    diverged_at: int | None = None


def training_rows(
    source: OptimizedModel,
    split: Split,
    context: Context,
    extra: Mapping[str, Any] | None = None,
    *,
    only: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Dicts for `fit`, one for each part that the task makes of a row: tokens, ``labels`` and what else the loss needs.

    Args:
        source: Whose tokens.
        split: The rows.
        context: The task.
        extra: Further columns by name, one value for each of the rows asked for, in the form of the task's outputs.
        only: Numbers of the rows; None for all.
    """
    numbers = range(len(split)) if only is None else only
    task = context.task
    encoded = task.encode(source.processor, [split.inputs[i] for i in numbers], source.spec)
    rows = []
    for place, row in enumerate(encoded):
        i = row.get("row", place)
        labels = row["labels"] if "labels" in row else task.align(row, split.references[numbers[i]])
        own = {name: row[name] for name in row if name in source.processor.model_input_names}
        rows.append({**own, "labels": labels, **{name: task.align(row, v[i]) for name, v in (extra or {}).items()}})
    return rows


def collate(processor: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as one batch of tensors: the model's inputs padded to the longest, and the other columns stacked."""
    import numpy as np
    import torch

    tensors = set(processor.model_input_names)
    padded = as_batch(processor, rows)
    for name in (k for k in rows[0] if k not in tensors):
        values = [np.asarray(row[name]) for row in rows]
        # Of a token: labels are padded with -100, where nothing is learned, and logits with what can't be.
        filling = -np.inf if values[0].dtype.kind == "f" else -100
        padded[name] = torch.as_tensor(pad_behind(values, filling))
    return dict(padded)


def as_batch(processor: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The model's inputs of rows as tensors: tokens padded to the longest, pixels as they are."""
    import numpy as np
    import torch

    own = [{name: row[name] for name in row if name in processor.model_input_names} for row in rows]
    if hasattr(processor, "pad_token_id"):
        return dict(processor.pad(own, return_tensors="pt"))
    return {name: torch.from_numpy(np.stack([row[name] for row in own])) for name in own[0]}


def pad_before(prompts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Tokens and mask ``(rows, tokens)`` of prompts that end at the same place, so that all are gone on from there."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def fit(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    loss: Callable[[Any, dict[str, Any], dict[str, Any]], Any],
    score: Callable[[Any], float],
    options: FitOptions,
    context: Context,
    *,
    metric: str,
    label: str,
) -> FitResult:
    """Trains ``model`` in place and leaves it in eval mode with the weights of its best epoch.

    Batches hold rows of like length, padded to the longest of the batch.

    Args:
        model: A transformers model.
        processor: Its tokenizer, for padding.
        rows: What `training_rows` gave.
        loss: Called as ``loss(model, inputs, extra)``: ``inputs`` are the model's tensors,
            ``extra`` the other columns as tensors; returns the scalar to minimise.
        score: Called with the model after each epoch; higher is better.
        options: How long and how fast.
        context: Seed, device, folder, progress.
        metric: What ``score`` gives, for messages.
        label: What is being trained, for messages.

    Raises:
        TrainingDiverged: The loss was not finite for three steps in a row.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    progress = _Progress()
    tensors = set(processor.model_input_names)
    epochs = math.ceil(options.epochs)

    class Callback(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            epoch = len(progress.losses) + 1
            progress.losses.append(progress.total / max(progress.count, 1))
            progress.total, progress.count = 0.0, 0
            if progress.diverged_at is not None:
                return
            model.eval()
            reached = float(score(model))
            model.train()
            if not progress.scores or reached > max(progress.scores):
                progress.best_epoch = epoch
                # The last epoch's weights are in the model already, so keep a copy only of earlier ones.
                last = epoch >= epochs
                progress.best = None if last else _trained_state(model)
            progress.scores.append(reached)
            logger.info(
                "%s: epoch %d/%d, loss %.4f, validation %s %.4f",
                label,
                epoch,
                epochs,
                progress.losses[-1],
                metric,
                reached,
            )
            context.report(f"{label}/loss", progress.losses[-1], epoch)
            context.report(f"{label}/validation_{metric}", reached, epoch)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
            if progress.bad_steps >= BAD_STEPS:
                progress.diverged_at = state.global_step
                control.should_training_stop = True
            return control

    class LossTrainer(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,  # noqa: ARG002
        ) -> Any:
            own = {k: v for k, v in inputs.items() if k in tensors}
            extra = {k: v for k, v in inputs.items() if k not in tensors}
            value = loss(model, own, extra)
            number = float(value.detach())
            progress.bad_steps = 0 if math.isfinite(number) else progress.bad_steps + 1
            if math.isfinite(number):
                progress.total += number
                progress.count += 1
            return (value, None) if return_outputs else value

    with quiet_transformers():
        arguments = TrainingArguments(
            output_dir=str(context.workdir),
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            weight_decay=options.weight_decay,
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length" if "input_ids" in rows[0] else "random",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            seed=context.seed,
            data_seed=context.seed,
            use_cpu=context.device == "cpu",
            disable_tqdm=not context.show_progress,
            dataloader_pin_memory=context.device != "cpu",
        )
        trainer = LossTrainer(
            model=model,
            args=arguments,
            train_dataset=list(rows),
            data_collator=functools.partial(collate, processor),
            processing_class=processor,
            callbacks=[Callback()],
        )
        trainer.remove_callback(PrinterCallback)
        if not context.show_progress:
            trainer.remove_callback(ProgressCallback)
        outcome = trainer.train()
    if progress.diverged_at is not None:
        raise TrainingDiverged(
            f"{label}: the loss was not finite for {BAD_STEPS} steps in a row, up to step {progress.diverged_at} "
            f"(learning_rate {options.learning_rate:g}). Lower the learning rate, or look for broken rows."
        )
    if progress.best is not None and progress.best_epoch < len(progress.scores):
        model.load_state_dict(progress.best, strict=False)
    model.eval()
    return FitResult(progress.losses, progress.scores, progress.best_epoch, metric, int(outcome.global_step))


def _trained_state(model: Any) -> dict[str, Any]:
    """A copy on the CPU of all that training may change: what is frozen is left out, with what belongs to it."""
    frozen = {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return {
        name: value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if name not in frozen and not any(name.startswith(f"{other}.") for other in frozen)
    }


def pad_behind(values: Sequence[Any], filling: float) -> np.ndarray:
    """Arrays with the same number of axes as one array, the shorter ones filled up."""
    import numpy as np

    arrays = [np.asarray(value) for value in values]
    if len(shapes := {array.shape for array in arrays}) > 1:
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        behind = [[(0, n - own) for n, own in zip(largest, array.shape, strict=True)] for array in arrays]
        arrays = [np.pad(a, more, constant_values=filling) for a, more in zip(arrays, behind, strict=True)]
    return np.stack(arrays)
