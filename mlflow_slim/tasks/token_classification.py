"""Token classification: a label for every word of a text, or spans of words (names, amounts, terms).

An input is a text with single spaces between its words. A word's answer is that of its first token; words beyond the
longest input have none and count as wrong, or as outside of any span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import OptimizedModel
from ..class_names import head_settings, label_order, match_labels, model_labels, unknown_labels
from ..encoder_loading import check_offsets, load_encoder
from ..interfaces import Changes, Split, TaskData
from ..runtime.words import at_words, first_tokens, stand_marks_apart
from ..task_defaults import TaskDefaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..data import Tables
    from ..data.tables import InputKind, LabelKind
    from ..measurement.stats import Interval

__all__ = ["TASK", "TokenClassification"]

_NOTHING = -100
"""Where there is no word, or no token that is a word's first."""
_FIRST = "first_tokens"
_SLICE_ROWS = 50
"""Smaller parts of the rows show chance."""
_SHOWN = 300
"""Characters of a text in a table."""


class TokenClassification(TaskDefaults):
    """The task ``token-classification``: words in, a label for each out."""

    name = "token-classification"
    library_class = "AutoModelForTokenClassification"
    labels: LabelKind = "tags"
    inputs: InputKind = "texts"
    check_rows = 32

    def make_data(
        self,
        tables: Tables,
        *,
        config: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,  # noqa: ARG002 - those of language models
    ) -> TaskData:
        """Rows as splits with a class id for every word.

        When the tags in the data are classes of the model's trained head (by name, or as its integer ids), the head's
        own order is kept. Otherwise the classes are those of the training rows: ``O`` first, the others sorted.

        Args:
            tables: What `mlflow_slim.data.read_tables` gave.
            config: The model's ``config.json``, if it has one.
            spec: Of a model that is exported already: its labels are the only ones there are.
            options: Not looked at.

        Raises:
            DataError: ``spec`` lacks a label of the data.
            MissingDependency: What scores spans isn't installed.
        """
        from ..measurement.spans import OUTSIDE, check_seqeval, marks_spans

        frames = {"train": tables.train, "validation": tables.validation, "test": tables.test}
        used = {tag for frame in frames.values() for tags in frame["label"] for tag in tags}
        in_data = sorted(used, key=lambda tag: (tag != OUTSIDE, label_order(tag)))
        known = list(spec["labels"]) if spec is not None else model_labels(config, "ForTokenClassification")
        names, ids, origin = match_labels(in_data, known)
        if spec is not None and origin != "model":
            unknown = [str(value) for value in in_data if str(value) not in spec["labels"]]
            raise unknown_labels(unknown, spec["labels"])
        spans = marks_spans(names)
        if spans:
            check_seqeval()
        splits = {name: _split(name, frame, ids) for name, frame in frames.items()}
        report = {**tables.report, "labels_from": origin, "classes": len(names)}
        own = {"labels": names, "spans": spans, "marks_apart": stand_marks_apart(splits["train"].inputs)}
        if spec is not None and "marks_apart" in spec:
            own["marks_apart"] = spec["marks_apart"]
        return TaskData(tables.name, tables.source, spec=own, report=report, **splits)

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder with a head for the data's labels, see `encoder_loading.load_encoder`.

        Raises:
            ModelError: It can't be loaded, or its tokenizer doesn't say which characters a token stands for.
        """
        loaded = load_encoder(
            directory,
            self,
            data.spec,
            max_length=max_length,
            seed=seed,
            settings=head_settings(data.spec["labels"]),
        )
        check_offsets(loaded.processor, "words")
        return replace(loaded, trained=loaded.trained and data.report.get("labels_from") == "model")

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Token ids row by row, truncated and not padded, and the number of each word's first token."""
        import numpy as np

        encoded = processor(list(inputs), truncation=True, max_length=spec["max_length"], return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        return [
            {
                **{key: encoded[key][i] for key in encoded},
                _FIRST: first_tokens(np.array([offsets[i]]), [text])[0],
            }
            for i, text in enumerate(inputs)
        ]

    def align(self, row: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
        """One value for each word as one for each token: at its first, and `_NOTHING` at all others."""
        import numpy as np

        first = row[_FIRST]
        shown = first >= 0
        placed = np.full((len(row["input_ids"]), *values.shape[1:]), _NOTHING, dtype=values.dtype)
        placed[first[shown]] = values[: len(first)][shown]
        return placed

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:  # noqa: ARG002 - as of every task
        """Mean cross entropy over words; ``(batch, tokens, classes)`` logits, references `_NOTHING` elsewhere."""
        import torch.nn.functional as functional

        return functional.cross_entropy(outputs.flatten(0, 1), references.flatten(), ignore_index=_NOTHING)

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows, words, classes)`` logits of a model in memory; zeros where there is no word, or it was cut off."""
        from ..scoring import outputs_of
        from ..training import pad_behind

        def of_words(found: Any, _: Any, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
            return at_words(found.logits.float().cpu().numpy(), pad_behind([row[_FIRST] for row in rows], -1))

        return outputs_of(model, processor, self.encode(processor, inputs, spec), of_words)

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """Every quality metric by name.

        ``token_accuracy`` is the share of words with the right label. Where labels mark spans, ``span_f1``,
        ``span_precision``, ``span_recall`` and ``f1/<kind>`` count those; else ``f1_macro`` and ``f1/<label>`` words.

        Raises:
            MeasurementError: An output is not finite.
        """
        import numpy as np

        from ..errors import MeasurementError
        from ..measurement.quality import class_keys, make_metric
        from ..measurement.spans import span_counts, span_quality

        if not np.isfinite(outputs).all():
            raise MeasurementError(
                "The model gave outputs that are not finite. Look at its training loss and its number format."
            )
        predicted, there = self.decide(_as_wide(outputs, references), spec), references >= 0
        right = predicted[there] == references[there]
        scores = {"token_accuracy": float(right.mean())}
        labels = spec["labels"]
        if spec["spans"]:
            return scores | dict(span_quality(*span_counts(predicted, references, labels)))
        words = {"predictions": predicted[there], "references": references[there]}
        each = make_metric("f1").compute(**words, classes=len(labels))["f1"]
        scores |= make_metric("f1_macro").compute(**words, classes=len(labels))
        scores |= {f"f1/{key}": value for key, value in zip(class_keys(labels), each, strict=True)}
        return {name: value for name, value in scores.items() if np.isfinite(value)}

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG002
        """The metric to judge by, and the sentence that says why."""
        if spec["spans"]:
            return "span_f1", "the labels mark spans, most words are outside of any"
        return "token_accuracy", "every word has a label of its own"

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that can be the headline: those with a paired interval."""
        return ("span_f1", "token_accuracy") if spec["spans"] else ("token_accuracy",)

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of the metrics of `judged_by`."""
        tops, bottoms = self._per_row(metric, outputs, references, spec)
        return float(tops.sum() / max(bottoms.sum(), 1.0))

    def difference(
        self,
        metric: str,
        baseline: np.ndarray,
        candidate: np.ndarray,
        references: np.ndarray,
        spec: Mapping[str, Any],
        *,
        seed: int,
    ) -> Interval:
        """Candidate less baseline with a 90 % interval; rows are what was sampled, not words.

        Of ``span_f1``, the bootstrap's: its denominator differs between the models.
        """
        from ..measurement.stats import least_half_width, ratio_difference, resampled_difference

        (before, weights), (after, others) = (
            self._per_row(metric, outputs, references, spec) for outputs in (baseline, candidate)
        )
        if metric == "token_accuracy":
            found = ratio_difference(before, after, weights, confidence=0.90)
        else:
            found = resampled_difference((before, weights), (after, others), seed=seed, confidence=0.90)
        rows = [self.correct(outputs, references, spec) for outputs in (baseline, candidate)]
        return found.no_narrower(least_half_width(*rows, confidence=0.90))

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """Agreement and flips word by word, divergence, the worst part of the rows, and the texts that lost most."""
        import numpy as np

        from ..measurement.fidelity import mean_kl, ratio_slices, row_slices, shortened, worst_of

        there = split.references >= 0
        baseline, candidate = (_as_wide(outputs, split.references) for outputs in (baseline, candidate))
        before, after = (self.decide(outputs, spec) for outputs in (baseline, candidate))
        was, now = (answers == split.references for answers in (before, after))
        metrics = {
            "agreement": float((before == after)[there].mean()),
            "negative_flips": float((was & ~now)[there].mean()),
            "positive_flips": float((~was & now)[there].mean()),
            "mean_kl": mean_kl(baseline[there], candidate[there], multi_label=False),
        }
        lost = ((was & ~now) & there).sum(axis=1) - ((~was & now) & there).sum(axis=1)
        names = np.array([*spec["labels"], "(not shown)"], dtype=object)  # -1 is the last one
        table = [
            {
                "row": int(row),
                "text": shortened(split.inputs[int(row)], _SHOWN),
                "words": "; ".join(
                    f"{word}: {names[right]}, {names[old]} -> {names[new]}"
                    for word, right, old, new in zip(
                        split.inputs[int(row)].split(" "),
                        split.references[row],
                        before[row],
                        after[row],
                        strict=False,
                    )
                    if right >= 0 and old != new
                ),
            }
            for row in np.argsort(-lost, kind="stable")[:200]
            if lost[row] > 0
        ]
        slices = ratio_slices(
            row_slices(split.inputs, split.frame, {"text", "label"}),
            (was & there).sum(axis=1),
            (now & there).sum(axis=1),
            there.sum(axis=1),
            figure="token_accuracy",
            min_rows=_SLICE_ROWS,
        )
        worst_metric, worst_tag = worst_of(slices)
        return Changes(metrics | worst_metric, worst_tag, {"broken_rows": table, "slices": slices})

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:
        """Share of words answered the same, of those that one of the models was shown."""
        before, after = self.decide(baseline, spec), self.decide(candidate, spec)
        seen = (before >= 0) | (after >= 0)
        return float((before == after)[seen].mean()) if seen.any() else 1.0

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows,)`` bool: every word's label is right."""
        predicted = self.decide(_as_wide(outputs, references), spec)
        right: np.ndarray = ((predicted == references) | (references < 0)).all(axis=1)
        return right

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG002 - as of every task
        """``(rows, words)`` class ids; -1 where there is no word, or the model was not shown it."""
        import numpy as np

        return np.where(outputs.any(axis=2), outputs.argmax(axis=2), -1)

    def _per_row(
        self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What to add up over rows, and what to divide the sum by."""
        from ..measurement.spans import span_counts

        predicted, there = self.decide(_as_wide(outputs, references), spec), references >= 0
        if metric == "token_accuracy":
            right = (predicted == references) & there
            return right.sum(axis=1).astype(float), there.sum(axis=1).astype(float)
        counts = span_counts(predicted, references, spec["labels"])[0].sum(axis=1)
        return 2 * counts[:, 0], counts[:, 1] + counts[:, 2]


def _split(name: str, frame: pd.DataFrame, ids: Mapping[Any, int]) -> Split:
    import numpy as np

    from ..data import digest_rows
    from ..training import pad_behind

    tags = [np.array([ids[tag] for tag in row], dtype=np.int64) for row in frame["label"]]
    return Split(name, frame["text"].tolist(), pad_behind(tags, _NOTHING), frame, digest_rows(frame))


def _as_wide(outputs: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Outputs with as many words as references have: some of the rows may all be shorter than the longest."""
    import numpy as np

    width = references.shape[1]
    missing = max(0, width - outputs.shape[1])
    return np.pad(outputs, [(0, 0), (0, missing), (0, 0)])[:, :width]


TASK = TokenClassification()
"""One file per task; `catalog` finds them by name."""
