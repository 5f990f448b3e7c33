"""Images to arrays, as the model's own processor makes them, with Pillow and numpy alone.

An image travels as text everywhere: base64 of a file, as MLflow's REST interface sends it. What is done to it is
written in ``slim.json`` when the model is exported, after comparing it with transformers' processor.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened; others may call for programs outside of Pillow."""


def decode(text: str) -> Any:
    """The ``PIL.Image.Image`` in base64, a data URI too, as RGB.

    Raises:
        ValueError: It is no base64, or no image of `FORMATS`, or larger than Pillow opens.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.convert("RGB")
    except (binascii.Error, UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(
            f"not an image ({error}). Send base64 of a file in one of {', '.join(FORMATS)}: {text:.30}..."
        ) from error


class ImageFile:
    """Makes the arrays of a model that looks at images.

    Args:
        settings: ``size`` (height and width, or ``shortest_edge``; None leaves it), ``resample`` (Pillow's number),
            ``crop`` (height and width, None for none), ``factor`` (a pixel's 0 to 255 times this), ``mean`` and ``std``
            (of each channel).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._mean = np.array(settings["mean"], dtype=np.float32)
        self._std = np.array(settings["std"], dtype=np.float32)

    def __call__(self, inputs: Sequence[str]) -> dict[str, np.ndarray]:
        """``{"pixel_values": (rows, channels, height, width) float32}``."""
        return {"pixel_values": np.stack([self._pixels(decode(text)) for text in inputs])}

    def _pixels(self, image: Any) -> np.ndarray:
        from PIL.Image import Resampling

        settings = self._settings
        if (size := settings["size"]) is not None:
            if "shortest_edge" in size:
                short, long = sorted(image.size)
                edges = (size["shortest_edge"], int(size["shortest_edge"] * long / short))
                wanted = edges if image.width <= image.height else edges[::-1]
            else:
                wanted = (size["width"], size["height"])
            image = image.resize(wanted, Resampling(settings["resample"]))
        pixels = np.asarray(image, dtype=np.float32)
        if (crop := settings["crop"]) is not None:
            pixels = _cropped(pixels, crop["height"], crop["width"])
        pixels = (pixels * np.float32(settings["factor"]) - self._mean) / self._std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cropped(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image; black around one that is smaller."""
    add = [max(0, wanted - found) for wanted, found in zip((height, width), pixels.shape, strict=False)]
    if any(add):
        pixels = np.pad(pixels, [(-(-more // 2), more // 2) for more in add] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
