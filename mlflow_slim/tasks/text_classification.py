"""Text classification: one text or a pair in, one label (or several) out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..artifact import OptimizedModel
from ..class_names import head_settings
from ..classification import Classifier
from ..encoder_loading import load_encoder
from ..interfaces import TaskData
from ..runtime.encoder import cut_long_pairs

__all__ = ["TASK", "TextClassification"]


class TextClassification(Classifier):
    """The task ``text-classification``: one text or a pair; multi-class, or multi-label."""

    name = "text-classification"
    library_class = "AutoModelForSequenceClassification"
    head = "ForSequenceClassification"

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder with a head for the data's labels.

        Weights are loaded as float32 from safetensors only, no code of the model's own runs, and the
        network is not asked. ``trained`` is False when the head is fresh.

        Args:
            directory: A folder that passed `mlflow_slim.safety.check_model_directory`.
            data: Decides the labels.
            max_length: Longest input in tokens; None for the model's own limit.
            seed: Seed of a fresh head.

        Raises:
            ModelError: transformers can't load it, its encoder isn't all there, or ``max_length`` is more than it
                can take.
        """
        names = list(data.spec["labels"])
        kind = "multi_label" if data.spec["multi_label"] else "single_label"
        loaded = load_encoder(
            directory,
            self,
            data.spec,
            max_length=max_length,
            seed=seed,
            special_tokens_of_pairs=bool(data.spec["pair"]),
            settings={**head_settings(names), "problem_type": f"{kind}_classification"},
        )
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        same_problem = (config.get("problem_type") == "multi_label_classification") == data.spec["multi_label"]
        return replace(loaded, trained=loaded.trained and data.report.get("labels_from") == "model" and same_problem)

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, list[int]]]:
        """Token ids row by row, truncated and not padded, for training."""
        if spec["pair"] and processor.is_fast:
            inputs = cut_long_pairs(
                inputs,
                processor.backend_tokenizer,
                max_length=spec["max_length"],
                from_right=processor.truncation_side == "right",
            )
        first = [row[0] for row in inputs] if spec["pair"] else list(inputs)
        second = [row[1] for row in inputs] if spec["pair"] else None
        encoded = processor(first, second, truncation=True, max_length=spec["max_length"])
        return [{key: encoded[key][i] for key in encoded} for i in range(len(inputs))]


TASK = TextClassification()
