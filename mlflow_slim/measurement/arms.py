"""The inputs that all arms are timed on, and the arms themselves.

A language model is sent the prompt of median length and writes a fixed number of tokens. Of other models,
``single`` sends the test text of median length, one at a time. ``offline`` sends two batches of texts that
stand for the lengths in the test split, sorted by length. Both are timed on encoded inputs (what the model
costs) and again from raw text (what a caller waits for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifact import ExportedModel
from ..interfaces import Batch, Input, Predictor
from .timing import Arm

__all__ = ["CountedArm", "Scenario", "arm_names", "is_generator", "make_scenarios", "representative_rows"]


@dataclass(frozen=True)
class CountedArm:
    """An arm that knows how many inputs one call processes; for energy."""

    name: str
    call: Callable[[], object]
    samples_per_call: int


@dataclass(frozen=True)
class Scenario:
    """One way of being asked, with two arms for each point: on encoded inputs, and from raw text.

    Attributes:
        name: ``single`` or ``offline``.
        title: For people.
        rows: Inputs that one call processes.
        tokens: Tokens that one call of the baseline processes, padding included; None where it keeps them to itself.
        arms: On encoded inputs, the baseline's first.
        text_arms: From raw text, in the same order; none for language models.
        control: The baseline loaded anew, on encoded inputs; None where it wasn't.
        min_rounds: Rounds that a verdict needs; fewer where one call takes seconds.
    """

    name: str
    title: str
    rows: int
    tokens: int | None
    arms: tuple[Arm, ...]
    text_arms: tuple[Arm, ...]
    control: Arm | None = None
    min_rounds: int = 40

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
    points: Sequence[ExportedModel],
    predictors: Sequence[Predictor],
    inputs: Sequence[Input],
    batch_size: int,
    copies: Sequence[Sequence[Predictor]] = (),
    control: Sequence[Predictor] = (),
) -> list[Scenario]:
    """Both scenarios over all points.

    Args:
        points: The baseline first.
        predictors: One a point.
        inputs: The test rows.
        batch_size: Rows of one offline batch.
        copies: Further predictors of the same points, each set in the points' order.
        control: Predictors of the baseline that no arm uses, as many as there are of each point.
    """
    median = representative_rows(inputs, 1)
    names = arm_names(points)
    loaded = list(zip(predictors, *copies, strict=True))  # by point
    if is_generator(predictors[0]):
        return [_requests(names, loaded, median, control)]
    rows = representative_rows(inputs, 2 * batch_size)
    scenarios = []
    for name, title, chosen in (
        ("single", "one text at a time", [median]),
        ("offline", f"batches of {batch_size}", [rows[:batch_size], rows[batch_size:]]),
    ):
        encoded = [[predictor.encode(batch) for batch in chosen] for predictor in predictors]
        ready = [[_forward(one, batches) for one in same] for same, batches in zip(loaded, encoded, strict=True)]
        twins = [_forward(one, encoded[0]) for one in control]
        raw = [[_from_text(one, chosen) for one in same] for same in loaded]
        scenarios.append(
            Scenario(
                name=name,
                title=title,
                rows=sum(len(batch) for batch in chosen),
                tokens=_tokens(encoded[0]),
                arms=tuple(_arm(arm, calls) for arm, calls in zip(names, ready, strict=True)),
                text_arms=tuple(_arm(f"{arm} from text", calls) for arm, calls in zip(names, raw, strict=True)),
                control=_arm(names[0], twins) if twins else None,
            )
        )
    return scenarios


def is_generator(predictor: Any) -> bool:
    """Whether a model writes token after token, each of which can be timed."""
    return hasattr(predictor, "stamps")


def _requests(
    names: Sequence[str], loaded: Sequence[Sequence[Predictor]], median: Sequence[Input], control: Sequence[Predictor]
) -> Scenario:
    """One prompt at a time, answered with a fixed number of tokens. Tokenizing is nothing beside it."""
    encoded = [same[0].encode(median) for same in loaded]
    calls = [[_forward(one, [batch]) for one in same] for same, batch in zip(loaded, encoded, strict=True)]
    twins = [_forward(one, encoded[:1]) for one in control]
    return Scenario(
        name="single",
        title="one prompt at a time",
        rows=1,
        tokens=_tokens(encoded[:1]),
        arms=tuple(_arm(arm, own) for arm, own in zip(names, calls, strict=True)),
        text_arms=(),
        control=_arm(names[0], twins) if twins else None,
        min_rounds=12,
    )


def _arm(name: str, calls: Sequence[Callable[[], object]]) -> Arm:
    return Arm(name, calls[0], copies=tuple(calls[1:]))


def arm_names(points: Sequence[ExportedModel]) -> list[str]:
    """The points' variants, numbered where two are the same (a model measured against itself)."""
    variants = [point.variant for point in points]
    return [v if variants.index(v) == i else f"{v} ({i + 1})" for i, v in enumerate(variants)]


def _tokens(batches: Sequence[Batch]) -> int | None:
    """Tokens of all batches, padding included; None where the model keeps its tokens to itself."""
    if any("input_ids" not in batch for batch in batches):
        return None
    return sum(int(batch["input_ids"].size) for batch in batches)


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
