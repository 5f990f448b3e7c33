"""How right a classifier's answers are, as `evaluate.Metric` classes over scikit-learn.

Metrics are made from our own classes and never fetched: ``evaluate.load`` asks the network even for
accuracy. `evaluate` takes seconds to import, so its subclasses are made on first use.

Two rules keep figures comparable between models scored on the same rows. Macro F1 is the mean over the
classes that the references hold: with scikit-learn's default a candidate that names an absent class
once would be divided by one class more. And what is undefined (F1 of a class without rows, MCC with one
class only) is left out, never 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError

if TYPE_CHECKING:
    import evaluate

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "QualityMetric",
    "check_outputs",
    "class_keys",
    "classification_quality",
    "has_scores",
    "headline_metric",
    "higher_is_better",
    "make_metric",
    "predicted_labels",
    "probabilities",
]

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

ECE_BINS = 15


def probabilities(logits: npt.ArrayLike, *, multi_label: bool) -> Floats:
    """``(rows, labels)`` probabilities in float64: softmax over labels, or a sigmoid for each when multi-label."""
    z = np.asarray(logits, dtype=np.float64)
    if multi_label:
        e = np.exp(-np.abs(z))
        return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)), dtype=np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), dtype=np.float64)


def has_scores(outputs: npt.ArrayLike) -> bool:
    """Whether outputs are scores ``(rows, labels)`` and not the answers alone, label ids ``(rows,)``."""
    return np.asarray(outputs).ndim == 2


def predicted_labels(logits: npt.ArrayLike, *, multi_label: bool) -> npt.NDArray[np.int64]:
    """``(rows,)`` ids of the largest logit (the first of equals), or ``(rows, labels)`` ones where p >= 0.5.

    Of a model that gives answers alone, those.
    """
    z = np.asarray(logits)
    if not has_scores(z):
        return z.astype(np.int64)
    return (z >= 0).astype(np.int64) if multi_label else np.asarray(z.argmax(axis=1), dtype=np.int64)


def _present(references: Array, classes: int) -> Array:
    """``(classes,)`` bool: which classes the references hold."""
    if references.ndim == 2:
        return np.asarray(references.any(axis=0))
    return np.bincount(references, minlength=classes) > 0


def _indicators(x: Array) -> Array:
    """One column of zeros and ones gets an empty neighbour: scikit-learn takes it for two classes otherwise."""
    return np.pad(x, ((0, 0), (0, 1))) if x.ndim == 2 and x.shape[1] == 1 else x


def _accuracy(p: Array, r: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(r, p))


def _f1_per_class(p: Array, r: Array, classes: int) -> list[float]:
    """F1 of each class, nan where the references have no row of it."""
    from sklearn.metrics import f1_score

    f1 = f1_score(_indicators(r), _indicators(p), labels=np.arange(max(classes, 2)), average=None, zero_division=0.0)
    return [float(x) for x in np.where(_present(r, classes), f1[:classes], np.nan)]


def _f1_macro(p: Array, r: Array, classes: int) -> float:
    f1 = np.array(_f1_per_class(p, r, classes))
    return float(f1[np.isfinite(f1)].mean()) if np.isfinite(f1).any() else float("nan")


def _f1_micro(p: Array, r: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(_indicators(r), _indicators(p), average="micro", zero_division=0.0))


def _f1_samples(p: Array, r: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(_indicators(r), _indicators(p), average="samples", zero_division=1.0))


def _mcc(p: Array, r: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(r, p)) if len(np.unique(r)) > 1 else float("nan")


def _hamming_loss(p: Array, r: Array) -> float:
    from sklearn.metrics import hamming_loss

    return float(hamming_loss(r, p))


def _log_loss(p: Array, r: Array) -> float:
    from sklearn.metrics import log_loss

    if r.ndim == 2:  # every label is a question of its own
        p, r = np.stack([1 - p.ravel(), p.ravel()], axis=1), r.ravel()
    return float(log_loss(r, p, labels=np.arange(p.shape[1])))


def _brier(p: Array, r: Array) -> float:
    return float(((p - np.eye(p.shape[1])[r]) ** 2).sum(axis=1).mean())


def _expected_calibration_error(p: Array, r: Array, bins: int = ECE_BINS) -> float:
    # Equal confidences share a bin, so that the figure doesn't depend on the order of the rows.
    confidence, right = p.max(axis=1), p.argmax(axis=1) == r
    ordered = np.sort(confidence)
    starts = ordered[[len(part) and int(part[0]) for part in np.array_split(np.arange(len(p)), bins) if len(part)]]
    bin_of = np.searchsorted(np.unique(starts), confidence, side="right")
    gaps = np.bincount(bin_of, weights=right - confidence)
    return float(np.abs(gaps).sum() / len(p))


@dataclass(frozen=True)
class QualityMetric:
    """One figure of quality.

    Attributes:
        name: Name in the schema, after ``quality/``.
        higher_is_better: Its direction.
        on: What it scores: ``labels`` or ``probabilities``.
        compute: ``(predictions, references)``, and ``classes`` where ``needs_classes``, to the figure, or nan.
        description: One sentence for people.
        single: It suits one label a row.
        multi: It suits several labels a row.
        needs_classes: It must know how many classes there are.
    """

    name: str
    higher_is_better: bool
    on: str
    compute: Callable[..., float | list[float]]
    description: str
    single: bool = True
    multi: bool = False
    needs_classes: bool = False


METRICS: Mapping[str, QualityMetric] = {
    m.name: m
    for m in (
        QualityMetric("accuracy", True, "labels", _accuracy, "Share of rows answered right."),
        QualityMetric("exact_match", True, "labels", _accuracy, "Share of rows with all labels right.", False, True),
        QualityMetric("f1_macro", True, "labels", _f1_macro, "Mean F1 over classes with rows.", True, True, True),
        QualityMetric("f1_micro", True, "labels", _f1_micro, "F1 over all labels pooled.", False, True),
        QualityMetric("f1_samples", True, "labels", _f1_samples, "Mean F1 of a row's labels.", False, True),
        QualityMetric("f1", True, "labels", _f1_per_class, "F1 of each class.", True, True, True),
        QualityMetric("mcc", True, "labels", _mcc, "Matthews correlation, -1 to 1; 0 is chance."),
        QualityMetric("hamming_loss", False, "labels", _hamming_loss, "Share of wrong labels.", False, True),
        QualityMetric("log_loss", False, "probabilities", _log_loss, "Mean negative log likelihood, nats.", True, True),
        QualityMetric("brier", False, "probabilities", _brier, "Squared error over all classes, 0-2."),
        QualityMetric(
            "expected_calibration_error",
            False,
            "probabilities",
            _expected_calibration_error,
            f"Mean gap of confidence and accuracy over {ECE_BINS} bins of equal mass, 0-1.",
        ),
    )
}

HIGHER_IS_BETTER: Mapping[str, bool] = {
    **{name: metric.higher_is_better for name, metric in METRICS.items()},
    **dict.fromkeys(("log_likelihood", "token_accuracy", "token_f1", "rouge_l", "chrf"), True),
    **dict.fromkeys(("recall_at_10", "spearman", "top5_accuracy", "span_f1", "span_precision", "span_recall"), True),
    **dict.fromkeys(("perplexity", "bits_per_byte", "repetition"), False),
}
"""The direction of every quality metric by name; ``f1`` stands for all of ``f1/<class>``."""


def higher_is_better(name: str) -> bool:
    """The direction of a metric, ``f1/<class>`` included.

    Raises:
        MeasurementError: No metric has this name.
    """
    base = "f1" if name.startswith("f1/") else name
    if base not in HIGHER_IS_BETTER:
        raise MeasurementError(f"There is no quality metric {name!r}. Known: {', '.join(sorted(HIGHER_IS_BETTER))}.")
    return HIGHER_IS_BETTER[base]


@cache
def _metric_class(name: str) -> type[evaluate.Metric]:
    import datasets
    import evaluate

    metric = METRICS[name]

    class SlimMetric(evaluate.Metric):  # type: ignore[misc]
        def _build_data_dir(self) -> str:
            # Upstream makes a folder under the home folder even when all is kept in memory.
            return ""

        def _info(self) -> evaluate.MetricInfo:
            value = datasets.Value("int64" if metric.on == "labels" else "float64")
            many = self.config_name == "multilabel"
            return evaluate.MetricInfo(
                description=metric.description,
                citation="",
                inputs_description="predictions: label ids or probabilities. references: label ids, or zeros and ones.",
                features=datasets.Features(
                    predictions=datasets.Sequence(value) if many or metric.on == "probabilities" else value,
                    references=datasets.Sequence(datasets.Value("int64")) if many else datasets.Value("int64"),
                ),
            )

        def _compute(self, predictions: Any, references: Any, classes: int | None = None) -> dict[str, Any]:
            p, r = np.asarray(predictions), np.asarray(references)
            if metric.needs_classes:
                known = p.shape[1] if p.ndim == 2 else 1 + int(max(p.max(), r.max()))
                return {metric.name: metric.compute(p, r, classes or known)}
            return {metric.name: metric.compute(p, r)}

    # evaluate takes the name of a metric from the name of its class.
    SlimMetric.__name__ = SlimMetric.__qualname__ = "".join(part.capitalize() for part in name.split("_"))
    return SlimMetric


def make_metric(name: str, *, multi_label: bool = False) -> evaluate.Metric:
    """An `evaluate.Metric` that needs no network and no file, usable with ``evaluate.combine`` and evaluators.

    Its ``compute(predictions=..., references=...)`` returns ``{name: figure}``; ``f1`` gives a list, one
    figure per class, nan for classes without rows. ``f1`` and ``f1_macro`` take ``classes``, their number.

    Raises:
        MeasurementError: No metric has this name.
    """
    higher_is_better(name)
    if name not in METRICS:
        raise MeasurementError(f"{name!r} is one figure of 'f1'. Make the metric 'f1'.")
    return _metric_class(name)(config_name="multilabel" if multi_label else "default", keep_in_memory=True)


def check_outputs(logits: npt.ArrayLike, references: npt.ArrayLike, *, labels: int, multi_label: bool) -> None:
    """Refuses outputs and references that can't be scored together.

    Raises:
        MeasurementError: No rows, shapes that don't fit, outputs that are not finite, or references that
            name no label.
    """
    z, r = np.asarray(logits), np.asarray(references)
    want = (len(z), labels) if multi_label else (len(z),)
    least = 1 if multi_label else 2
    shapes = [(len(z), labels)] if multi_label else [(len(z), labels), (len(z),)]
    if z.shape not in shapes or r.shape != want or len(z) == 0 or labels < least:
        raise MeasurementError(
            f"Expected outputs (rows, {labels}) and references {f'(rows, {labels})' if multi_label else '(rows,)'}, "
            f"at least one row and {least} labels; got {z.shape} and {r.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(z).reshape(len(z), -1).all(axis=1))
    if len(bad):
        raise MeasurementError(
            f"The model gave outputs that are not finite for {len(bad)} of {len(z)} rows, first in row {bad[0]}. "
            "Look at its training loss and its number format."
        )
    top = 1 if multi_label else labels - 1
    wrong = np.flatnonzero(~np.isin(r, np.arange(top + 1)).reshape(len(r), -1).all(axis=1))
    if len(wrong):
        raise MeasurementError(
            f"References must be whole numbers from 0 to {top}, got {r[wrong[0]]} in row {wrong[0]}; "
            f"{len(wrong)} rows are like this."
        )


def classification_quality(
    logits: npt.ArrayLike, references: npt.ArrayLike, *, labels: Sequence[str], multi_label: bool
) -> dict[str, float]:
    """Every quality metric of a classifier by name; what is undefined for these rows is absent.

    Args:
        logits: ``(rows, labels)``, before softmax or sigmoid; or label ids ``(rows,)`` of a model that gives no scores,
            of which what scores probabilities is absent.
        references: ``(rows,)`` label ids, or ``(rows, labels)`` zeros and ones when ``multi_label``.
        labels: Names of the classes; F1 of each comes as ``f1/<name>``, see `class_keys`.
        multi_label: A row can have any number of labels.

    Raises:
        MeasurementError: As `check_outputs`.
    """
    check_outputs(logits, references, labels=len(labels), multi_label=multi_label)
    r = np.asarray(references).astype(np.int64)
    scored: dict[str, Array] = {"labels": predicted_labels(logits, multi_label=multi_label)}
    if has_scores(logits):
        scored["probabilities"] = probabilities(logits, multi_label=multi_label)
    figures: dict[str, float] = {}
    for name, metric in METRICS.items():
        if metric.on not in scored or not (metric.multi if multi_label else metric.single):
            continue
        classes = {"classes": len(labels)} if metric.needs_classes else {}
        outcome = make_metric(name, multi_label=multi_label).compute(
            predictions=scored[metric.on], references=r, **classes
        )[name]
        if isinstance(outcome, list):
            figures |= {f"{name}/{key}": x for key, x in zip(class_keys(labels), outcome, strict=True)}
        else:
            figures[name] = outcome
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def class_keys(labels: Sequence[str]) -> list[str]:
    """Class names as parts of metric keys, in their order and all different.

    MLflow takes letters and digits of any script, and ``_ - .`` and spaces everywhere; ``/`` would make a
    group and ``:`` is refused on Windows. Anything else becomes ``_``. Names that become equal, or differ
    by case only (equal to some databases), get ``_2``, ``_3`` in the order of ``labels``.

    >>> class_keys(["sci/tech", "sci:tech", "Sci_Tech", "C++"])
    ['sci_tech', 'sci_tech_2', 'Sci_Tech_3', 'C__']
    """
    keys: list[str] = []
    taken: set[str] = set()
    for label in labels:
        plain = re.sub(r"[^\w.\- ]", "_", unicodedata.normalize("NFC", str(label)).strip())[:150].strip()
        plain = {"": "unnamed", ".": "_", "..": "__"}.get(plain, plain)
        key, count = plain, 1
        while key.casefold() in taken:
            count += 1
            key = f"{plain}_{count}"
        taken.add(key.casefold())
        keys.append(key)
    return keys


def headline_metric(references: npt.ArrayLike, *, multi_label: bool) -> tuple[str, str]:
    """The metric to judge by on these rows, and the sentence that says why.

    Classes are lopsided when the largest has more than twice, or the smallest less than half, of an equal
    share, and chance alone would do that in under 1 % of data sets with equal classes. Then a model could do
    well by ignoring small classes, and macro F1 gives each class the same weight. Otherwise accuracy for one label
    a row, and micro F1 for several.

    Args:
        references: ``(rows,)`` label ids, or ``(rows, labels)`` zeros and ones when ``multi_label``.
        multi_label: A row can have any number of labels.

    Raises:
        MeasurementError: There are no rows.
    """
    from scipy.special import bdtr, bdtrc

    r = np.asarray(references)
    if len(r) == 0:
        raise MeasurementError("There are no rows to choose a metric for.")
    counts = r.astype(np.int64).sum(axis=0) if multi_label else np.unique(r, return_counts=True)[1]
    counts = counts[counts > 0]
    plain, what = ("f1_micro", "labels") if multi_label else ("accuracy", "classes")
    if len(counts) < 2:
        return plain, f"{plain}: the references hold fewer than two {what}."
    n, fair = int(counts.sum()), 1 / len(counts)
    low, high = int(counts.min()), int(counts.max())
    # Chance of such an extreme in any of the classes, if all had the same share.
    by_chance = len(counts) * np.array([bdtr(float(low), n, fair), bdtrc(float(high - 1), n, fair)])
    beyond = np.array([low < 0.5 * n * fair, high > 2 * n * fair])
    sizes = f"the {len(counts)} {what} have {low:,} to {high:,} rows each"
    if (beyond & (by_chance < 0.01)).any():
        return "f1_macro", f"f1_macro: {sizes}, so the small ones must count as much as the large."
    return plain, f"{plain}: {sizes}, which is even enough."
