"""The store that a tracking test writes to, with short ways to read it back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run


@dataclass(frozen=True)
class Store:
    uri: str
    experiment_id: str
    folder: Path
    client: MlflowClient

    def runs(self) -> list[Run]:
        """Every run of the experiment, the oldest first."""
        return list(reversed(self.client.search_runs([self.experiment_id], order_by=["attributes.start_time DESC"])))

    def text(self, run_id: str, artifact: str) -> str:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact)).read_text()
