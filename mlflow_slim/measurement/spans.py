"""How right the answers to words are: word by word, and by whole spans as seqeval counts them.

A span is right when its kind and both its ends are. What counts as a span is seqeval's lenient reading, that of the
CoNLL scripts, whichever of IOB1, IOB2, IOE, BIOES or plain labels the tags are written in.

Source: Nakayama 2018, seqeval; Tjong Kim Sang and Buchholz 2000, conlleval.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import MissingDependency
from .quality import class_keys

__all__ = ["OUTSIDE", "check_seqeval", "marks_spans", "span_counts", "span_quality", "span_tags"]

OUTSIDE = "O"
"""The tag of a word that belongs to no span."""
# seqeval's lenient reading knows no BILOU: a last word ends a span, a unit is one alone
_AS_IOBES = {"L": "E", "U": "S"}


def check_seqeval() -> None:
    """Raises MissingDependency when seqeval isn't installed."""
    if importlib.util.find_spec("seqeval") is None:
        raise MissingDependency(
            "Scoring spans of words needs seqeval. Install it with: pip install 'mlflow_slim[tokens]'"
        )


def marks_spans(labels: Sequence[str]) -> bool:
    """Whether tags mark spans among words that belong to none, and don't give every word a class of its own."""
    return OUTSIDE in labels and len(labels) > 1


def span_tags(labels: Sequence[str]) -> list[str]:
    """The labels as tags that seqeval reads; plain ones as the inside of a span, so that equal neighbours are one.

    >>> span_tags(["O", "B-PER", "U-LOC", "ORG"])
    ['O', 'B-PER', 'S-LOC', 'I-ORG']
    """
    found = []
    for label in labels:
        mark, dash, kind = label.partition("-")
        if label == OUTSIDE or (dash and kind and mark in "BIES" and len(mark) == 1):
            found.append(label)
        elif dash and kind and mark in _AS_IOBES:
            found.append(f"{_AS_IOBES[mark]}-{kind}")
        else:
            found.append(f"I-{label}")
    return found


def span_counts(predicted: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """``(rows, kinds, 3)`` spans that are right, predicted, and there; and the names of the kinds.

    Args:
        predicted: ``(rows, words)`` label ids; -1 where the model was not shown the word, which counts as none.
        references: ``(rows, words)`` label ids, negative after a row's last word.
        labels: Names of the labels; one of them is `OUTSIDE`.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    tags = np.array([*span_tags(labels), OUTSIDE], dtype=object)  # -1 is the last one
    kinds = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
    place = {kind: i for i, kind in enumerate(kinds)}
    counts = np.zeros((len(references), len(kinds), 3))
    for row, (mine, right) in enumerate(zip(predicted, references, strict=True)):
        size = int((right >= 0).sum())
        ours, theirs = (set(get_entities(tags[np.maximum(ids[:size], -1)].tolist())) for ids in (mine, right))
        for number, spans in enumerate((ours & theirs, ours, theirs)):
            for kind, _, _ in spans:
                counts[row, place[kind], number] += 1
    return counts, kinds


def span_quality(counts: np.ndarray, kinds: Sequence[str]) -> Mapping[str, float]:
    """``span_f1``, ``span_precision``, ``span_recall`` over all spans, and F1 of each kind that the references hold."""
    right, predicted, there = counts.sum(axis=(0, 1))
    scores = {}
    if there:
        scores["span_recall"] = right / there
        scores["span_f1"] = 2 * right / (predicted + there)
    if predicted:
        scores["span_precision"] = right / predicted
    for key, (hit, given, wanted) in zip(class_keys(kinds), counts.sum(axis=0), strict=True):
        if wanted:
            scores[f"f1/{key}"] = 2 * hit / (given + wanted)
    return {name: float(value) for name, value in scores.items()}
