"""Which process owns a run, and whether that process is gone.

A run is called ownerless only when that is certain: another host, another container, or a host that merely
has the same name is never judged from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from functools import cache
from pathlib import Path

import psutil

__all__ = ["describe_owner", "is_gone", "this_process"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@cache
def _host() -> dict[str, str]:
    machine = _read("/etc/machine-id")
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return {
        "host": socket.gethostname(),
        # Hashed: machine-id(5) asks that the number itself stay on the machine.
        "machine": hashlib.sha256(f"mlflow_slim {machine}".encode()).hexdigest()[:12] if machine else "",
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pids": namespace,
    }


def _started(pid: int) -> str:
    """When a process started, in a form that setting the clock doesn't change; "" when there is none."""
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rpartition(")")[2].split()  # the name before ")" may hold spaces
        return "" if fields[0] in "ZX" else fields[19]
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(round(process.create_time()))
    except psutil.AccessDenied:
        return "unknown"
    except psutil.Error:
        return ""


def this_process() -> str:
    """The owner tag of this process: JSON with host, machine, boot id, pid namespace, pid, start."""
    pid = os.getpid()
    return json.dumps({**_host(), "pid": pid, "started": _started(pid)}, sort_keys=True)


def is_gone(owner: str, *, run_started_ms: int | None = None) -> bool:
    """True only if the process named by an owner tag certainly runs no more.

    Args:
        owner: What `this_process` gave.
        run_started_ms: When the run began, milliseconds since 1970. After a reboot it tells a restarted host
            from a twin with the same name and machine id: on this host nothing of an earlier boot began after it.
    """
    try:
        theirs = json.loads(owner)
        pid, started = int(theirs["pid"]), str(theirs["started"])
    except (ValueError, TypeError, KeyError):
        return False
    ours = _host()
    if any(theirs.get(key) != ours[key] for key in ("host", "machine")):
        return False
    if theirs.get("boot") != ours["boot"]:
        before_boot = run_started_ms is not None and run_started_ms < psutil.boot_time() * 1000
        return bool(ours["machine"]) and before_boot
    if theirs.get("pids") != ours["pids"]:
        return False
    now = _started(pid)
    return now != "unknown" and now != started


def describe_owner(owner: str) -> str:
    """A few words for people, such as ``process 4711 on atlas``."""
    try:
        theirs = json.loads(owner)
        return f"process {theirs['pid']} on {theirs['host']}"
    except (ValueError, TypeError, KeyError):
        return "an unknown process"
