"""Plain text inside markdown, for run descriptions and tables."""

from __future__ import annotations

__all__ = ["escape"]


def escape(text: str) -> str:
    """Text from elsewhere as plain markdown: one line, nothing in it read as markup."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#!" else sign for sign in flat)
