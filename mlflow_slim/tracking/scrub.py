"""Takes secrets out of every text before it goes to the tracking server.

Params, tags, notes and tracebacks are read by more people than the terminal is, and a param can't be
deleted. What is recognised: the user part of URLs, query parameters and assignments with telling names,
tokens with a known prefix, and the values of environment variables with telling names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["one_line", "scrub", "scrub_value"]

MASK = "***"

# "key" counts as a word of its own only: MLflow's links to saved views end in viewStateShareKey=.
_NAMES = (
    r"(?:[\w-]*(?:token|secret|password|passwd|signature|credential)[\w-]*"
    r"|(?:[\w-]*[_-])?(?:key|sig)|apikey|accesskey(?:id)?)"
)

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    # The last "@" before the path ends the user part, because passwords may hold one.
    (re.compile(r"(?<=://)[^\s/'\"<>]+@"), f"{MASK}@"),
    (re.compile(rf"([?&;]{_NAMES}=)[^&\s'\"#]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9\-._~+/=]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (
        re.compile(
            r"\b((?:password|passwd|secret|api[_-]?key|(?:access|auth|refresh)[_-]?token)['\"]?\s*[=:]\s*['\"]?)"
            r"[^\s'\",;&)}\]]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{10,}"), MASK),
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,})"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (re.compile(r"\b(?:sk-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|dapi[0-9a-f]{32})"), MASK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), MASK),
)

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD", re.IGNORECASE)
# Masking every "false" because of TOKENIZERS_PARALLELISM would ruin more than it guards.
_HARMLESS_NAME = re.compile(r"^TOKENIZERS_|KEYBOARD|KEYMAP", re.IGNORECASE)
_SHORTEST_SECRET = 6


def _environment_secrets(environ: Mapping[str, str]) -> list[str]:
    """Values to mask, in the forms they can take in a URL or in JSON, the longest first."""
    found: set[str] = set()
    for name, value in environ.items():
        value = value.strip()
        if len(value) < _SHORTEST_SECRET or not _SECRET_NAME.search(name) or _HARMLESS_NAME.search(name):
            continue
        found |= {value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]}
    return sorted(found, key=len, reverse=True)


def scrub(text: str, *, environ: Mapping[str, str] | None = None) -> str:
    """``text`` with every secret replaced by ``***``.

    >>> scrub("postgresql://me:hunter2@db.example/mlflow")
    'postgresql://***@db.example/mlflow'
    """
    for secret in _environment_secrets(os.environ if environ is None else environ):
        text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def scrub_value(value: Any) -> Any:
    """The same value with its strings scrubbed, through mappings and sequences; mappings become dicts."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: scrub_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub_value(item) for item in value]
    return value


def one_line(text: str, limit: int = 500) -> str:
    """The text scrubbed, on one line, at most ``limit`` characters."""
    # Scrub first: cutting could leave half of a secret that no pattern knows any more.
    line = " ".join(scrub(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
