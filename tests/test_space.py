"""Spaces of a sweep: choices, grids, draws, and every fault before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlflow_slim.errors import ConfigError
from mlflow_slim.search import Search, Sweep
from mlflow_slim.space import Range, Space

CHAINS: list[Any] = [
    [],
    ["quantize.dynamic"],
    [
        {
            "technique": "distill.logits",
            "layers": {"choices": [2, [0, 3]]},
            "learning_rate": {"low": 1e-4, "high": 1e-3},
        },
        {"technique": "quantize.dynamic", "embedding_bits": {"choices": [8, 4]}},
    ],
]


def test_a_grid_holds_every_choice_with_every_other() -> None:
    space = Space.read(CHAINS, ["onnxruntime"])
    grid = space.grid()
    assert len(grid) == 1 + 1 + 2 * 3 * 2
    assert len({variant.key for variant in grid}) == len(grid)
    last = grid[-1]
    assert last.steps[0]["layers"] == [0, 3]  # a list is one choice, not three
    assert last.choices == {"distill.layers": [0, 3], "distill.learning_rate": 1e-3, "quantize.embedding_bits": 4}
    assert grid[0].title == "baseline@onnxruntime"
    assert "distill.logits+quantize.dynamic@onnxruntime (distill.layers=[0, 3], " in last.title
    assert len(Space.read(CHAINS, ["onnxruntime", "openvino"]).grid()) == 2 * len(grid)


def test_draws_are_of_the_grid_and_repeat_with_the_seed() -> None:
    space = Space.read(CHAINS, ["onnxruntime"])
    draws = [[space.draw(rng).key for _ in range(20)] for rng in (np.random.default_rng(3), np.random.default_rng(3))]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 3


@pytest.mark.parametrize(
    ("found", "grid"),
    [
        (Range(2, 4), [2, 3, 4]),
        (Range(0.0, 1.0, 0.25), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Range(0.2, 0.8), [0.2, 0.5, 0.8]),
        (Range(1e-4, 1e-2, log=True), [1e-4, 1e-3, 1e-2]),
        (Range(1, 7, 3), [1, 4, 7]),
    ],
)
def test_a_range_has_its_ends(found: Range, grid: list[float]) -> None:
    assert found.grid() == pytest.approx(grid)
    rng = np.random.default_rng(0)
    for _ in range(50):
        value = found.draw(rng)
        assert found.low <= value <= found.high
        assert isinstance(value, int) == found.is_whole


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (None, "space is no list of chains"),
        ([], "space is no list of chains"),
        (["quantize.dynamic"], r"space\[0\] is no list of steps"),
        ([[{"layers": 2}]], r"space\[0\]\[0\] names no technique"),
        ([[{"technique": "prune.depth", "layers": {"choices": []}}]], "choices must be a list with something in it"),
        ([[{"technique": "prune.depth", "layers": {"choice": [1]}}]], "is no choice"),
        ([[{"technique": "prune.depth", "layers": {"low": 3, "high": 2}}]], "low <= high"),
        ([[{"technique": "prune.depth", "layers": {"low": 0, "high": 2, "log": True}}]], "must begin above 0"),
        ([[{"technique": "prune.depth", "layers": {"low": "a", "high": 2}}]], "must be numbers"),
    ],
)
def test_a_malformed_space_is_named(space: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Space.read(space, ["torch"])


def test_a_space_too_large_for_a_grid_is_refused() -> None:
    large = [[{"technique": "prune.width", "sparsity": {"low": 0, "high": 200}, "epochs": {"low": 1, "high": 200}}]]
    with pytest.raises(ConfigError, match="more than 10,000 variants"):
        Space.read(large, ["torch"]).grid()


def test_every_fault_of_a_sweep_is_found_before_any_work() -> None:
    content = {
        "seed": -1,
        "steps": ["prune.depth"],
        "search": {"sampler": "grit", "objectives": "energy", "finalists": 0},
        "export": {"backends": ["onnxruntime"]},
        "space": [
            ["quantise.dynamic"],
            ["quantize.dynamic", "prune.depth"],
            [{"technique": "distill.logits", "temprature": {"choices": [1, 2]}}],
            [{"technique": "distill.logits", "alpha": {"choices": [0.5, 3]}}],
        ],
    }
    with pytest.raises(ConfigError) as caught:
        Sweep.load(content, {"search.foo": 1})
    text = str(caught.value)
    for words in ("seed", "A sweep has no steps", "sampler", "Screening gives", "finalists", "Unknown option 'foo'"):
        assert words in text
    content |= {"seed": 0, "search": {}, "steps": []}
    with pytest.raises(ConfigError) as caught:
        Sweep.load(content)
    text = str(caught.value)
    assert "space[0]" in text
    assert "quantize.dynamic" in text
    assert "can't follow" in text
    assert "'steps[0].temprature'" in text
    assert text.count("temprature") == 1 + text.count("Did you mean 'temprature'")  # once, not for each choice
    assert "got 3" in text


def test_shipped_sweeps_are_sound_and_take_overrides() -> None:
    small = Sweep.load("sweep.small", {"budget_minutes": "5", "search.finalists": "2", "region": "FRA", "model": ""})
    assert (small.search.budget_minutes, small.search.finalists, small.recipe.region) == (5, 2, "FRA")
    assert (small.recipe.model, len(small.space.grid()), small.recipe.name) == ("demo", 6, "sweep.small")
    thorough = Sweep.load("sweep.thorough")
    assert (thorough.search.sampler, thorough.search.max_trials) == ("tpe", 60)
    assert Search.read({"objectives": "quality, size"}).objectives == ("quality", "size")


@pytest.mark.parametrize("name", ["sweep.small", "sweep.thorough"])
def test_what_a_sweep_logs_is_the_same_sweep(name: str) -> None:
    import yaml

    given = Sweep.load(name)
    again = Sweep.load(yaml.safe_load(yaml.safe_dump(given.resolved())))
    assert again == given


def test_an_unknown_sweep_names_those_there_are() -> None:
    from mlflow_slim.errors import InputNotFound

    with pytest.raises(InputNotFound, match=r"no sweep 'sweep\.smal'.*'sweep\.small'"):
        Sweep.load("sweep.smal")
