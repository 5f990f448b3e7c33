"""Integer forms of OpenVINO graphs by NNCF, addressed by the names of the torch modules they came from."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .interfaces import Scheme
from .weights import array_digest, modules_by_weight

if TYPE_CHECKING:
    import numpy as np

__all__ = ["quantize_model", "weighted_nodes"]

_THROUGH = ("Convert", "Transpose", "Reshape")


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """The ``nncf`` module, without its telemetry (on by default and without a question), its bars and its prints."""
    blocked = "openvino_telemetry"
    former = sys.modules.get(blocked)
    if "nncf" not in sys.modules:
        sys.modules[blocked] = None  # type: ignore[assignment]  # to import it fails, and nncf then sends nothing
    try:
        import nncf
    finally:
        if former is not None:
            sys.modules[blocked] = former
        elif sys.modules.get(blocked, former) is None:
            sys.modules.pop(blocked, None)
    their_logger = logging.getLogger("nncf")
    level = their_logger.level
    their_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        their_logger.setLevel(level)


def weighted_nodes(graph: Any, model: Any) -> dict[str, list[str]]:
    """Module name -> names of the graph's nodes that use its matrix, in the graph's order.

    A matrix that is found in no module goes by its node's own name.

    Args:
        graph: An ``openvino.Model``, float32.
        model: The torch model that it was made from.
    """
    modules = modules_by_weight(model)
    nodes: dict[str, list[str]] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("MatMul", "Gather"):
            matrix = _matrix_of(node)
            if matrix is not None:
                name = node.get_friendly_name()
                nodes.setdefault(modules.get(array_digest(matrix), name), []).append(name)
    return nodes


def _matrix_of(node: Any) -> np.ndarray | None:
    for port in range(node.get_input_size()):
        origin = node.input_value(port).get_node()
        while origin.get_type_name() in _THROUGH:
            origin = origin.input_value(0).get_node()
        if origin.get_type_name() == "Constant" and len(origin.get_output_shape(0)) == 2:
            matrix: np.ndarray = origin.data
            return matrix
    return None


def quantize_model(
    graph: Any, scheme: Scheme, nodes: Mapping[str, list[str]], batches: Sequence[Mapping[str, np.ndarray]]
) -> Any:
    """The quantized form of an OpenVINO model; ``graph`` itself may be changed.

    Args:
        graph: An ``openvino.Model``, float32.
        scheme: What to quantize how.
        nodes: What `weighted_nodes` gave.
        batches: Encoded rows to calibrate on; only ``static`` looks at them.

    Raises:
        ConfigError: NNCF has no such calibration.
    """
    if scheme.kind == "static" and scheme.calibrate == "entropy":
        raise ConfigError("NNCF has no entropy calibration. Write calibrate=minmax or percentile.")
    with _quiet_nncf() as nncf:
        if scheme.kind == "weight_only":
            return _compress(nncf, graph, scheme, nodes)
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        advanced: dict[str, Any] = {
            "overflow_fix": OverflowFix.ENABLE if scheme.reduce_range else OverflowFix.DISABLE,
        }
        if scheme.smooth is not None:  # without, NNCF smooths transformers as it finds best
            advanced["smooth_quant_alphas"] = AdvancedSmoothQuantParameters(matmul=scheme.smooth)
        if scheme.calibrate == "percentile":
            advanced["activations_range_estimator_params"] = RangeEstimatorParametersSet.MEAN_QUANTILE
        return nncf.quantize(
            graph,
            nncf.Dataset([dict(batch) for batch in batches]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=_ignored(nncf, nodes, scheme.keep_float),
            advanced_parameters=AdvancedQuantizationParameters(**advanced),
        )


def _ignored(nncf: Any, nodes: Mapping[str, list[str]], modules: frozenset[str]) -> Any:
    names = [node for module in modules for node in nodes.get(module, [])]
    return nncf.IgnoredScope(names=names) if names else None


def _compress(nncf: Any, graph: Any, scheme: Scheme, nodes: Mapping[str, list[str]]) -> Any:
    """Weights in 8 bits, or in 4 in groups, with those named in ``wide`` in 8."""
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    modes = nncf.CompressWeightsMode
    if scheme.bits == 4:
        smaller = AdvancedCompressionParameters(  # where rows are no multiple of a block
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
        )
        graph = nncf.compress_weights(
            graph,
            mode=modes.INT4_ASYM,
            group_size=scheme.block_size,
            all_layers=scheme.embedding_bits == 4,
            ignored_scope=_ignored(nncf, nodes, scheme.keep_float | scheme.wide),
            advanced_parameters=smaller,
        )
        if not scheme.wide:
            return graph
    return nncf.compress_weights(graph, mode=modes.INT8_ASYM, ignored_scope=_ignored(nncf, nodes, scheme.keep_float))
