"""How far a candidate's answers stray from the baseline's, row by row, beside how right both are.

Equal accuracy hides change: a compressed model can lose as many rows as it wins, and lose them all in
one corner of the data. So flips are counted in both directions, losses are looked for slice by slice, and the
rows that broke are listed for people to read.

Sources: Dutta et al. 2024, arXiv:2407.09141 (flips under compression); Hooker et al. 2019,
arXiv:1911.05248 (compression harms few, atypical rows).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError
from .quality import check_outputs, has_scores, predicted_labels, probabilities
from .stats import holm, mcnemar_exact, ratio_difference

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Slice",
    "agreement",
    "broken_rows",
    "confidence",
    "correct_rows",
    "make_slices",
    "mean_kl",
    "measure_slices",
    "negative_flips",
    "positive_flips",
    "ratio_slices",
    "row_slices",
    "shortened",
    "worst_of",
    "worst_slice",
]

Array: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]

LONGEST_TEXT = 1000


def correct_rows(logits: npt.ArrayLike, references: npt.ArrayLike, *, multi_label: bool) -> Bools:
    """``(rows,)`` whether an answer is right; with several labels a row, whether all of them are."""
    hit = predicted_labels(logits, multi_label=multi_label) == np.asarray(references)
    return np.asarray(hit.all(axis=1) if multi_label else hit, dtype=bool)


def confidence(logits: npt.ArrayLike, *, multi_label: bool) -> npt.NDArray[np.float64]:
    """``(rows,)`` how sure the model is of its answer, 0-1; with several labels a row, of the least sure one.

    nan where the model gives answers alone.
    """
    if not has_scores(logits):
        return np.full(len(np.asarray(logits)), np.nan)
    p = probabilities(logits, multi_label=multi_label)
    return np.asarray(np.maximum(p, 1 - p).min(axis=1) if multi_label else p.max(axis=1), dtype=np.float64)


def agreement(baseline_labels: npt.ArrayLike, candidate_labels: npt.ArrayLike) -> float:
    """Share of rows with the same answer, right or wrong; ``(rows,)`` ids, or ``(rows, labels)`` all equal.

    Raises:
        MeasurementError: No rows, or other rows than the baseline's.
    """
    a, b = _pair(baseline_labels, candidate_labels)
    return float((a == b).reshape(len(a), -1).all(axis=1).mean())


def negative_flips(baseline_correct: npt.ArrayLike, candidate_correct: npt.ArrayLike) -> float:
    """Share of rows that the baseline had right and the candidate has wrong.

    Raises:
        MeasurementError: No rows, or other rows than the baseline's.
    """
    a, b = _pair(baseline_correct, candidate_correct)
    return float((a.astype(bool) & ~b.astype(bool)).mean())


def positive_flips(baseline_correct: npt.ArrayLike, candidate_correct: npt.ArrayLike) -> float:
    """Share of rows that the baseline had wrong and the candidate has right.

    Raises:
        MeasurementError: No rows, or other rows than the baseline's.
    """
    return negative_flips(candidate_correct, baseline_correct)


def mean_kl(baseline_logits: npt.ArrayLike, candidate_logits: npt.ArrayLike, *, multi_label: bool) -> float:
    """KL(baseline || candidate) of the predicted probabilities in nats, mean over rows; 0 when both agree.

    With several labels a row it is the sum over labels, each a yes or no.

    Raises:
        MeasurementError: No rows, other rows than the baseline's, or outputs that are not finite.
    """
    a, b = (x.astype(np.float64) for x in _pair(baseline_logits, candidate_logits))
    for name, z in (("baseline", a), ("candidate", b)):
        if not np.isfinite(z).all():
            bad = int((~np.isfinite(z).all(axis=1)).sum())
            raise MeasurementError(f"The {name}'s outputs are not finite for {bad} of {len(z)} rows.")
    if multi_label:
        rows = np.zeros(len(a))
        for sign in (1, -1):  # yes and no: the log of a sigmoid
            log_a, log_b = -np.logaddexp(0, -sign * a), -np.logaddexp(0, -sign * b)
            rows += (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    else:
        log_a, log_b = (z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (a, b))
        rows = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    return max(0.0, float(rows.mean()))  # rounding can go below 0 by 1e-17


def broken_rows(
    inputs: Sequence[Any],
    references: npt.ArrayLike,
    baseline_logits: npt.ArrayLike,
    candidate_logits: npt.ArrayLike,
    *,
    labels: Sequence[str],
    multi_label: bool,
    k: int = 200,
) -> list[dict[str, Any]]:
    """The rows that the baseline had right and the candidate has wrong, the surest of the baseline first.

    Args:
        inputs: ``(rows,)`` texts, or pairs of texts; shown up to 1,000 characters each.
        references: ``(rows,)`` label ids, or ``(rows, labels)`` zeros and ones when ``multi_label``.
        baseline_logits: ``(rows, labels)``.
        candidate_logits: ``(rows, labels)``.
        labels: Names of the classes.
        multi_label: A row can have any number of labels.
        k: The most rows.

    Returns:
        Dicts of ``row`` (position in the data), ``text`` (and ``text_pair``), ``reference``, ``baseline``,
        ``baseline_score``, ``candidate``, ``candidate_score``; a score is the model's confidence in its own answer,
        None where it gives none.

    Raises:
        MeasurementError: The rows can't be scored, see `mlflow_slim.measurement.quality.check_outputs`.
    """
    for logits in (baseline_logits, candidate_logits):
        check_outputs(logits, references, labels=len(labels), multi_label=multi_label)
    if len(inputs) != len(np.asarray(references)):
        raise MeasurementError(f"There are {len(inputs)} inputs for {len(np.asarray(references))} references.")
    logits_of = {"baseline": baseline_logits, "candidate": candidate_logits}
    right = {name: correct_rows(z, references, multi_label=multi_label) for name, z in logits_of.items()}
    sure = {name: confidence(z, multi_label=multi_label) for name, z in logits_of.items()}
    answers = {name: predicted_labels(z, multi_label=multi_label) for name, z in logits_of.items()}
    answers["reference"] = np.asarray(references).astype(np.int64)

    def name_of(answer: Any) -> str:
        if multi_label:
            return ", ".join(str(label) for label, on in zip(labels, answer, strict=True) if on) or "(none)"
        return str(labels[int(answer)]) if answer < len(labels) else "(another)"

    def score_of(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    broken = np.flatnonzero(right["baseline"] & ~right["candidate"])
    surest = broken[np.argsort(-sure["baseline"][broken], kind="stable")][:k]
    return [
        {
            "row": int(i),
            **dict(zip(("text", "text_pair"), map(shortened, _texts(inputs[int(i)])), strict=False)),
            "reference": name_of(answers["reference"][i]),
            "baseline": name_of(answers["baseline"][i]),
            "baseline_score": score_of(sure["baseline"][i]),
            "candidate": name_of(answers["candidate"][i]),
            "candidate_score": score_of(sure["candidate"][i]),
        }
        for i in surest
    ]


@dataclass(frozen=True)
class Slice:
    """Both models on one part of the rows.

    Attributes:
        name: What the rows have in common.
        n: Rows in it.
        baseline_accuracy: Share right, 0-1.
        candidate_accuracy: Share right, 0-1.
        delta: Candidate less baseline.
        p_value: Exact McNemar test of the slice alone.
        p_adjusted: The same after Holm's correction over all slices that were looked at.
    """

    name: str
    n: int
    baseline_accuracy: float
    candidate_accuracy: float
    delta: float
    p_value: float
    p_adjusted: float


def make_slices(
    inputs: Sequence[Any],
    references: npt.ArrayLike,
    baseline_logits: npt.ArrayLike,
    *,
    labels: Sequence[str],
    multi_label: bool,
    frame: pd.DataFrame | None = None,
    exclude: Collection[str] = (),
) -> dict[str, Bools]:
    """Parts of the rows by name, each ``(rows,)`` bool; they overlap, and none depends on the candidate.

    They are the quarters by length in characters, each reference label, the half of which the baseline is less
    sure, and every value of the user's columns that have 2 to 20 of them (a missing value counts as one).

    Args:
        inputs: ``(rows,)`` texts, pairs of texts, or anything with a length.
        references: ``(rows,)`` label ids, or ``(rows, labels)`` zeros and ones when ``multi_label``.
        baseline_logits: ``(rows, labels)``.
        labels: Names of the classes.
        multi_label: A row can have any number of labels.
        frame: The user's columns, one row per input.
        exclude: Columns to leave out: the text and the label themselves.

    Raises:
        MeasurementError: The parts don't have the same number of rows.
    """
    r = np.asarray(references)
    n = len(r)
    if not len(inputs) == n == len(np.asarray(baseline_logits)) or (frame is not None and len(frame) != n):
        raise MeasurementError(
            f"Slices need the same rows, got {len(inputs)} inputs, {n} references, {len(np.asarray(baseline_logits))} "
            f"outputs and {'no' if frame is None else len(frame)} rows of columns."
        )
    slices: dict[str, Bools] = {}
    if n == 0:
        return slices
    slices |= _length_slices(inputs)
    for i, label in enumerate(labels):
        slices[_free(f"label: {label}", slices)] = r[:, i] == 1 if multi_label else r == i
    if has_scores(baseline_logits):
        sure = confidence(baseline_logits, multi_label=multi_label)
        slices["confidence: less sure half of the baseline"] = sure <= np.median(sure)
    if frame is not None:
        slices |= column_slices(frame, exclude, taken=slices)
    return slices


def _length_slices(inputs: Sequence[Any]) -> dict[str, Bools]:
    lengths = np.array([sum(len(part) for part in _texts(x)) for x in inputs])
    quarter = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths, side="left")
    parts = [quarter == q for q in np.unique(quarter)]
    return {f"length: {lengths[here].min()} to {lengths[here].max()} characters": here for here in parts}


def column_slices(frame: pd.DataFrame, exclude: Collection[str], *, taken: Collection[str] = ()) -> dict[str, Bools]:
    """Every value of the user's columns that have 2 to 20 of them, ``(rows,)`` bool each.

    Args:
        frame: The user's columns.
        exclude: Columns to leave out.
        taken: Names that are in use.
    """
    found: dict[str, Bools] = {}
    for column, value, here in _column_values(frame, exclude):
        found[_free(f"column {column}: {value}", {*taken, *found})] = here
    return found


def row_slices(inputs: Sequence[Any], frame: pd.DataFrame, exclude: Collection[str]) -> dict[str, Bools]:
    """Parts of rows whose answers are no classes: quarters by length, and the values of the user's columns."""
    parts = _length_slices(inputs)
    return {**parts, **column_slices(frame, exclude, taken=parts)}


