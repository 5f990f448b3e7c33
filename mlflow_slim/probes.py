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
    """The probes as a task with this spec takes them: texts, pairs of them, or pictures of nothing."""
    if spec.get("modality") == "image":
        return _pictures()
    if "max_new_tokens" in spec:  # each is written on from, which takes seconds
        return [(text, "") for text in PROBES[1:4]]
    if not spec.get("pair"):
        return list(PROBES)
    return [(one, PROBES[(place + 1) % len(PROBES)]) for place, one in enumerate(PROBES)]


def _pictures() -> list[str]:
    """A black one, a gradient, stripes, and noise; of several sizes, in base64."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:48, 0:64]
    noise = (rows * 7919 + columns * 104729) % 251
    shapes = [np.zeros((8, 8)), rows * 2.5 + columns, (columns // 4 % 2) * 255, noise, noise[:20, :31]]
    found = []
    for shape in shapes:
        file = io.BytesIO()
        Image.fromarray(np.clip(shape, 0, 255).astype(np.uint8)).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return found


def answers_to_probes(predictor: Predictor, spec: Mapping[str, Any]) -> tuple[list[Any], np.ndarray]:
    """The probes and the raw outputs to them, ``(probes, ...)``, each probe on its own: no padding."""
    inputs = probe_inputs(spec)
    return inputs, concatenate([predictor.predict([one]) for one in inputs])
