"""What most tasks have in common: logits are the answer, one for every reference, and the data says what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .interfaces import TaskData

__all__ = ["TaskDefaults"]


class TaskDefaults:
    """Methods of a `mlflow_slim.interfaces.Task` for a task that says nothing else."""

    def align(self, row: Mapping[str, Any], values: Any) -> Any:  # noqa: ARG002
        """As they are: a model answers once for every one of them."""
        return values

    def answer(self, outputs: Any, inputs: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """The logits."""
        return outputs.logits

    def complete(self, data: TaskData, answers: Any) -> TaskData:  # noqa: ARG002
        """As it is: what is right stands in the data."""
        return data

    def training_metric(self, metric: str) -> str:
        """The headline itself."""
        return metric
