"""What a sweep has screened, kept on the disk for a sweep that goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .dominance import Figure

__all__ = ["Journal"]

logger = logging.getLogger(__name__)


class Journal:
    """Screened variants, one JSON line each, so that a killed sweep loses at most the one it was at."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self) -> dict[str, Mapping[str, Sequence[float]]]:
        """Figures by variant; a line cut off by a kill is passed over."""
        found: dict[str, Mapping[str, Sequence[float]]] = {}
        if self.path is None or not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                found[str(entry["variant"])] = {k: [float(x) for x in v] for k, v in entry["figures"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def add(self, variant: str, figures: Mapping[str, Figure]) -> None:
        """Appends one line and sees it on the disk."""
        if self.path is None:
            return
        values = {metric: [figure.value, *figure.ends] for metric, figure in figures.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # The new line goes first: the one before may have been cut off.
                file.write("\n" + json.dumps({"variant": variant, "figures": values}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning("The sweep could not be noted for another time: %s", error)
