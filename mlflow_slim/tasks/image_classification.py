"""Image classification: one image in, one label (or several) out.

An input is an image as text: base64 of a file, as it is served. Models are those whose processor resizes, crops,
rescales and normalizes, such as ViT's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import OptimizedModel
from ..class_names import head_settings
from ..classification import Classifier
from ..encoder_loading import load_with_head
from ..errors import ModelError
from ..interfaces import TaskData
from ..runtime.images import ImageFile

if TYPE_CHECKING:
    import numpy as np

    from ..data.tables import InputKind

__all__ = ["TASK", "ImageClassification"]


class ImageClassification(Classifier):
    """The task ``image-classification``: multi-class, or multi-label."""

    name = "image-classification"
    library_class = "AutoModelForImageClassification"
    head = "ForImageClassification"
    inputs: InputKind = "images"

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder with a head for the data's labels; ``trained`` is False when it is fresh.

        Weights are loaded as float32 from safetensors only, no code of the model's own runs, and the network is not
        asked.

        Args:
            directory: A folder that passed `mlflow_slim.safety.check_model_directory`.
            data: Decides the labels.
            max_length: Must be None: images have no length.
            seed: Seed of a fresh head.

        Raises:
            ModelError: transformers can't load it, its encoder isn't all there, or ``max_length`` is given.
        """
        if max_length is not None:
            raise ModelError("max_length is for texts, and images have none. Leave it out.")
        kind = "multi_label" if data.spec["multi_label"] else "single_label"
        settings = {**head_settings(data.spec["labels"]), "problem_type": f"{kind}_classification"}
        model, processor, fresh = load_with_head(directory, self, seed=seed, settings=settings)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        same_problem = (config.get("problem_type") == "multi_label_classification") == data.spec["multi_label"]
        trained = not fresh and data.report.get("labels_from") == "model" and same_problem
        spec = {**data.spec, "modality": "image"}
        return OptimizedModel(model.eval(), processor, self.name, spec, trained=trained, source=str(directory))

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002
        """The pixels of each image, ``(channels, height, width)`` float32."""
        from ..bundle import image_settings

        encode = ImageFile(image_settings(processor))
        return [{name: array[0] for name, array in encode([one]).items()} for one in inputs]

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """As of every classifier, and ``top5_accuracy`` where there are more than five classes and one label a row."""
        import numpy as np

        scores = super().quality(outputs, references, spec)
        if not spec["multi_label"] and len(spec["labels"]) > 5 and outputs.ndim == 2:
            five = np.argpartition(-outputs, 5, axis=1)[:, :5]
            scores["top5_accuracy"] = float((five == references[:, None]).any(axis=1).mean())
        return scores


TASK = ImageClassification()
"""One file per task; `catalog` finds them by name."""