def ratio_slices(
    parts: Mapping[str, Bools],
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    figure: str,
    min_rows: int,
) -> list[dict[str, Any]]:
    """Change, in parts of the rows, of a figure that is one sum over rows by another; the worst part first.

    Each has a 90 % interval of its own: of twenty, two miss by chance.

    Args:
        parts: ``(rows,)`` bool by name, see `row_slices`.
        before: ``(rows,)`` sums of the baseline.
        after: ``(rows,)`` sums of the candidate.
        weights: ``(rows,)`` what the figure is per.
        figure: Its name.
        min_rows: Smaller parts are left out: they show chance.
    """
    sums = [np.asarray(part, dtype=np.float64) for part in (before, after, weights)]
    found = []
    for name, here in parts.items():
        own = [part[here] for part in sums]
        if here.sum() < min_rows or not own[2].sum():
            continue
        change = ratio_difference(*own, confidence=0.90)
        found.append(
            {
                "name": name,
                "n": int(here.sum()),
                f"baseline_{figure}": float(own[0].sum() / own[2].sum()),
                f"candidate_{figure}": float(own[1].sum() / own[2].sum()),
                "delta": change.value,
                "delta_lo": change.lo,
                "delta_hi": change.hi,
            }
        )
    return sorted(found, key=lambda part: (part["delta"], -part["n"]))


