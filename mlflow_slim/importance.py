"""How much the answers depend on each unit of a model: scores that say what to take out first.

A unit is a column of what a matrix takes in: a head's columns of an attention output, a neuron of a feed-forward
part, a dimension of the hidden states. Scores are means over real rows of |x . dL/dx| summed inside the unit
(first-order Taylor: Michel et al. 2019, arXiv:1905.10650, eq. 2, for heads; Molchanov et al. 2019,
arXiv:1906.10771, eq. 8, for neurons), or of the size of what the unit sends on (``activation``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .errors import ModelError
from .losses import real_tokens
from .structure import find_parts, keep_heads
from .training import collate, training_rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .artifact import OptimizedModel
    from .interfaces import Context

__all__ = [
    "Importance",
    "fewer_heads",
    "gates",
    "input_norms",
    "keep_most_important",
    "layer_scores",
    "unit_scores",
    "watched_inputs",
]

Importance: TypeAlias = Literal["auto", "taylor", "activation"]
_BATCH = 16


@contextmanager
def gates(model: Any, sizes: Mapping[str, int], values: Mapping[str, Any]) -> Iterator[None]:
    """Multiplies what the modules of ``sizes`` take in with ``values``, unit by unit, while inside.

    Args:
        model: A torch module.
        sizes: Name of a module -> width of one unit in its input.
        values: Name of a module -> tensor ``(rows, units)`` or ``(1, units)``.
    """

    def gate(name: str) -> Any:
        def multiply(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            spread = values[name].repeat_interleave(sizes[name], dim=-1)
            return (inputs[0] * spread[:, None, :], *inputs[1:])

        return multiply

    handles = [model.get_submodule(name).register_forward_pre_hook(gate(name)) for name in sizes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unit_scores(
    source: OptimizedModel, sizes: Mapping[str, int], context: Context, *, importance: Importance, rows: int
) -> dict[str, np.ndarray]:
    """Scores of the units of every module of ``sizes``, float64 ``(units,)``, over training rows.

    Args:
        source: The model; it is left as it is.
        sizes: Name of a module whose input holds the units -> width of one unit.
        context: Rows and task.
        importance: ``taylor``, ``activation``, or ``auto``: the former where there are labels.
        rows: Training rows to look at, at most; taken evenly.

    Raises:
        ModelError: ``taylor`` is asked for and there are no labels.
    """
    import numpy as np

    if importance == "auto":
        importance = "activation" if context.task.labels == "scores" else "taylor"
    if importance == "taylor" and context.task.labels == "scores":
        raise ModelError(
            f"importance=taylor goes by the loss of labels, and {context.task.name} has none. Write "
            "importance=activation."
        )
    model = source.model.to(context.device).eval()
    totals = {name: np.zeros(model.get_submodule(name).in_features // size) for name, size in sizes.items()}
    seen = 0
    for batch, references in _batches(source, context, rows):
        if importance == "taylor":
            _add_taylor(model, context.task, source.spec, batch, references, sizes, totals)
        else:
            _add_activation(model, batch, sizes, totals)
        seen += len(references)
    model.to("cpu")
    return {name: total / seen for name, total in totals.items()}


def _add_taylor(
    model: Any,
    task: Any,
    spec: Mapping[str, Any],
    batch: Mapping[str, Any],
    labels: Any,
    sizes: Mapping[str, int],
    totals: Mapping[str, np.ndarray],
) -> None:
    """The gradient of a gate that is one is the sum of x . dL/dx over what it gates: all that is asked for."""
    import torch

    rows = len(labels)
    values = {
        name: torch.ones(rows, len(total), requires_grad=True, device=labels.device) for name, total in totals.items()
    }
    with torch.enable_grad(), gates(model, sizes, values):
        answer = task.answer(model(**batch), batch, spec)
        loss = task.loss(answer, labels, spec) * rows  # the loss is a mean; a row's own part is wanted
        gradients = torch.autograd.grad(loss, list(values.values()))
    for name, gradient in zip(values, gradients, strict=True):
        totals[name][:] += gradient.abs().sum(dim=0).double().cpu().numpy()


def _add_activation(
    model: Any, batch: Mapping[str, Any], sizes: Mapping[str, int], totals: Mapping[str, np.ndarray]
) -> None:
    """Size of a unit's input times the size of the weights it meets, over tokens that are no padding."""
    import torch

    rows = len(next(iter(batch.values())))

    def add(name: str, module: Any, given: Tensor) -> None:
        values = given[real_tokens(batch, given).bool()].abs() if given.dim() == 3 else given.abs()
        felt = values * module.weight.norm(dim=0)
        units = felt.reshape(len(felt), -1, sizes[name]).sum(dim=-1).sum(dim=0)
        totals[name][:] += units.double().cpu().numpy() / values.shape[0] * rows

    with watched_inputs(model, sizes, add), torch.inference_mode():
        model(**batch)


