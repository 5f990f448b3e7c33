"""A checked sweep: what all its variants share, the space they come from, and how that is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from .config import Options, Recipe, describe_faults, find_sweep, read_yaml, split_words
from .errors import ConfigError
from .schema import check_metrics, meaning
from .space import Space, Variant, plain

__all__ = ["SCREENED", "Search", "Sweep"]

SCREENED = ("quality", "latency", "throughput", "speedup", "size")
"""Figures that screening gives."""


class Search(Options):
    """How the space is searched, and when that ends."""

    sampler: Literal["grid", "random", "tpe", "nsga2"] = Field("grid", description="How variants are picked.")
    max_trials: int | None = Field(
        None, ge=1, le=10_000, description="Most variants to try; default: grid all, else 40."
    )
    budget_minutes: float | None = Field(
        None, gt=0, description="No new variant is begun after this long; certifying the finalists comes on top."
    )
    budget_kwh: float | None = Field(
        None, gt=0, description="No new variant is begun once steps took this much energy."
    )
    screen_s: float = Field(
        1.0, gt=0, le=600, description="Seconds of timing per model and scenario when a variant is screened."
    )
    objectives: tuple[str, ...] = Field(("quality", "latency", "size"), description="Figures to choose finalists by.")
    finalists: int = Field(5, ge=1, le=50, description="Most variants to measure whole in the end.")

    _words = field_validator("objectives", mode="before")(split_words)

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_metrics(value)
        known = {meaning(name).metric for name in SCREENED}
        other = [name for name in value if meaning(name).metric not in known and not name.startswith("quality/")]
        if other:
            raise ValueError(
                f"Screening gives {', '.join(SCREENED)}, not {', '.join(other)}. Compare by them afterwards."
            )
        if len(value) > 3:
            raise ValueError("More than three objectives leave nearly every variant on the front. Name three at most.")
        return value


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        recipe: What all variants share: model, data, columns, measuring; without steps.
        search: How to search.
        space: What to search.
    """

    recipe: Recipe
    search: Search
    space: Space

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Sweep:
        """From a YAML file, the name of a shipped sweep (``sweep.small``) or a mapping, with dotted overrides.

        ``search.<option>``, and ``max_trials``, ``budget_minutes`` and ``budget_kwh`` by themselves, are of the search;
        everything else is as in a recipe.

        Raises:
            ConfigError: Something is wrong, or a variant of the space can't be done; every fault is named.
            InputNotFound: There is no such file.
        """
        if isinstance(source, Mapping):
            content = dict(source)
        else:
            path = find_sweep(source)
            name = path.stem if path.parent.name != "sweeps" else f"sweep.{path.stem}"
            content = {"name": name, **read_yaml(path, "a sweep", first="space")}
        faults: list[str] = []
        short = {"max_trials", "budget_minutes", "budget_kwh"}
        search, rest = dict(content.pop("search", None) or {}), {}
        for key, value in (overrides or {}).items():
            if key.startswith("search.") or key in short:
                if value != "":
                    search[key.removeprefix("search.")] = value
            else:
                rest[key] = value
        raw_space = content.pop("space", None)
        for key in ("steps", "against", "output"):
            if content.pop(key, None) or rest.get(key):
                faults.append(f"A sweep has no {key}. Write chains as space, and promote what it finds.")
        checked: Search | None = None
        try:
            checked = Search.read(search)
        except ConfigError as error:
            faults += [f"search.{fault}" for fault in error.faults]
        recipe: Recipe | None = None
        try:
            recipe = Recipe.load(content, rest)
        except ConfigError as error:
            faults += error.faults
        space: Space | None = None
        try:
            space = Space.read(raw_space, recipe.export.backends if recipe is not None else ("onnxruntime",))
        except ConfigError as error:
            faults += error.faults
        if space is not None and recipe is not None:
            faults += _space_faults(recipe, space)
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        assert checked is not None and recipe is not None and space is not None
        return cls(recipe, checked, space)

    def recipe_of(self, variant: Variant) -> Recipe:
        """The recipe that makes one variant."""
        content = {**self.recipe.resolved(), "steps": [dict(step) for step in variant.steps]}
        content["export"] = {"backends": [variant.backend], "baseline": False}
        return Recipe.load(content)

    def resolved(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            **self.recipe.resolved(),
            "search": self.search.model_dump(mode="json"),
            "space": plain(self.space.chains),
        }


def _space_faults(recipe: Recipe, space: Space) -> list[str]:
    """What is wrong with any choice of any chain; each choice is looked at once, by itself."""
    shared = Sweep(recipe, Search(), space)
    faults: list[str] = []
    bad: set[tuple[int, str]] = set()
    for variant in space.probes():
        try:
            shared.recipe_of(variant)
        except ConfigError as error:
            for fault in error.faults:
                if (variant.chain, fault) not in bad:
                    bad.add((variant.chain, fault))
                    faults.append(f"space[{variant.chain}] on {variant.backend}: {fault}")
        except (TypeError, ValidationError) as error:
            text = describe_faults(error, Recipe) if isinstance(error, ValidationError) else [str(error)]
            faults += [f"space[{variant.chain}]: {fault}" for fault in text]
    return faults
