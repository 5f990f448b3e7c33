"""Feature extraction: a vector for each text, so that texts that mean the same lie near each other.

Without labels, a model is judged by the neighbours: how many of the ten nearest rows that the original names it names,
too. With pairs of texts that people scored, by Spearman's correlation of cosines and scores. A student learns the
teacher's vectors; nothing else is learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import OptimizedModel
from ..encoder_loading import load_encoder
from ..errors import DataError, MeasurementError, ModelError
from ..interfaces import Changes, Split, TaskData
from ..losses import real_tokens
from ..runtime.inputs import texts_of
from ..runtime.pooling import POOLINGS, finish
from ..task_defaults import TaskDefaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..data import Tables
    from ..data.tables import InputKind, LabelKind
    from ..measurement.stats import Interval

__all__ = ["TASK", "FeatureExtraction", "sentence_settings"]

_SLICE_ROWS = 50
"""Smaller parts of the rows show chance."""
_SHOWN = 300
"""Characters of a text in a table."""
_SENTENCE_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


class FeatureExtraction(TaskDefaults):
    """The task ``feature-extraction``: sentence embeddings."""

    name = "feature-extraction"
    library_class = "AutoModel"
    labels: LabelKind = "scores"
    inputs: InputKind = "texts"
    check_rows = 32

    def make_data(
        self,
        tables: Tables,
        *,
        config: Mapping[str, Any] | None = None,  # noqa: ARG002 - as of every task
        spec: Mapping[str, Any] | None = None,  # noqa: ARG002
        options: Mapping[str, Any] | None = None,
    ) -> TaskData:
        """Rows as splits: texts, or pairs of texts with a score; to train, every text alone.

        Args:
            tables: What `mlflow_slim.data.read_tables` gave.
            config: Not looked at.
            spec: Not looked at: vectors have no labels.
            options: The recipe's section ``embed``: ``pooling`` and ``normalize``, None for the model's own.

        Raises:
            DataError: Pairs have no scores, or scores no pairs, or there are fewer than three rows to compare.
        """
        columns = tables.report["columns"]  # a column of the user's may be called label and mean something else
        pair, scored = "text_pair" in columns, "label" in columns
        if pair and not scored:
            raise DataError("Pairs of texts need a score each: name its column with label=... or leave text_pair out.")
        if scored and not pair:
            raise DataError(
                "A score is of a pair of texts: name the second column with text_pair=... or write label=null."
            )
        if len(tables.test) < 3 or len(tables.validation) < 3:
            raise DataError("Comparing neighbours needs three rows or more in validation and test. Add rows.")
        splits = {
            "train": _texts_alone(tables.train),
            "validation": _split("validation", tables.validation, pair=pair),
            "test": _split("test", tables.test, pair=pair),
        }
        asked = (options or {}).get("embed") or {}
        own = {"pooling": asked.get("pooling"), "normalize": asked.get("normalize"), "pair": False}
        return TaskData(tables.name, tables.source, spec=own, report=tables.report, **splits)

    def complete(self, data: TaskData, vectors: Callable[[Sequence[Any]], np.ndarray]) -> TaskData:
        """The data with the original's vectors as references, where there are no scores.

        Args:
            data: As `make_data` gave it.
            vectors: The original's answers.
        """
        if data.test.references.ndim == 1:
            return data
        parts = {name: getattr(data, name) for name in ("validation", "test")}
        return replace(data, **{name: replace(one, references=vectors(one.inputs)) for name, one in parts.items()})

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder, pooled as its own sentence-transformers files say, or as was asked for.

        Raises:
            ModelError: It can't be loaded, or sentence-transformers would do more to its vectors than pool them.
        """
        own = sentence_settings(directory)
        asked = {key: data.spec[key] for key in ("pooling", "normalize") if data.spec[key] is not None}
        spec = {"pooling": "mean", "normalize": False, **own["spec"], **asked, "pair": False}
        length = own["max_length"]
        loaded = load_encoder(directory, self, spec, max_length=max_length, seed=seed, settings={}, usual_length=length)
        return replace(loaded, trained=True)  # there is no head; a pooler that nobody asks may be fresh

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Token ids text by text, truncated and not padded."""
        encoded = processor(list(inputs), truncation=True, max_length=spec["max_length"])
        return [{key: encoded[key][i] for key in encoded} for i in range(len(inputs))]

    def answer(self, outputs: Any, inputs: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
        """``(batch, width)`` pooled states of a torch model's output, with their gradient; neither cut nor rounded."""
        import torch

        states = outputs.last_hidden_state
        mask = real_tokens(inputs, states).to(states.dtype)
        how = spec["pooling"]
        if how == "mean":
            return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1e-9)
        if how == "max":
            return states.masked_fill(mask[:, :, None] == 0, float("-inf")).max(dim=1).values
        rows = torch.arange(len(states), device=states.device)
        if how == "cls":
            return states[rows, mask.argmax(dim=1)]
        return states[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """None: vectors have no right answers.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "feature-extraction has no labels to learn from: a student learns its teacher's vectors. Use "
            "distill.logits, distill.hidden, or recovery=distill."
        )

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows, dimensions)`` vectors of a model in memory, or ``(rows, 2, dimensions)`` of pairs."""
        from ..scoring import outputs_of

        def vectors(found: Any, batch: Mapping[str, Any], _: Any) -> np.ndarray:
            return finish(self.answer(found, batch, spec).float().cpu().numpy(), spec)

        whole = outputs_of(model, processor, self.encode(processor, texts_of(inputs), spec), vectors)
        return whole if len(whole) == len(inputs) else whole.reshape(len(inputs), 2, -1)

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """``spearman`` of pairs, else ``recall_at_10``: the share of the original's nearest rows that are kept.

        Raises:
            MeasurementError: An output is not finite.
        """
        import numpy as np

        from ..measurement.neighbours import cosines, spearman

        if not np.isfinite(outputs).all():
            raise MeasurementError("The model gave vectors that are not finite. Look at its weights and number format.")
        if references.ndim == 1:
            value = spearman(cosines(outputs), references)
            return {"spearman": value} if np.isfinite(value) else {}
        return {"recall_at_10": self.agreement(references, outputs, spec)}

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG002
        """The metric to judge by, and the sentence that says why."""
        if references.ndim == 1:
            return "spearman", "people scored pairs of texts"
        return "recall_at_10", "there are no scores, so the original's own neighbours are what is right"

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        """Metrics that can be the headline: the first of pairs with scores, the second of texts."""
        return ("spearman", "recall_at_10")

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of the metrics of `judged_by`; 0 where it is undefined."""
        return self.quality(outputs, references, spec).get(metric, 0.0)

    def difference(
        self,
        metric: str,
        baseline: np.ndarray,
        candidate: np.ndarray,
        references: np.ndarray,
        spec: Mapping[str, Any],  # noqa: ARG002 - as of every task
        *,
        seed: int,
    ) -> Interval:
        """Candidate less baseline with a 90 % interval over rows; of Spearman's correlation, the bootstrap's."""
        import numpy as np

        from ..measurement.neighbours import cosines, kept_neighbours, nearest, spearman
        from ..measurement.stats import least_half_width, paired_bootstrap, ratio_difference

        if metric == "spearman":
            before, after = cosines(baseline), cosines(candidate)
            return paired_bootstrap(spearman, before, after, references, seed=seed, confidence=0.90)
        near = nearest(references)
        was, now = (kept_neighbours(near, nearest(outputs)) for outputs in (baseline, candidate))
        found = ratio_difference(was, now, np.ones(len(references)), confidence=0.90)
        return found.no_narrower(least_half_width(was == 1, now == 1, confidence=0.90))

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """Neighbours kept of the baseline's, cosine to its vectors, and the rows that lost most."""
        import numpy as np

        from ..measurement.fidelity import ratio_slices, row_slices, shortened, worst_of
        from ..measurement.neighbours import cosines, kept_neighbours, nearest

        before, after = _first_vectors(baseline), _first_vectors(candidate)
        near = [nearest(one) for one in (before, after)]
        kept = kept_neighbours(*near)
        metrics = {"agreement": float(kept.mean()), "same_nearest": float((near[0][:, 0] == near[1][:, 0]).mean())}
        tags = {
            f"slim.absent.quality/{name}": "vectors are neither right nor wrong"
            for name in ("negative_flips", "positive_flips")
        }
        if before.shape == after.shape and spec.get("output", "float32") == "float32":
            metrics["mean_cosine"] = float(cosines(np.stack([before, after], axis=1)).mean())
        else:
            tags["slim.absent.quality/mean_cosine"] = "the vectors have other dimensions"
        texts = [one if isinstance(one, str) else one[0] for one in split.inputs]
        table = [
            {
                "row": int(row),
                "text": shortened(texts[int(row)], _SHOWN),
                "kept": float(kept[row]),
                "nearest_before": shortened(texts[int(near[0][row, 0])], _SHOWN),
                "nearest_after": shortened(texts[int(near[1][row, 0])], _SHOWN),
            }
            for row in np.argsort(kept, kind="stable")[:200]
            if kept[row] < 1
        ]
        own = {"text", "text_pair", *(("label",) if split.references.ndim == 1 else ())}
        ones = np.ones(len(kept))
        slices = ratio_slices(
            row_slices(texts, split.frame, own), ones, kept, ones, figure="neighbours_kept", min_rows=_SLICE_ROWS
        )
        worst_metric, worst_tag = worst_of(slices)
        return Changes(metrics | worst_metric, tags | worst_tag, {"broken_rows": table, "slices": slices})

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Share of the nearest rows that are the same."""
        from ..measurement.neighbours import kept_neighbours, nearest

        before, after = _first_vectors(baseline), _first_vectors(candidate)
        return float(kept_neighbours(nearest(before), nearest(after)).mean())

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG002
        """``(rows,)`` bool: the nearest row is the one that the original names.

        Raises:
            MeasurementError: The references are scores of pairs.
        """
        from ..measurement.neighbours import nearest

        if references.ndim == 1:
            raise MeasurementError("Scores of pairs have no right answers.")
        right: np.ndarray = nearest(outputs)[:, 0] == nearest(references)[:, 0]
        return right

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG002
        """The vectors themselves."""
        return outputs


def _first_vectors(outputs: np.ndarray) -> np.ndarray:
    """``(rows, dimensions)``; of pairs, the vectors of their first texts."""
    return outputs if outputs.ndim == 2 else outputs[:, 0]


def _split(name: str, frame: pd.DataFrame, *, pair: bool) -> Split:
    import numpy as np

    from ..data import digest_rows

    texts = frame["text"].tolist()
    if pair:
        inputs: list[Any] = list(zip(texts, frame["text_pair"].tolist(), strict=True))
        return Split(name, inputs, frame["label"].to_numpy(dtype=np.float64), frame, digest_rows(frame))
    empty = np.zeros((len(frame), 0), dtype=np.float32)
    return Split(name, texts, empty, frame, digest_rows(frame.assign(label="")))


def _texts_alone(frame: pd.DataFrame) -> Split:
    """Every text of the training rows, once."""
    import numpy as np
    import pandas as pd

    from ..data import digest_rows

    columns = [column for column in ("text", "text_pair") if column in frame]
    texts = list(dict.fromkeys(text for column in columns for text in frame[column]))
    alone = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    return Split("train", texts, np.zeros(len(texts), dtype=np.float32), alone, digest_rows(alone.assign(label="")))


def sentence_settings(directory: Path) -> dict[str, Any]:
    """What the files of sentence-transformers say in a folder: how to pool, and the longest input.

    Raises:
        ModelError: They say something that isn't known here.
    """
    found: dict[str, Any] = {"spec": {}, "max_length": None}
    limits = directory / "sentence_bert_config.json"
    if limits.is_file():
        length = json.loads(limits.read_text(encoding="utf-8")).get("max_seq_length")
        found["max_length"] = int(length) if isinstance(length, int) else None
    listed = directory / "modules.json"
    if not listed.is_file():
        return found
    found["spec"]["normalize"] = False
    for module in json.loads(listed.read_text(encoding="utf-8")):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Normalize":
            found["spec"]["normalize"] = True
        elif kind == "Pooling":
            place = (directory / str(module.get("path", "")) / "config.json").resolve()
            if not place.is_relative_to(directory.resolve()) or not place.is_file():
                raise ModelError(f"{directory} has no {module.get('path')}/config.json, which says how it pools.")
            modes = json.loads(place.read_text(encoding="utf-8"))
            asked = [key for key, value in modes.items() if key.startswith("pooling_mode") and value is True]
            named = modes.get("pooling_mode")
            how = [_SENTENCE_POOLINGS.get(key) for key in asked] or [named if named in POOLINGS else None]
            if len(how) != 1 or how[0] is None:
                raise ModelError(
                    f"{directory} pools by {', '.join(asked) or named}; known is one of {', '.join(POOLINGS)}."
                )
            found["spec"]["pooling"] = how[0]
        elif kind != "Transformer":
            raise ModelError(
                f"{directory} has a module {kind} behind the transformer, which isn't known. Known: Pooling, Normalize."
            )
    return found


TASK = FeatureExtraction()
"""One file per task; `catalog` finds them by name."""
