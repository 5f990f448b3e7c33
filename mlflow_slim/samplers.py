"""The order in which a sweep tries the variants of its space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .errors import MissingDependency
from .schema import meaning
from .search import Search
from .space import Range, Space, Variant

__all__ = ["Sampler", "find_optuna", "make_sampler"]


class Sampler(Protocol):
    """Gives variants and is told what became of each before it gives the next."""

    def variants(self) -> Iterator[Variant]:
        """Each variant once."""
        ...

    def tell(self, values: Sequence[float] | None) -> None:
        """What the last variant came to, in the objectives' order; None when it failed or lacks one of them."""
        ...


class _Listed:
    """Variants known beforehand."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self._variants = variants

    def variants(self) -> Iterator[Variant]:
        return iter(self._variants)

    def tell(self, values: Sequence[float] | None) -> None:
        """Nothing to learn."""


class _Learning:
    """Variants from an Optuna sampler that sees what became of the ones before."""

    def __init__(self, space: Space, sampler: str, count: int, seed: int, objectives: Sequence[str]) -> None:
        optuna = find_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}
        directions = ["maximize" if meaning(name).higher_is_better else "minimize" for name in objectives]
        self._study = optuna.create_study(directions=directions, sampler=kinds[sampler](seed=seed))
        self._space, self._count = space, count
        self._asked: Any = None

    def variants(self) -> Iterator[Variant]:
        seen: set[str] = set()
        for _ in range(4 * self._count):  # a sampler may ask for the same variant again
            if len(seen) >= self._count:
                return
            self._asked = self._study.ask()
            variant = self._space.choose(self._decide)
            if variant.key in seen:
                self.tell(None)
                continue
            seen.add(variant.key)
            yield variant

    def _decide(self, name: str, choice: Any) -> Any:
        if isinstance(choice, Range):
            if choice.is_whole:
                step = 1 if choice.log else int(choice.step or 1)
                return self._asked.suggest_int(name, int(choice.low), int(choice.high), step=step, log=choice.log)
            return self._asked.suggest_float(
                name, choice.low, choice.high, step=None if choice.log else choice.step, log=choice.log
            )
        # Optuna takes plain values only: a list of layers is chosen by its place.
        return choice[self._asked.suggest_categorical(name, list(range(len(choice))))]

    def tell(self, values: Sequence[float] | None) -> None:
        if values is None:
            self._study.tell(self._asked, state=find_optuna().trial.TrialState.FAIL)
        else:
            self._study.tell(self._asked, list(values))


def make_sampler(search: Search, space: Space, seed: int) -> Sampler:
    """What ``search`` asks for.

    Raises:
        MissingDependency: It needs Optuna, which isn't installed.
    """
    if search.sampler == "grid":
        return _Listed(space.grid()[: search.max_trials])
    count = search.max_trials or 40
    if search.sampler == "random":
        import numpy as np

        rng = np.random.default_rng(seed)
        drawn: dict[str, Variant] = {}
        for _ in range(20 * count):
            variant = space.draw(rng)
            drawn.setdefault(variant.key, variant)
            if len(drawn) == count:
                break
        return _Listed(list(drawn.values()))
    return _Learning(space, search.sampler, count, seed, search.objectives)


def find_optuna() -> Any:
    """The ``optuna`` module.

    Raises:
        MissingDependency: It isn't installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency(
            "The samplers tpe and nsga2 need optuna. Install it with: pip install 'mlflow_slim[sweep]', or write "
            "search.sampler=random."
        ) from error
    return optuna
