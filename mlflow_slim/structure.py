"""Where a transformer keeps its heads and neurons, and taking some of them out so that the matrices get smaller.

A layer is known by the names of its parts (`LAYOUTS`); an architecture that is not there is one more line. What
is taken out is named by the units that stay, so the order of importance is somebody else's business (`importance`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .depth import find_layers
from .errors import ModelError
from .runtime.narrowed import is_shape

__all__ = [
    "Layout",
    "Parts",
    "check_heads",
    "find_parts",
    "keep_heads",
    "keep_neurons",
    "keep_width",
    "narrowed_shapes",
]


@dataclass(frozen=True)
class Layout:
    """Names of a layer's linear modules, relative to the layer.

    Attributes:
        queries: Query, key and value, whose outputs are heads side by side.
        mixed: What takes the heads' outputs.
        up: What gives the neurons of the feed-forward part; two of them when one gates the other.
        down: What takes the neurons.
        heads: False where heads share something between layers, so that they can't be taken out one by one.
        grouped: True where several heads of queries may share one of keys and values, and the configuration counts
            both; what is taken out is then a whole group, of all layers equally many.
    """

    queries: tuple[str, ...]
    mixed: str
    up: tuple[str, ...]
    down: str
    heads: bool = True
    grouped: bool = False


logger = logging.getLogger(__name__)

LAYOUTS = (
    # BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA
    Layout(
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
    ),
    # DistilBERT
    Layout(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", ("ffn.lin1",), "ffn.lin2"),
    # MPNet: one table of relative positions, with an entry for each head, serves all layers
    Layout(
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention.attn.o",
        ("intermediate.dense",),
        "output.dense",
        heads=False,
    ),
    # DeBERTa v2 and v3: relative positions are projected by the queries' and keys' own matrices
    Layout(
        ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
        heads=False,
    ),
    # ViT, DeiT
    Layout(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj", ("mlp.fc1",), "mlp.fc2"),
    # Llama, Mistral, Qwen, Gemma
    Layout(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        grouped=True,
    ),
)

_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_HEAD_SIZES = ("attention_head_size", "head_dim")


@dataclass(frozen=True)
class Parts:
    """The linear modules of one layer, by their full names in the model.

    Attributes:
        layer: Index of the layer.
        queries, mixed, up, down: As in `Layout`.
        attention: Names of the modules that count this layer's heads.
        heads: Number of heads, or of groups of heads where they share keys and values.
        head_size: Width of a head.
        shared: Heads of queries for one of keys; 1 where each has its own.
        neurons: Number of neurons.
        heads_can_go: As ``Layout.heads``.
        grouped: As ``Layout.grouped``.
    """

    layer: int
    queries: tuple[str, ...]
    mixed: str
    up: tuple[str, ...]
    down: str
    attention: tuple[str, ...]
    heads: int
    head_size: int
    shared: int
    neurons: int
    heads_can_go: bool
    grouped: bool


def find_parts(model: Any) -> list[Parts]:
    """The parts of every layer of a model.

    Raises:
        ModelError: It has no list of layers, or its layers are of an unknown kind.
    """
    prefix, layers = find_layers(model)
    found = []
    for index, layer in enumerate(layers):
        layout = next((layout for layout in LAYOUTS if _fits(layout, layer)), None)
        if layout is None:
            kind = getattr(model.config, "model_type", type(model).__name__)
            raise ModelError(
                f"Can't find the heads and neurons of a {kind!r} model: its layers have parts of other names than "
                "those known (BERT, RoBERTa, ELECTRA, DistilBERT, MPNet, DeBERTa and Llama families). "
                "Take whole layers out instead: steps: [{technique: prune.depth}]."
            )
        here = f"{prefix}.{index}."
        attention = [
            name
            for name, module in layer.named_modules()
            if any(type(getattr(module, count, None)) is int for count in _HEAD_COUNTS)
        ]
        head_size = _head_size(model.config, [layer.get_submodule(name) for name in attention])
        if layout.grouped and not attention:
            attention = [layout.mixed.rpartition(".")[0]]
            head_size = _head_size(model.config, [layer.get_submodule(attention[0])])
        sizes = [int(layer.get_submodule(name).out_features) for name in layout.queries]
        found.append(
            Parts(
                layer=index,
                queries=tuple(here + name for name in layout.queries),
                mixed=here + layout.mixed,
                up=tuple(here + name for name in layout.up),
                down=here + layout.down,
                attention=tuple((here + name).rstrip(".") for name in attention),
                heads=min(sizes) // head_size,
                head_size=head_size,
                shared=max(sizes) // min(sizes),
                neurons=int(layer.get_submodule(layout.down).in_features),
                heads_can_go=layout.heads,
                grouped=layout.grouped,
            )
        )
    return found


def _fits(layout: Layout, layer: Any) -> bool:
    """True when the layer has these linear modules and no other: one that isn't known may read what is taken out."""
    import torch

    names = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    return {*layout.queries, layout.mixed, *layout.up, layout.down} == names


