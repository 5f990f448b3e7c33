"""Fixed inputs whose answers are kept with a point, so that a model can be recognized later without anyone's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .runtime.predictor import concatenate

if TYPE_CHECKING:
    import numpy as np

    from .interfaces import Predictor

__all__ = ["PROBES", "answers_to_probes", "probe_inputs"]

PROBES = (
    "a",
    "The room was clean, the staff friendly, and breakfast came late.",
    "Not bad at all, but I would not buy it again!",
    "Die Lieferung kam heute; alles war heil. 123,45 %",
    "\u6771\u4eac \u2014 caf\u00e9 \U0001f642",
    "word " * 60,
)
"""Short, long, of several scripts; nobody's data."""


def probe_inputs(spec: Mapping[str, Any]) -> list[Any]:
    """The probes as a task with this spec takes them: texts, or pairs of them."""
    if "max_new_tokens" in spec:  # each is written on from, which takes seconds
        return [(text, "") for text in PROBES[1:4]]
    if not spec.get("pair"):
        return list(PROBES)
    return [(one, PROBES[(place + 1) % len(PROBES)]) for place, one in enumerate(PROBES)]


def answers_to_probes(predictor: Predictor, spec: Mapping[str, Any]) -> tuple[list[Any], np.ndarray]:
    """The probes and the raw outputs to them, ``(probes, ...)``, each probe on its own: no padding."""
    inputs = probe_inputs(spec)
    return inputs, concatenate([predictor.predict([one]) for one in inputs])
