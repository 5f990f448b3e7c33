"""The inputs that all arms are timed on, and the arms themselves.

``single`` sends the test text of median length, one at a time. ``offline`` sends two batches of texts that
stand for the lengths in the test split, sorted by length. Both are timed on encoded inputs (what the model
costs) and again from raw text (what a caller waits for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..artifact import ExportedModel
from ..interfaces import Batch, Input, Predictor
from .timing import Arm

__all__ = ["CountedArm", "Scenario", "make_scenarios", "representative_rows"]


@dataclass(frozen=True)
class CountedArm:
    """An arm that knows how many inputs one call processes; for energy."""

    name: str
    call: Callable[[], object]
    samples_per_call: int


@dataclass(frozen=True)
class Scenario:
    """One way of being asked, with an arm for each point.

    Attributes:
        name: ``single``, ``offline``, and the same ``_with_tokenizer``.
        kind: ``single`` or ``offline``.
        title: For people.
        rows: Inputs that one call processes.
        tokens: Tokens that one call of the baseline processes, padding included.
        arms: The baseline's first.
        is_headline: True without tokenization.
    """

    name: str
    kind: str
    title: str
    rows: int
    tokens: int
    arms: tuple[Arm, ...]
    is_headline: bool

    @property
    def energy_arms(self) -> tuple[CountedArm, ...]:
        return tuple(CountedArm(arm.name, arm.call, self.rows) for arm in self.arms)


def _length(row: Input) -> int:
    """Characters of a row, the same measure for every model whatever its tokenizer."""
    return len(row) if isinstance(row, str) else sum(len(part) for part in row)


def representative_rows(inputs: Sequence[Input], count: int) -> list[Input]:
    """``count`` rows at even steps through the rows sorted by length, shortest first.

    >>> representative_rows(["aaaa", "a", "aaa", "aa"], 2)
    ['aa', 'aaaa']
    """
    ordered = sorted(inputs, key=_length)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def make_scenarios(
    points: Sequence[ExportedModel], predictors: Sequence[Predictor], inputs: Sequence[Input], batch_size: int
) -> list[Scenario]:
    """The four scenarios over all points.

    Args:
        points: The baseline first.
        predictors: One a point.
        inputs: The test rows.
        batch_size: Rows of one offline batch.
    """
    rows = representative_rows(inputs, 2 * batch_size)
    median = representative_rows(inputs, 1)
    scenarios = []
    for kind, chosen in (("single", [median]), ("offline", [rows[:batch_size], rows[batch_size:]])):
        count = sum(len(batch) for batch in chosen)
        encoded = [[predictor.encode(batch) for batch in chosen] for predictor in predictors]
        tokens = sum(_tokens(batch) for batch in encoded[0])
        title = "one text at a time" if kind == "single" else f"batches of {batch_size}"
        ready = [_forward(predictor, batches) for predictor, batches in zip(predictors, encoded, strict=True)]
        raw = [_from_text(predictor, chosen) for predictor in predictors]
        for calls, with_tokenizer in ((ready, False), (raw, True)):
            arms = tuple(
                Arm(f"{i}:{point.variant}", call) for i, (point, call) in enumerate(zip(points, calls, strict=True))
            )
            name = f"{kind}_with_tokenizer" if with_tokenizer else kind
            said = f"{title}, from text" if with_tokenizer else title
            scenarios.append(Scenario(name, kind, said, count, tokens, arms, not with_tokenizer))
    return scenarios


def _tokens(batch: Batch) -> int:
    ids = batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))
    return int(ids.shape[0] * ids.shape[1]) if ids.ndim > 1 else int(ids.shape[0])


def _forward(predictor: Predictor, batches: Sequence[Batch]) -> Callable[[], object]:
    if len(batches) == 1:
        only = batches[0]
        return lambda: predictor.forward(only)

    def call() -> None:
        for batch in batches:
            predictor.forward(batch)

    return call


def _from_text(predictor: Predictor, batches: Sequence[Sequence[Input]]) -> Callable[[], object]:
    def call() -> None:
        for batch in batches:
            predictor.forward(predictor.encode(batch))

    return call
