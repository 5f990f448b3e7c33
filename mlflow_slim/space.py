"""The space of a sweep: chains whose options may be choices, checked whole before anything is done.

In YAML an option's value is itself, ``{choices: [1, 2]}``, or ``{low: 1, high: 8}`` with ``step: 2`` or ``log: true``.
A variant is one chain with every choice made, on one runtime.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .catalog import find_technique
from .errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Range", "Space", "Variant", "plain"]

_LARGEST_GRID = 10_000
_RANGE_KEYS = frozenset(("low", "high", "step", "log"))


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both in it; whole ones when both ends are.

    Attributes:
        low, high: The ends, low <= high.
        step: Distance of neighbours; None for whole numbers (1) and for any number (only drawn, never a grid).
        log: Drawn by ratios instead of differences; needs low > 0.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return all(isinstance(x, int) for x in (self.low, self.high, 1 if self.step is None else self.step))

    def grid(self) -> list[Any]:
        """Every value; the ends and the middle where no step says which."""
        if self.step is None and not self.is_whole:
            middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
            return [self.low, middle, self.high]
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + i * step for i in range(count)]

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.step is not None or (self.is_whole and not self.log):
            values = self.grid()
            return values[int(rng.integers(len(values)))]
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(rng.uniform(self.low, self.high))
        return round(value) if self.is_whole else value


Choice = Sequence[Any] | Range


@dataclass(frozen=True)
class Variant:
    """One chain with every choice made, on one runtime.

    Attributes:
        chain: Its place in the space.
        steps: Mappings with ``technique`` and options, as in a recipe.
        backend: The runtime.
        choices: What was chosen, by ``<kind>.<option>``; for people.
    """

    chain: int
    steps: tuple[Mapping[str, Any], ...]
    backend: str
    choices: Mapping[str, Any]

    @property
    def key(self) -> str:
        """One text for this and no other variant."""
        return json.dumps([[dict(step) for step in self.steps], self.backend], sort_keys=True, default=str)

    @property
    def title(self) -> str:
        """Chain, choices and runtime in one line."""
        names = "+".join(str(step["technique"]) for step in self.steps) or "baseline"
        return f"{names}@{self.backend}" + (f" ({self.chosen})" if self.choices else "")

    @property
    def chosen(self) -> str:
        """The choices as people write them."""
        return ", ".join(f"{name}={value}" for name, value in self.choices.items())


@dataclass(frozen=True)
class Space:
    """Chains with open options.

    Attributes:
        chains: Each a sequence of steps; a step maps ``technique`` and its options to values or choices.
        backends: Runtimes to try each chain on.
    """

    chains: tuple[tuple[Mapping[str, Any], ...], ...]
    backends: tuple[str, ...]

    @classmethod
    def read(cls, content: Any, backends: Sequence[str]) -> Space:
        """From YAML's values.

        Raises:
            ConfigError: It is no list of chains, or a choice is malformed; every fault is named.
        """
        faults: list[str] = []
        if not isinstance(content, list) or not content:
            raise ConfigError("space is no list of chains. Write for instance space: [[quantize.dynamic]].")
        chains = []
        for place, chain in enumerate(content):
            if not isinstance(chain, list):
                faults.append(f"space[{place}] is no list of steps. Write a chain as a list, [] for the original.")
                continue
            chains.append(tuple(_step(step, f"space[{place}][{i}]", faults) for i, step in enumerate(chain)))
        if faults:
            raise ConfigError(faults)
        return cls(tuple(chains), tuple(backends))

    def probes(self) -> Iterator[Variant]:
        """Variants that hold every choice once: each chain's first one, then each option's others by themselves."""
        for place, chain in enumerate(self.chains):
            values = {name: c.grid() if isinstance(c, Range) else list(c) for name, c in _open(chain).items()}
            first = {name: known[0] for name, known in values.items()}
            for backend in self.backends:
                yield self._variant(place, first, backend)
                for name, known in values.items():
                    for value in known[1:]:
                        yield self._variant(place, {**first, name: value}, backend)

    def grid(self) -> list[Variant]:
        """Every variant, chain by chain, so that chains with the same beginning follow one another.

        Raises:
            ConfigError: There are more than 10,000.
        """
        found = list(itertools.islice(self._grid(), _LARGEST_GRID + 1))
        if len(found) > _LARGEST_GRID:
            raise ConfigError(
                f"The space has more than {_LARGEST_GRID:,} variants. Search it with sampler=random or tpe."
            )
        return found

    def _grid(self) -> Iterator[Variant]:
        for place, chain in enumerate(self.chains):
            open_options = _open(chain)
            values = [c.grid() if isinstance(c, Range) else list(c) for c in open_options.values()]
            for chosen in itertools.product(*values):
                for backend in self.backends:
                    yield self._variant(place, dict(zip(open_options, chosen, strict=True)), backend)

    def draw(self, rng: np.random.Generator) -> Variant:
        """A random variant: a chain, then its choices, then a runtime."""

        def choose(_: str, choice: Choice) -> Any:
            return choice.draw(rng) if isinstance(choice, Range) else choice[int(rng.integers(len(choice)))]

        return self.choose(choose)

    def choose(self, decide: Callable[[str, Choice], Any]) -> Variant:
        """The variant that ``decide`` makes, called with a name for each choice and what there is."""
        place = int(decide("chain", list(range(len(self.chains)))))
        chosen = {
            option: decide(f"chain{place}.{option}", choice) for option, choice in _open(self.chains[place]).items()
        }
        return self._variant(place, chosen, str(decide("backend", self.backends)))

    def _variant(self, place: int, chosen: Mapping[str, Any], backend: str) -> Variant:
        steps = []
        for i, step in enumerate(self.chains[place]):
            steps.append({key: chosen.get(_name(self.chains[place], i, key), value) for key, value in step.items()})
        return Variant(place, tuple(steps), backend, dict(chosen))


def _step(step: Any, where: str, faults: list[str]) -> Mapping[str, Any]:
    if isinstance(step, str):
        step = {"technique": step}
    if not isinstance(step, Mapping) or not isinstance(step.get("technique"), str):
        faults.append(f"{where} names no technique. Write technique: quantize.dynamic and its options.")
        return {"technique": ""}
    found: dict[str, Any] = {"technique": find_technique(step["technique"])}
    for key, value in step.items():
        if key != "technique":
            found[key] = _value(value, f"{where}.{key}", faults)
    return found


def _value(value: Any, where: str, faults: list[str]) -> Any:
    """A value as it is, or a `_Choices` or `Range`."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"choices"}:
        choices = value["choices"]
        if isinstance(choices, list) and choices:
            return _Choices(choices)
        faults.append(f"{where}: choices must be a list with something in it, got {choices!r}.")
        return None
    if {"low", "high"} <= set(value) <= _RANGE_KEYS:
        numbers = [value.get(key) for key in ("low", "high", "step")]
        good = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers if x is not None)
        if good and value["low"] <= value["high"] and (numbers[2] is None or numbers[2] > 0):
            if not value.get("log") or value["low"] > 0:
                return Range(value["low"], value["high"], value.get("step"), bool(value.get("log", False)))
            faults.append(f"{where}: a range by ratios (log) must begin above 0, got {value['low']}.")
            return None
        faults.append(f"{where}: low and high must be numbers, low <= high, and step above 0, got {dict(value)}.")
        return None
    faults.append(f"{where}: {dict(value)} is no choice. Write choices: [...], or low: and high:.")
    return None


def plain(value: Any) -> Any:
    """A space's value, choice or range as YAML has it; `Space.read` reads it back."""
    if isinstance(value, Range):
        found: dict[str, Any] = {"low": value.low, "high": value.high}
        return found | ({"step": value.step} if value.step is not None else {}) | ({"log": True} if value.log else {})
    if isinstance(value, _Choices):
        return {"choices": [plain(one) for one in value]}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


class _Choices(tuple):  # type: ignore[type-arg]
    """Values to choose from; a class of its own, since an option's value may be a list."""


def _open(chain: Sequence[Mapping[str, Any]]) -> dict[str, Choice]:
    """Choices of a chain by name, in order."""
    return {
        _name(chain, i, key): value
        for i, step in enumerate(chain)
        for key, value in step.items()
        if isinstance(value, _Choices | Range)
    }


def _name(chain: Sequence[Mapping[str, Any]], place: int, option: str) -> str:
    """``<kind>.<option>``, with the position where a kind repeats."""
    kinds = [str(step["technique"]).partition(".")[0] for step in chain]
    kind = kinds[place]
    return f"{kind}.{option}" if kinds.count(kind) == 1 else f"{place}.{kind}.{option}"
