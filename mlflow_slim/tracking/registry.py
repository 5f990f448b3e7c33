"""The model registry as promotion needs it: versions found by what they hold, made once, and aliases moved last."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ..errors import InputNotFound, TrackingError
from .scrub import scrub
from .store import tracking_errors

__all__ = ["Registry"]

_LINK = "mlflow.modelVersions"


class Registry:
    """One registered model.

    Args:
        client: Of the store.
        name: The registered model; it need not exist yet.
    """

    def __init__(self, client: MlflowClient, name: str) -> None:
        self.client, self.name = client, name

    @contextmanager
    def one_at_a_time(self, timeout_s: float = 120) -> Iterator[None]:
        """Waits for other promotions of this model on this machine; those on other machines are not seen.

        Raises:
            TrackingError: One has been going on for longer.
        """
        from filelock import FileLock, Timeout

        key = hashlib.sha256(f"{self.client.tracking_uri}\n{self.name}".encode()).hexdigest()[:16]
        try:
            with FileLock(Path(tempfile.gettempdir()) / f"mlflow_slim-promote-{key}.lock", timeout=timeout_s):
                yield
        except Timeout as error:
            raise TrackingError(
                f"Another promotion of {self.name!r} has been going on for {timeout_s:g} s. Try again when it is done."
            ) from error

    def current(self, alias: str) -> str | None:
        """The version that the alias is on; None when there is no alias or no such model."""
        try:
            return str(self.client.get_model_version_by_alias(self.name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise TrackingError(f"The alias {self.name}@{alias} can't be looked up: {scrub(str(error))}") from error

    def tag(self, version: str, key: str) -> str | None:
        """A tag of a version; None when it isn't there.

        Raises:
            InputNotFound: There is no such version.
        """
        try:
            return self.client.get_model_version(self.name, version).tags.get(key)
        except MlflowException as error:
            raise InputNotFound(f"There is no version {version} of {self.name!r} (any more).") from error

    def holding(self, model_id: str) -> str | None:
        """The newest version that holds this very model, so that a retry makes no second one."""
        quoted = '"' if "'" in self.name else "'"
        with tracking_errors(f"search the versions of {self.name!r}"):
            versions = self.client.search_model_versions(f"name = {quoted}{self.name}{quoted}")
        same = [v for v in versions if v.source == f"models:/{model_id}" and v.status == "READY"]
        return str(max(int(v.version) for v in same)) if same else None

    def status(self, model_id: str) -> str:
        """Status of a logged model, such as READY; empty when it is gone."""
        try:
            return str(self.client.get_logged_model(model_id).status)
        except MlflowException:
            return ""

    def register(self, model_id: str, run_id: str, *, tags: Mapping[str, str], card: str) -> str:
        """Makes a version of a logged model, linked from the model's page as MLflow does it; its number."""
        with tracking_errors(f"register {model_id} as {self.name!r}"):
            try:
                self.client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self.client.create_model_version(
                self.name,
                f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags=dict(tags),
                description=card,
            )
        self.link(model_id, str(made.version))
        return str(made.version)

    def link(self, model_id: str, version: str) -> None:
        """Shows the version on the page of the logged model; once."""
        with tracking_errors("link the version to its model"):
            known = json.loads(self.client.get_logged_model(model_id).tags.get(_LINK, "[]"))
            entry = {"name": self.name, "version": version}
            if entry not in known:
                self.client.set_logged_model_tags(model_id, {_LINK: json.dumps([*known, entry])})

    def tell(self, version: str, tags: Mapping[str, str]) -> None:
        """Writes tags of a version."""
        with tracking_errors(f"write the tags of version {version}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version, key, value)

    def move(self, alias: str, version: str | None) -> None:
        """Puts the alias on a version, in one request; None takes it away."""
        with tracking_errors(f"move the alias {self.name}@{alias}"):
            if version is None:
                self.client.delete_registered_model_alias(self.name, alias)
            else:
                self.client.set_registered_model_alias(self.name, alias, version)
