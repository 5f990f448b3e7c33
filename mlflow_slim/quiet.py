"""Keeps libraries from printing over our progress while we call them, and gives their settings back.

transformers 5 draws a bar for every weight file and reports fresh heads, which we say ourselves.
"""

from __future__ import annotations

import contextlib
import logging as std_logging
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["quiet_transformers"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers draws no bars and logs errors only."""
    from transformers.utils import logging

    their_logging: Any = logging
    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity(std_logging.ERROR)
    their_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()
