"""Reaching the tracking store: checked in seconds, made ready once, its errors turned into ours.

MLflow retries an unreachable server for 244 s, a database for nearly two minutes, and two processes that
first touch a fresh sqlite file at once leave it unusable for good. So it is asked here before any work.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import logging
import os
import shlex
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient

from ..errors import SlimError, TrackingError
from .scrub import one_line, scrub

__all__ = ["UiLink", "connect", "tracking_errors", "ui_command"]

_PROBE_TIMEOUT_S = 4
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@contextmanager
def tracking_errors(doing: str) -> Iterator[None]:
    """Turns whatever MLflow or its stores raise inside the block into a TrackingError; ours pass unchanged."""
    try:
        yield
    except SlimError:
        raise
    except Exception as error:
        if "No space left on device" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            raise TrackingError(
                f"MLflow could not {doing}: a disk is full. Free space where the temporary files are "
                f"({tempfile.gettempdir()}; TMPDIR names another place) and where the store at "
                f"{scrub(mlflow.get_tracking_uri())!r} keeps its artifacts."
            ) from error
        reason = one_line(f"{type(error).__name__}: {error}").rstrip(".")
        raise TrackingError(
            f"MLflow could not {doing} ({reason}). Check the store at {scrub(mlflow.get_tracking_uri())!r}: is it "
            "up, writable, and is its disk not full?"
        ) from error


def connect(tracking_uri: str | None = None) -> MlflowClient:
    """A client of a store that answers and has its tables.

    Args:
        tracking_uri: The store; by default the one MLflow is set to.

    Raises:
        TrackingError: It doesn't answer within seconds, can't be written, or MLflow refuses the URI.
    """
    uri = tracking_uri or mlflow.get_tracking_uri()
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _probe_server(uri)
    elif scheme in _DATABASE_PORTS:
        _probe_socket(uri, _DATABASE_PORTS[scheme])
    elif scheme == "sqlite":
        return _open_sqlite(uri)
    with tracking_errors(f"open the tracking store {scrub(uri)!r}"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _probe_server(uri: str) -> None:
    """One short request with no retries; any answer below 500 but a refusal of our credentials will do."""
    import requests

    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/health",
            timeout=_PROBE_TIMEOUT_S,
            # A self-signed certificate is no reason to say "down": MLflow's own requests check certificates.
            verify=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
            or os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("1", "true"),
        )
    except requests.RequestException as error:
        reason = "it refused the connection" if isinstance(error, requests.ConnectionError) else "it did not answer"
        if isinstance(error, requests.exceptions.SSLError):
            reason = "its certificate is not trusted (see MLFLOW_TRACKING_SERVER_CERT_PATH)"
        elif isinstance(error, requests.Timeout):
            reason = f"it did not answer within {_PROBE_TIMEOUT_S} s"
        raise TrackingError(
            f"The MLflow tracking server {scrub(uri)!r} can't be used: {reason}. Start it, or set MLFLOW_TRACKING_URI "
            "to another store; nothing was started."
        ) from error
    if answer.status_code >= 500:
        raise TrackingError(
            f"The MLflow tracking server {scrub(uri)!r} can't be used: it answered HTTP {answer.status_code}. Look at "
            "its log, or set MLFLOW_TRACKING_URI to another store; nothing was started."
        )


def _probe_socket(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:
        return  # a unix socket or a driver's own form: left to MLflow
    try:
        socket.create_connection((parts.hostname, parts.port or default_port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise TrackingError(
            f"The tracking database {scrub(uri)!r} can't be reached: {one_line(str(error))}. Start it, or set "
            "MLFLOW_TRACKING_URI to another store; nothing was started."
        ) from error


def _sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI; None for an in-memory one. Three slashes are relative, four absolute."""
    path = unquote(uri.partition("://")[2].partition("?")[0])
    if path in ("", "/", "/:memory:"):
        return None
    return Path(path[1:]).absolute()


def _open_sqlite(uri: str) -> MlflowClient:
    path = _sqlite_path(uri)
    if path is None:
        raise TrackingError(
            f"The tracking store {uri!r} lives in memory only and would lose every run. Name a file, as in "
            "sqlite:///mlflow.db."
        )
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_file(path), timeout=60):
            fresh = not _has_tables(path)
            with tracking_errors(f"open the tracking store {scrub(uri)!r}"), _quiet_migrations(fresh):
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
    except Timeout as error:
        raise TrackingError(
            f"Another process has been setting up the tracking store {str(path)!r} for more than 60 s. Try again when "
            "it is done."
        ) from error
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"The tracking store {str(path)!r} can't be used: {one_line(str(error))}. Check that it is a sqlite file "
            "in a folder you can write to, or set MLFLOW_TRACKING_URI to another store; nothing was started."
        ) from error
    return client


def _lock_file(path: Path) -> Path:
    """A lock of this user for one database, kept out of the user's own folders."""
    folder = Path(tempfile.gettempdir()) / f"mlflow_slim-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.lock"


def _has_tables(path: Path) -> bool:
    """Whether the database was set up; raises sqlite3.Error or OSError when it can't be written."""
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"the folder {str(path.parent)!r} is read-only")
        return False
    with closing(sqlite3.connect(path, timeout=_PROBE_TIMEOUT_S)) as database:
        found = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()[0]
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):  # somebody writes just now: MLflow waits 20 s for its turn
                raise
        return bool(found)


@contextmanager
def _quiet_migrations(fresh: bool) -> Iterator[None]:
    """Setting up a fresh store logs some eighty lines that tell a user nothing."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")] if fresh else []
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class UiLink:
    """How to look at an experiment.

    Attributes:
        command: What to type first, or None when a server is up already.
        url: The page to open.
    """

    command: str | None
    url: str

    def __str__(self) -> str:
        return f"{self.command}\n{self.url}" if self.command else self.url


def ui_command(
    experiment_id: str, *, tracking_uri: str | None = None, page: str | None = None, port: int = 5000
) -> UiLink:
    """The command and the address that show an experiment in the MLflow UI.

    Args:
        experiment_id: The experiment.
        tracking_uri: The store; by default the one MLflow is set to.
        page: What follows ``#/experiments/<id>``, as `saved_view.VIEW_PAGE`; by default the table of runs.
        port: Port for a UI that has to be started first.
    """
    uri = tracking_uri or mlflow.get_tracking_uri()
    place = f"/#/experiments/{experiment_id}{page or '/runs?workflowType=machine_learning'}"
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return UiLink(None, f"{scrub(uri).rstrip('/')}{place}")
    url = f"http://127.0.0.1:{port}{place}"
    if parts.scheme == "sqlite" and (path := _sqlite_path(uri)) is not None:
        # Absolute, so that the command works from any folder.
        uri = f"sqlite:///{path}"
    shown = scrub(uri)
    argument = shlex.quote(shown) if shown == uri else '"$MLFLOW_TRACKING_URI"'
    return UiLink(f"mlflow ui --backend-store-uri {argument} --port {port}", url)