def _head_size(config: Any, attention: Sequence[Any]) -> int:
    for module in attention:
        for name in _HEAD_SIZES:
            if type(getattr(module, name, None)) is int:
                return int(getattr(module, name))
    return int(config.hidden_size) // int(config.num_attention_heads)


def _keep_outputs(model: Any, name: str, kept: Any) -> None:
    linear = model.get_submodule(name)
    _replace(linear, "weight", linear.weight[kept])
    if linear.bias is not None:
        _replace(linear, "bias", linear.bias[kept])
    linear.out_features = len(kept)


def _keep_inputs(model: Any, name: str, kept: Any) -> None:
    linear = model.get_submodule(name)
    _replace(linear, "weight", linear.weight[:, kept])
    linear.in_features = len(kept)


def _replace(module: Any, name: str, values: Any) -> None:
    import torch

    setattr(module, name, torch.nn.Parameter(values.detach().clone().contiguous()))


def check_heads(model: Any) -> None:
    """Raises ModelError when heads of this architecture can't be taken out one by one."""
    if not all(parts.heads_can_go for parts in find_parts(model)):
        raise ModelError(
            f"Heads of a {model.config.model_type!r} model can't be taken out one by one: its layers share what "
            "belongs to a head. Cut neurons (prune.width) or layers (prune.depth), or distill a student."
        )


def keep_heads(model: Any, kept: Mapping[int, Sequence[int]]) -> Any:
    """A deep copy of ``model`` with only the heads ``kept`` of each layer, by the layer's index.

    Where heads share keys and values, ``kept`` are groups of them.

    Raises:
        ModelError: The architecture's heads can't be taken out, or a layer would have none left.
    """
    check_heads(model)
    pruned = copy.deepcopy(model)
    layers = find_parts(pruned)
    if layers[0].grouped:
        _count_groups(pruned, layers, kept)
    for parts in layers:
        heads = sorted(kept.get(parts.layer, range(parts.heads)))
        if len(heads) == parts.heads:
            continue
        if not heads:
            raise ModelError(f"Layer {parts.layer} would have no heads left. Keep one at least, or use prune.depth.")
        columns = _columns(heads, parts.head_size)
        wide = _columns(heads, parts.head_size * parts.shared)
        for name in parts.queries:
            size = int(pruned.get_submodule(name).out_features)
            _keep_outputs(pruned, name, wide if size == parts.heads * parts.head_size * parts.shared else columns)
        _keep_inputs(pruned, parts.mixed, wide)
        for name in parts.attention:
            module = pruned.get_submodule(name)
            for count in _HEAD_COUNTS:
                if type(getattr(module, count, None)) is int:
                    setattr(module, count, len(heads) * parts.shared)
            if type(getattr(module, "num_key_value_heads", None)) is int:
                module.num_key_value_heads = len(heads)
            if type(getattr(module, "all_head_size", None)) is int:
                module.all_head_size = len(columns)
    return pruned


def _columns(heads: Sequence[int], size: int) -> Any:
    import torch

    return torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])


def _count_groups(pruned: Any, layers: Sequence[Parts], kept: Mapping[int, Sequence[int]]) -> None:
    """Writes into the configuration how many groups of heads all layers keep."""
    counts = {len(kept.get(parts.layer, range(parts.heads))) for parts in layers}
    if len(counts) != 1:
        raise ModelError(
            f"Layers would keep different numbers of heads ({min(counts)} to {max(counts)}), and a "
            f"{pruned.config.model_type!r} model has the same in all. Use prune.width with head_sparsity."
        )
    groups = counts.pop()
    pruned.config.head_dim = layers[0].head_size
    pruned.config.num_attention_heads = groups * layers[0].shared
    pruned.config.num_key_value_heads = groups


def keep_neurons(model: Any, kept: Mapping[int, Sequence[int]]) -> Any:
    """A deep copy of ``model`` with only the feed-forward neurons ``kept`` of each layer, by the layer's index.

    When all layers keep equally many, the configuration says so too, and any tool can load what is saved.

    Raises:
        ModelError: The layers are of an unknown kind, or one would have no neurons left.
    """
    import torch

    pruned = copy.deepcopy(model)
    counts = set()
    for parts in find_parts(pruned):
        neurons = torch.tensor(sorted(kept.get(parts.layer, range(parts.neurons))), dtype=torch.long)
        if not len(neurons):
            raise ModelError(f"Layer {parts.layer} would have no neurons left. Keep one at least, or use prune.depth.")
        for name in parts.up:
            _keep_outputs(pruned, name, neurons)
        _keep_inputs(pruned, parts.down, neurons)
        counts.add(len(neurons))
    if len(counts) == 1:
        for name in ("intermediate_size", "hidden_dim"):
            if type(getattr(pruned.config, name, None)) is int:
                setattr(pruned.config, name, counts.pop())
                break
    return pruned