def keep_most_important(
    scores: Sequence[np.ndarray], sparsity: float, *, scope: Literal["layer", "global"], at_least: int = 1
) -> list[list[int]]:
    """Which units stay, ascending, for each layer's scores.

    Args:
        scores: One array a layer.
        sparsity: Share of units to take out, 0 to below 1, of each layer or of all together.
        scope: ``layer`` takes the same share of every layer, ``global`` compares the units of all layers, each
            layer's scores divided by their root mean square (Michel et al. 2019, section 4.1, normalise by layer).
        at_least: Units that every layer keeps.

    >>> import numpy as np
    >>> keep_most_important([np.array([1.0, 3, 2]), np.array([9.0, 8, 7])], 1 / 3, scope="layer")
    [[1, 2], [0, 1]]
    """
    import numpy as np

    if scope == "layer":
        counts = [max(at_least, round(len(layer) * (1 - sparsity))) for layer in scores]
        return [sorted(np.argsort(-layer, kind="stable")[:n].tolist()) for layer, n in zip(scores, counts, strict=True)]
    normal = [layer / max(float(np.sqrt(np.mean(layer**2))), 1e-30) for layer in scores]
    kept = [sorted(np.argsort(-layer, kind="stable")[:at_least].tolist()) for layer in normal]
    ranked = sorted(((-value, i, j) for i, layer in enumerate(normal) for j, value in enumerate(layer)))
    room = round(sum(map(len, scores)) * (1 - sparsity)) - sum(map(len, kept))
    for _, i, j in ranked:
        if room <= 0:
            break
        if j not in kept[i]:
            kept[i].append(j)
            room -= 1
    return [sorted(layer) for layer in kept]


def fewer_heads(
    source: OptimizedModel,
    context: Context,
    *,
    sparsity: float,
    scope: Literal["layer", "global"],
    importance: Importance,
    rows: int,
) -> tuple[OptimizedModel, list[list[int]]]:
    """The model without its least important heads, untrained, and the heads of each layer that are left.

    Raises:
        ModelError: The heads of this architecture can't be taken out.
    """
    layers = find_parts(source.model)
    sizes = {parts.mixed: parts.head_size * parts.shared for parts in layers}
    scores = unit_scores(source, sizes, context, importance=importance, rows=rows)
    kept = keep_most_important([scores[parts.mixed] for parts in layers], sparsity, scope=scope)
    model = keep_heads(source.model, {parts.layer: heads for parts, heads in zip(layers, kept, strict=True)})
    return replace(source, model=model), kept


def layer_scores(source: OptimizedModel, context: Context, *, rows: int) -> list[float]:
    """How much each layer turns the hidden states: mean of 1 - cos(input, output) over tokens, 0 to 2.

    Args:
        source: The model; it is left as it is.
        context: Rows and task.
        rows: Training rows to look at, at most; taken evenly.
    """
    import torch

    model = source.model.to(context.device).eval()
    totals: list[float] = []
    tokens = 0
    for batch, _ in _batches(source, context, rows):
        with torch.inference_mode():
            states = model(**batch, output_hidden_states=True).hidden_states
        mask = real_tokens(batch, states[0]).bool()
        turned = [
            float((1 - torch.cosine_similarity(before[mask].double(), after[mask].double(), dim=-1)).sum())
            for before, after in itertools.pairwise(states)
        ]
        totals = [a + b for a, b in zip(totals or [0.0] * len(turned), turned, strict=True)]
        tokens += int(mask.sum())
    model.to("cpu")
    return [total / tokens for total in totals]


@contextmanager
def watched_inputs(model: Any, names: Iterable[str], look: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    """Shows ``look`` the name, the module and the input of every named module that is called while inside."""

    def shower(name: str) -> Any:
        def show(module: Any, given: tuple[Tensor, ...]) -> None:
            look(name, module, given[0])

        return show

    handles = [model.get_submodule(name).register_forward_pre_hook(shower(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_norms(source: OptimizedModel, names: Sequence[str], context: Context, *, rows: int) -> dict[str, Tensor]:
    """Euclidean norm of what each linear module is fed over all tokens of training rows, ``(in,)`` float32.

    Args:
        source: The model; it is left as it is.
        names: Modules to look at.
        context: Rows and task.
        rows: Training rows to look at, at most; taken evenly.
    """
    import torch

    model = source.model.to(context.device).eval()
    sums: dict[str, Tensor] = {}
    batch: dict[str, Any] = {}

    def look(name: str, _: Any, given: Tensor) -> None:
        values = given[real_tokens(batch, given).bool()] if given.dim() == 3 else given
        squares = values.double().square().sum(dim=0)
        sums[name] = sums[name] + squares if name in sums else squares

    with watched_inputs(model, names, look), torch.inference_mode():
        for batch, _ in _batches(source, context, rows):
            model(**batch)
    model.to("cpu")
    return {name: total.sqrt().float().cpu().clone() for name, total in sums.items()}


def _batches(source: OptimizedModel, context: Context, rows: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """Encoded training rows and their labels, evenly from all of them, on the context's device."""
    train = context.data.train
    chosen = list(range(0, len(train), -(-len(train) // rows)))
    encoded = training_rows(source, train, context, only=chosen)
    for start in range(0, len(chosen), _BATCH):
        batch = collate(source.processor, encoded[start : start + _BATCH])
        batch = {name: tensor.to(context.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        yield batch, labels