def worst_of(slices: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, str]]:
    """The metric and the tag that name the first of `ratio_slices`; empty where there are none."""
    if not slices:
        return {}, {}
    worst = slices[0]
    return {"worst_slice_delta": worst["delta"]}, {"slim.quality.worst_slice": f"{worst['name']} ({worst['n']} rows)"}


def measure_slices(
    slices: Mapping[str, npt.ArrayLike],
    baseline_correct: npt.ArrayLike,
    candidate_correct: npt.ArrayLike,
    *,
    min_rows: int = 50,
) -> list[Slice]:
    """Both models on each slice of ``min_rows`` rows or more, the worst first.

    Args:
        slices: ``(rows,)`` bool by name, see `make_slices`.
        baseline_correct: ``(rows,)`` bool.
        candidate_correct: ``(rows,)`` bool.
        min_rows: Smaller slices are left out: they show chance.

    Raises:
        MeasurementError: No rows, or not the same rows everywhere.
    """
    a, b = (x.astype(bool) for x in _pair(baseline_correct, candidate_correct))
    kept: dict[str, Bools] = {}
    for name, members in slices.items():
        here = np.asarray(members, dtype=bool)
        if here.shape != a.shape:
            raise MeasurementError(f"The slice {name!r} has {len(here)} rows, the answers {len(a)}.")
        if here.sum() >= max(min_rows, 1):
            kept[name] = here
    flips = [(int((a & ~b & here).sum()), int((~a & b & here).sum())) for here in kept.values()]
    p_values = [mcnemar_exact(lost, won) for lost, won in flips]
    measured = [
        Slice(
            name=name,
            n=int(here.sum()),
            baseline_accuracy=float(a[here].mean()),
            candidate_accuracy=float(b[here].mean()),
            delta=(won - lost) / int(here.sum()),
            p_value=p,
            p_adjusted=adjusted,
        )
        for (name, here), (lost, won), p, adjusted in zip(kept.items(), flips, p_values, holm(p_values), strict=True)
    ]
    return sorted(measured, key=lambda s: (s.delta, -s.n))


