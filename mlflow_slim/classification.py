"""What it means to choose one of some classes, or several: labels and their order, quality, differences, changes.

Quality metrics are computed by `mlflow_slim.measurement.quality`; reading files is `mlflow_slim.data`'s. What an input
is, and which model answers, is a task's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .class_names import label_order, match_labels, model_labels, unknown_labels
from .errors import DataError
from .interfaces import Changes, Split, TaskData
from .task_defaults import TaskDefaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .data import Tables
    from .data.tables import InputKind, LabelKind
    from .measurement.stats import Interval

__all__ = ["Classifier"]


class Classifier(TaskDefaults):
    """The part of a task that is about classes: multi-class, or multi-label."""

    labels: LabelKind = "classes"
    inputs: InputKind = "texts"
    head = ""
    """How the name of a model class with a trained head for it ends, such as ``ForSequenceClassification``."""
    check_rows = 32

    def make_data(
        self,
        tables: Tables,
        *,
        config: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,  # noqa: ARG002 - those of language models
    ) -> TaskData:
        """Rows as splits with class ids.

        When the labels in the data are classes of the model's trained head (by name, or as its integer
        ids), the head's own order is kept, so that the given model is measured as it is. Otherwise the
        classes are those of the training rows, sorted.

        Args:
            tables: What `mlflow_slim.data.read_tables` gave.
            config: The model's ``config.json``, if it has one.
            spec: Of a model that is exported already: its labels are the only ones there are.
            options: Not looked at.

        Raises:
            DataError: There is only one class, list labels and plain labels are mixed, or ``spec`` lacks a label.
        """
        frames = {"train": tables.train, "validation": tables.validation, "test": tables.test}
        multi_label = _is_multi_label(frames["train"])
        used = {name: _label_values(frame, multi_label) for name, frame in frames.items()}
        in_data = sorted(set().union(*used.values()), key=label_order)
        if len(in_data) < 2:
            raise DataError(
                f"All {len(frames['train'])} training rows have the one label {str(in_data[0])!r}. "
                "A classifier needs two labels or more: check the label column."
            )
        names, ids, origin = match_labels(
            in_data, list(spec["labels"]) if spec is not None else model_labels(config, self.head)
        )
        if spec is not None and (origin != "model" or multi_label != spec["multi_label"]):
            unknown = [str(value) for value in in_data if str(value) not in spec["labels"]] or ["lists of labels"]
            raise unknown_labels(unknown, spec["labels"])
        pair = "text_pair" in frames["train"].columns
        if spec is not None and pair != spec["pair"]:
            raise DataError(
                "The model answers pairs of texts. Name the second column with text_pair=..."
                if spec["pair"]
                else "The model answers single texts, and text_pair names a second column. Leave text_pair out."
            )
        splits = {name: _split(name, frame, ids, len(names), multi_label) for name, frame in frames.items()}
        own = {"labels": names, "multi_label": multi_label, "pair": pair}
        report = {**tables.report, "labels_from": origin, "classes": len(names)}
        return TaskData(tables.name, tables.source, spec=own, report=report, **splits)

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The model's inputs row by row; the task's own."""
        raise NotImplementedError

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:
        """Hard-label loss of ``(batch, classes)`` logits: cross entropy, or binary cross entropy for multi-label."""
        import torch.nn.functional as functional

        if spec["multi_label"]:
            return functional.binary_cross_entropy_with_logits(outputs, references.float())
        return functional.cross_entropy(outputs, references)

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> np.ndarray:
        """Logits ``(rows, classes)`` of a model in memory."""
        from .scoring import outputs_of

        return outputs_of(model, processor, self.encode(processor, inputs, spec))

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """Every quality metric by name, see `mlflow_slim.measurement.quality.classification_quality`."""
        from .measurement.quality import classification_quality

        return classification_quality(outputs, references, labels=spec["labels"], multi_label=spec["multi_label"])

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:
        """The metric to judge by on these rows, and the sentence that says why."""
        from .measurement.quality import headline_metric

        return headline_metric(references, multi_label=spec["multi_label"])

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that can be the headline: those with a paired interval."""
        return ("f1_macro", "f1_micro", "exact_match") if spec["multi_label"] else ("accuracy", "f1_macro", "mcc")

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of the metrics of `judged_by`, without the import that `quality` needs."""
        from .measurement.stats import LABEL_METRICS

        return LABEL_METRICS[metric](self.decide(outputs, spec), references)

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
        """Candidate less baseline of a headline metric on the same rows, 90 % interval (two one-sided 95 % bounds)."""
        from .measurement.stats import LABEL_METRICS, paired_bootstrap, paired_difference

        if metric in ("accuracy", "exact_match"):
            before, after = (self.correct(outputs, references, spec) for outputs in (baseline, candidate))
            return paired_difference(before, after, confidence=0.90)
        before, after = (self.decide(outputs, spec) for outputs in (baseline, candidate))
        found = paired_bootstrap(LABEL_METRICS[metric], before, after, references, seed=seed, confidence=0.90)
        # Resampling rows on which both models agree shows no spread at all, however few they are.
        least = _least_half_width(before, after, references, pooled=metric == "f1_micro")
        return found.no_narrower(least)

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """Agreement, flips, divergence, worst slice and the rows that broke; see `mlflow_slim.measurement.fidelity`."""
        from dataclasses import asdict

        from .measurement import fidelity
        from .measurement.quality import has_scores
        from .measurement.stats import smallest_margin

        kind: dict[str, Any] = {"labels": spec["labels"], "multi_label": spec["multi_label"]}
        right = [self.correct(outputs, split.references, spec) for outputs in (baseline, candidate)]
        own = {"text", "text_pair", "label"}
        parts = fidelity.make_slices(split.inputs, split.references, baseline, **kind, frame=split.frame, exclude=own)
        slices = fidelity.measure_slices(parts, *right)
        worst = fidelity.worst_slice(slices)
        metrics = {
            "agreement": self.agreement(baseline, candidate, spec),
            "negative_flips": fidelity.negative_flips(*right),
            "positive_flips": fidelity.positive_flips(*right),
        }
        tags = {}
        if has_scores(baseline) and has_scores(candidate):
            metrics["mean_kl"] = fidelity.mean_kl(baseline, candidate, multi_label=spec["multi_label"])
        else:
            tags["slim.absent.quality/mean_kl"] = "one of the models gives labels without scores"
        if worst is not None:
            metrics["worst_slice_delta"] = worst.delta
            tags["slim.quality.worst_slice"] = f"{worst.name} ({worst.n} rows, adjusted p = {worst.p_adjusted:.2g})"
        tables = {
            "slices": [asdict(part) for part in slices],
            "broken_rows": fidelity.broken_rows(split.inputs, split.references, baseline, candidate, **kind),
        }
        flips = metrics["negative_flips"] + metrics["positive_flips"]
        return Changes(metrics, tags, tables, certifiable=smallest_margin(len(split), flips))

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:
        """Share of rows answered the same."""
        same = self.decide(baseline, spec) == self.decide(candidate, spec)
        return float(same.reshape(len(same), -1).all(axis=1).mean())

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows,)`` bool: the top label is right, or for multi-label the whole set is."""
        predicted = self.decide(outputs, spec)
        right: np.ndarray = (predicted == references).all(axis=1) if spec["multi_label"] else predicted == references
        return right

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """Class ids ``(rows,)``, or zeros and ones ``(rows, classes)`` for multi-label (probability of 0.5 or more).

        Of a model that gives ids and no scores, those.
        """
        import numpy as np

        if outputs.ndim == 1:
            return outputs
        return (outputs >= 0).astype(np.int64) if spec["multi_label"] else outputs.argmax(axis=1)


def _least_half_width(before: np.ndarray, after: np.ndarray, references: np.ndarray, *, pooled: bool) -> float:
    """Half-width below which a bootstrap interval of a class-averaged metric can't be believed.

    Each class's rows bound the change of its recall by the Bonett-Price interval, which stays open when no row
    differs; the mean over classes has their joint spread.

    Args:
        before: Class ids ``(rows,)`` or zeros and ones ``(rows, classes)`` of the baseline.
        after: The candidate's.
        references: What is right, in the same form.
        pooled: One bound over all positives together (micro averages) in place of one a class.
    """
    import numpy as np

    from .measurement.stats import least_half_width

    if references.ndim == 2:
        hits = [(references[:, c] == 1, before[:, c] == 1, after[:, c] == 1) for c in range(references.shape[1])]
    else:
        hits = [(references == c, before == c, after == c) for c in np.unique(references)]
    parts = [(was[rows], now[rows]) for rows, was, now in hits if rows.any()]
    if pooled:
        parts = [(np.concatenate([was for was, _ in parts]), np.concatenate([now for _, now in parts]))]
    bounds = [least_half_width(was, now, confidence=0.90) for was, now in parts]
    return float(np.sqrt(sum(bound**2 for bound in bounds)) / len(bounds))


def _is_multi_label(frame: pd.DataFrame) -> bool:
    lists = frame["label"].map(lambda value: isinstance(value, list | tuple))
    if lists.any() and not lists.all():
        row = int(lists.ne(lists.iloc[0]).to_numpy().argmax()) + 1
        raise DataError(f"Labels are lists in some rows and plain values in others (row {row}). Make them all lists.")
    return bool(lists.all())


def _label_values(frame: pd.DataFrame, multi_label: bool) -> set[Any]:
    return set().union(*frame["label"]) if multi_label else set(frame["label"])


def _split(name: str, frame: pd.DataFrame, ids: Mapping[Any, int], classes: int, multi_label: bool) -> Split:
    import numpy as np

    from .data import digest_rows

    if multi_label:
        references = np.zeros((len(frame), classes), dtype=np.int64)
        for row, labels in enumerate(frame["label"]):
            references[row, [ids[label] for label in labels]] = 1
    else:
        references = np.array([ids[label] for label in frame["label"]], dtype=np.int64)
    texts = frame["text"].tolist()
    inputs = list(zip(texts, frame["text_pair"].tolist(), strict=True)) if "text_pair" in frame else texts
    return Split(name, inputs, references, frame, digest_rows(frame))
