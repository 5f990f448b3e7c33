"""Images as base64 of their files, from whatever a table holds: paths, bytes, arrays, what ``datasets`` keeps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runtime.images import FORMATS, decode
from .labels import Missing

__all__ = ["ENDINGS", "clean_image"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def clean_image(value: Any, column: str, folders: Sequence[Path]) -> str | Missing:
    """An image in base64; `Missing` when there is none or it can't be opened.

    Args:
        value: A path, base64 (a data URI, too), bytes of a file, ``{"bytes": ..., "path": ...}``, or rows of pixels.
        column: Name of the column, for messages.
        folders: Where a relative path may start, beside the current folder.

    Raises:
        DataError: The column holds addresses, which are not fetched, or values of another kind.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None or (isinstance(value, float) and value != value):
        return Missing(f"no image in {column!r}")
    if hasattr(value, "save") and hasattr(value, "convert"):  # Pillow's own
        text = _as_png(value)
    elif hasattr(value, "tolist") or isinstance(value, (list, tuple)):
        text = _of_pixels(value, column)
    elif isinstance(value, (bytes, bytearray)):
        text = base64.b64encode(value).decode("ascii")
    elif isinstance(value, str):
        if value.startswith(("http://", "https://", "s3://", "gs://")):
            raise DataError(
                f"Column {column!r} holds addresses ({value:.60}), which are not fetched. Download the files."
            )
        found = _file(value, folders)
        if found is None and len(value) < 500 and value.lower().endswith(ENDINGS):
            return Missing(f"no image file of the name in {column!r}")
        text = value if found is None else base64.b64encode(found.read_bytes()).decode("ascii")
    else:
        raise DataError(f"Column {column!r} holds {type(value).__name__} values, not images. Give paths or bytes.")
    if not text.strip():
        return Missing(f"no image in {column!r}")
    try:
        decode(text)
    except ValueError:
        return Missing(f"something in {column!r} that is no image in {', '.join(FORMATS)}")
    return text


def _file(value: str, folders: Sequence[Path]) -> Path | None:
    if len(value) > 4000 or value.startswith("data:"):
        return None
    path = Path(value).expanduser()
    try:
        return next((place for place in (path, *(folder / path for folder in folders)) if place.is_file()), None)
    except (OSError, ValueError):  # a name too long, or with a zero in it
        return None


def _of_pixels(value: Any, column: str) -> str:
    """Rows of pixels, 0 to 255 or 0 to 1, ``(height, width)`` or ``(height, width, channels)``."""
    import numpy as np
    from PIL import Image

    try:
        pixels = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"Column {column!r} holds lists that are no pixels: {error}.") from error
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or not pixels.size:
        raise DataError(
            f"Column {column!r} holds arrays of shape {pixels.shape}. Pixels are (height, width) or (height, width, 3)."
        )
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        raise DataError(f"Column {column!r} holds arrays with values outside of 0 to 255, so no pixels.")
    if pixels.max() <= 1 and (pixels % 1).any():
        pixels = pixels * 255
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return _as_png(Image.fromarray(np.round(pixels).astype(np.uint8)))


def _as_png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