def worst_slice(slices: Sequence[Slice]) -> Slice | None:
    """The slice with the lowest delta, the larger of equals; None when no slice was large enough.

    The lowest of many deltas is low by chance, too: read it together with ``p_adjusted``.
    """
    return min(slices, key=lambda s: (s.delta, -s.n), default=None)


def _column_values(frame: pd.DataFrame, exclude: Collection[str]) -> Iterator[tuple[str, str, Bools]]:
    import pandas as pd

    for position, column in enumerate(frame.columns):
        if column in exclude:
            continue
        try:
            codes, values = pd.factorize(frame.iloc[:, position], use_na_sentinel=False)
        except TypeError:  # lists and dicts have no distinct values
            continue
        if 2 <= len(values) <= 20:
            for code, value in enumerate(values):
                yield str(column), "(missing)" if pd.isna(value) else str(value), np.asarray(codes == code)


def _free(name: str, taken: Collection[str]) -> str:
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name} ({count})"
    return free


def _texts(one_input: Any) -> Sequence[Any]:
    return one_input if isinstance(one_input, list | tuple) else (one_input,)


def shortened(text: Any, longest: int = LONGEST_TEXT) -> str:
    """A text as tables show it, with dots for what is beyond ``longest`` characters."""
    whole = str(text)
    return whole if len(whole) <= longest else whole[: longest - 1] + "…"


def _pair(baseline: npt.ArrayLike, candidate: npt.ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(baseline), np.asarray(candidate)
    if a.shape != b.shape or len(a) == 0:
        raise MeasurementError(
            f"Both models must have answered the same rows, one or more; got {a.shape} for the baseline and {b.shape}."
        )
    return a, b