def keep_width(model: Any, kept: Sequence[int]) -> Any:
    """A deep copy of ``model`` whose hidden states have only the dimensions ``kept``; heads keep their width.

    Raises:
        ModelError: The layers are of an unknown kind, or parts outside them read or write hidden states in a way
            that isn't known.
    """
    import torch

    pruned = copy.deepcopy(model)
    prefix, _ = find_layers(pruned)
    dimensions = torch.tensor(sorted(kept), dtype=torch.long)
    width = int(pruned.config.hidden_size)
    inside = find_parts(pruned)
    readers = {name for parts in inside for name in (*parts.queries, *parts.up)}
    writers = {name for parts in inside for name in (parts.mixed, parts.down)}
    head_seen = False
    for name, module in list(pruned.named_modules()):
        if isinstance(module, torch.nn.Embedding) and module.embedding_dim == width:
            _replace(module, "weight", module.weight[:, dimensions])
            module.embedding_dim = len(dimensions)
            _rescale(module, (len(dimensions) / width) ** 0.5)
        elif isinstance(module, torch.nn.LayerNorm) and module.normalized_shape == (width,):
            if name.startswith(prefix) or not head_seen:
                _replace(module, "weight", module.weight[dimensions])
                _replace(module, "bias", module.bias[dimensions])
                module.normalized_shape = (len(dimensions),)
        elif _is_gain(module, width):  # RMSNorm, of which every family has a class of its own
            _replace(module, "weight", module.weight[dimensions])
        elif name in readers:
            _keep_inputs(pruned, name, dimensions)
        elif name in writers:
            _keep_outputs(pruned, name, dimensions)
        elif isinstance(module, torch.nn.Linear) and not name.startswith(prefix):
            if module.out_features == width and module.in_features != width:  # embeddings of another width
                _keep_outputs(pruned, name, dimensions)
            elif module.in_features == width and not head_seen:  # a head's first matrix reads, its next ones don't
                _keep_inputs(pruned, name, dimensions)
                head_seen = True
        elif isinstance(module, torch.nn.Linear) and width in (module.in_features, module.out_features):
            raise ModelError(
                f"The hidden width of a {model.config.model_type!r} model can't be cut: it isn't known what {name} "
                "does with hidden states. Cut neurons or layers instead (hidden_sparsity=0)."
            )
    if inside[0].grouped:
        pruned.config.head_dim = inside[0].head_size
        pruned.tie_weights()
    pruned.config.hidden_size = len(dimensions)
    return pruned


def _rescale(embedding: Any, ratio: float) -> None:
    """For embeddings that are multiplied with the root of the width (Gemma), which a loaded model computes anew."""
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = embedding.embed_scale * ratio
    if hasattr(embedding, "scalar_embed_scale"):
        embedding.scalar_embed_scale = embedding.scalar_embed_scale * ratio


def _is_gain(module: Any, width: int) -> bool:
    """True for a module that scales hidden states and does nothing else with weights."""
    own = dict(module.named_parameters(recurse=False))
    return list(own) == ["weight"] and tuple(own["weight"].shape) == (width,)


def narrowed_shapes(model: Any) -> dict[str, dict[str, Any]]:
    """For each module that differs from what the model's configuration builds, the numbers that differ.

    See `mlflow_slim.runtime.narrowed`, which builds the model again from them.

    Raises:
        ModelError: The configuration builds a model with other parts.
    """
    import torch

    config = copy.deepcopy(model.config)
    try:
        with torch.device("meta"):
            described = dict(type(model)(config).named_modules())
    except Exception as error:  # a model that can't be built without data is taken as its configuration says
        logger.debug("%s can't be built on the meta device: %s", type(model).__name__, error)
        return {}
    other_parts = sorted(described.keys() ^ {name for name, _ in model.named_modules()})
    if other_parts:
        raise ModelError(
            f"This {config.model_type!r} model has other parts than its configuration describes "
            f"({', '.join(other_parts[:3])}), so transformers couldn't load it. Export to onnxruntime alone, or change "
            "hidden_sparsity a little."
        )
    shapes: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        other = described[name]
        numbers = {
            attribute: value
            for attribute, value in vars(module).items()
            if is_shape(value) and is_shape(getattr(other, attribute, None)) and getattr(other, attribute) != value
        }
        sizes = [
            parameter
            for parameter, weight in module.named_parameters(recurse=False)
            if getattr(other, parameter, None) is not None and getattr(other, parameter).shape != weight.shape
        ]
        if numbers or sizes:
            shapes[name] = numbers
    return shapes
