"""Cutting rows into splits, by content: the same rows fall the same way whatever their order.

Rows with the same input stay together, so that a cut never makes a leak. Which side a row falls on is decided by a hash
of its input and the seed, so adding rows moves few others, and no library's random numbers are involved.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ..errors import DataError

__all__ = ["MINIMUM_ROWS", "cut"]

MINIMUM_ROWS = 10
"""Different inputs that cutting needs at least: below, a tenth is not even one row."""


def cut(
    keys: Sequence[Hashable], labels: Sequence[Any] | None, fractions: Mapping[str, float], *, seed: int, what: str
) -> tuple[dict[str, list[int]], str]:
    """Row indices for each split, in the rows' order, and one sentence on how they were made.

    Stratified by label when every class has enough different inputs for one in each split; otherwise one input of each
    label goes to the first split and the rest are cut as they come.

    Args:
        keys: The input of each row; equal inputs stay together.
        labels: The label of each row, or a list of labels; None cuts without looking at any.
        fractions: Share of each split, > 0, adding up to 1; the first (train) takes what rounding leaves.
        seed: Another seed, another cut.
        what: The rows in words, for messages.

    Raises:
        DataError: There are too few different inputs.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    parts = [f"{name} {share:.0%}" for name, share in fractions.items()]
    if len(groups) < MINIMUM_ROWS:
        raise DataError(
            f"{what} has {len(groups)} usable rows with different inputs; cutting {', '.join(parts)} from them needs "
            f"at least {MINIMUM_ROWS}. Add rows, or name a file for each split."
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}\x1f{key!r}".encode()).digest())
    if labels is None:
        side = _spread(order, {key: set() for key in order}, fractions)
        split = {name: [i for i, key in enumerate(keys) if side[key] == name] for name in fractions}
        return split, f"{', '.join(parts)} of {what}, seed {seed}"
    label_of = {key: _commonest([labels[i] for i in groups[key]]) for key in order}
    multi_label = any(isinstance(label, list) for label in labels)
    classes = Counter(label_of.values())
    smaller = list(fractions)[1:]
    if not multi_label and min(classes.values()) > len(smaller):
        side, how = _stratified(order, label_of, classes, fractions), "stratified by label"
    else:
        names_of = {
            key: {repr(x) for i in groups[key] for x in (labels[i] if multi_label else [labels[i]])} for key in order
        }
        side, how = _spread(order, names_of, fractions), "not stratified: "
        how += "the labels are lists" if multi_label else f"a class has fewer than {len(smaller) + 1} rows"
    empty = [name for name in fractions if name not in side.values()]
    if empty:
        needed = len(classes) + MINIMUM_ROWS
        raise DataError(
            f"{what} has {len(groups)} usable rows with different inputs for {len(classes)} labels, so nothing is left "
            f"for {' and '.join(empty)}; cutting needs at least {needed}. Add rows, or name a file for each split."
        )
    split = {name: [i for i, key in enumerate(keys) if side[key] == name] for name in fractions}
    return split, f"{', '.join(parts)} of {what}, seed {seed}, {how}"


def _commonest(labels: Sequence[Any]) -> str:
    counts = Counter(repr(label) for label in labels)
    return min(counts, key=lambda name: (-counts[name], name))


def _share(count: int, fraction: float) -> int:
    return max(1, int(count * fraction + 0.5))


def _stratified(
    order: Sequence[Hashable],
    label_of: Mapping[Hashable, str],
    classes: Mapping[str, int],
    fractions: Mapping[str, float],
) -> dict[Hashable, str]:
    first, *others = fractions
    left = {label: {name: _share(count, fractions[name]) for name in others} for label, count in classes.items()}
    side: dict[Hashable, str] = {}
    for key in order:
        room = left[label_of[key]]
        name = next((n for n in others if room[n] > 0), first)
        if name != first:
            room[name] -= 1
        side[key] = name
    return side


def _spread(
    order: Sequence[Hashable], names_of: Mapping[Hashable, set[str]], fractions: Mapping[str, float]
) -> dict[Hashable, str]:
    first, *others = fractions
    seen: set[str] = set()
    side: dict[Hashable, str] = {}
    free: list[Hashable] = []
    for key in order:
        if names_of[key] <= seen:
            free.append(key)
        else:  # the first row of a label goes to train, so that no label is unseen there
            side[key] = first
            seen |= names_of[key]
    start = 0
    for name in others:
        stop = start + _share(len(order), fractions[name])
        side.update((key, name) for key in free[start:stop])
        start = stop
    side.update((key, first) for key in free[start:])
    return side
