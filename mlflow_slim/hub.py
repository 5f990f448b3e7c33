"""May the hub be asked, and does it answer? Asked first, because the hub's own client retries for most of a minute.

Nothing here downloads anything. Importing it imports no network library.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from urllib import error, request

__all__ = ["is_hub_id", "looks_like_path", "offline_reason"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_PROBE_SECONDS = 3.0


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a hub id: ``name`` or ``owner/name``.

    >>> is_hub_id("sentence-transformers/all-MiniLM-L6-v2"), is_hub_id("a/b/c"), is_hub_id("../x")
    (True, False, False)
    """
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


def looks_like_path(name: str) -> bool:
    r"""Whether ``name`` can only be meant as a path, so that it must never be sent to the hub.

    >>> looks_like_path("./model"), looks_like_path("C:\\model"), looks_like_path("owner/model")
    (True, True, False)
    """
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.endswith("/")
        or name.count("/") > 1
        or bool(re.match(r"[A-Za-z]:", name))
        or Path(name).expanduser().exists()
    )


def offline_reason() -> str | None:
    """None when the hub answers, else why it can't be asked, as the end of a sentence; takes 4 seconds at most."""
    for variable in _OFFLINE_VARIABLES:
        if os.environ.get(variable, "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
            return f"{variable} is set"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    outcome: list[str | None] = [f"{endpoint} does not answer"]

    def probe() -> None:
        try:
            with request.urlopen(request.Request(endpoint, method="HEAD"), timeout=_PROBE_SECONDS):
                outcome[0] = None
        except error.HTTPError:
            outcome[0] = None  # any answer is an answer; the real client says what is wrong with it
        except (OSError, ValueError, RuntimeError) as fault:
            outcome[0] = f"{endpoint} can't be reached ({getattr(fault, 'reason', fault)})"

    # A name server that doesn't answer isn't covered by the socket's timeout, hence the thread.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 1.0)
    return outcome[0]
