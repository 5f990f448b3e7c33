"""Three sets by hand, and what must hold of any frontier."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_slim.dominance import Candidate, Figure, Objective, find_knee, hypervolume, place
from mlflow_slim.errors import ConfigError

QUALITY = Objective("quality/accuracy", True, 0.002, absolute=True)
LATENCY = Objective("latency/p50_ms", False, 0.02)
BOTH = (QUALITY, LATENCY)


def point(name: str, accuracy: float, p50: float, *, width: float = 0.0, p50_width: float = 0.0) -> Candidate:
    return Candidate(
        name,
        {
            "quality/accuracy": Figure(accuracy, accuracy - width, accuracy + width),
            "latency/p50_ms": Figure(p50, p50 - p50_width, p50 + p50_width),
        },
    )


def fronts(*candidates: Candidate) -> dict[str, str]:
    return {found.name: found.front for found in place(candidates, BOTH, resamples=50)}


def test_exact_figures_give_the_front_that_a_person_would_draw() -> None:
    found = place([point("a", 0.9, 10), point("b", 0.8, 2), point("c", 0.7, 5)], BOTH)
    assert [(one.name, one.front, one.dominated_by) for one in found] == [
        ("a", "sure", ()),
        ("b", "sure", ()),
        ("c", "dominated", ("b",)),
    ]
    assert [one.p_front for one in found] == [1, 1, 0]


def test_a_point_that_is_worse_within_its_interval_is_not_dropped() -> None:
    assert fronts(point("a", 0.90, 10, width=0.02), point("b", 0.89, 10, width=0.02)) == {
        "a": "possible",
        "b": "possible",
    }
    assert fronts(point("a", 0.90, 10, width=0.02), point("b", 0.80, 10, width=0.02)) == {"a": "sure", "b": "dominated"}


def test_a_difference_below_the_tolerance_neither_saves_nor_drops_a_point() -> None:
    assert fronts(point("a", 0.900, 10), point("b", 0.901, 20)) == {"a": "sure", "b": "dominated"}
    assert fronts(point("a", 0.900, 10), point("b", 0.900, 10.1)) == {"a": "possible", "b": "possible"}


def test_the_chance_of_being_on_the_front_follows_the_intervals() -> None:
    even, odd = place([point("a", 0.9, 10, width=0.01), point("b", 0.9, 10, width=0.01)], (QUALITY,), resamples=2000)
    assert abs(even.p_front - 0.5) < 0.05 and abs(odd.p_front - 0.5) < 0.05
    likely, less = place([point("a", 0.91, 10, width=0.01), point("b", 0.9, 10, width=0.01)], (QUALITY,))
    assert likely.p_front > 0.85 > 0.15 > less.p_front


def test_equal_points_stay_both() -> None:
    assert fronts(point("a", 0.9, 10), point("b", 0.9, 10)) == {"a": "possible", "b": "possible"}


some_points = st.lists(
    st.tuples(st.floats(0.5, 1), st.floats(1, 100), st.floats(0, 0.1), st.floats(0, 1)), min_size=1, max_size=8
)


@given(some_points, st.randoms())
def test_the_answer_does_not_depend_on_the_order(values: list[tuple[float, ...]], rnd: object) -> None:
    candidates = [point(str(i), a, b, width=w, p50_width=v) for i, (a, b, w, v) in enumerate(values)]
    shuffled = list(candidates)
    rnd.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fronts(*candidates) == fronts(*shuffled)


@given(some_points)
def test_somebody_is_always_left_and_the_dominated_name_who_beats_them(values: list[tuple[float, ...]]) -> None:
    candidates = [point(str(i), a, b) for i, (a, b, *_) in enumerate(values)]
    found = place(candidates, BOTH, resamples=1)
    assert all(bool(one.dominated_by) == (one.front == "dominated") for one in found)
    assert any(one.front != "dominated" for one in found)


def test_three_that_win_one_figure_each_and_lose_the_others_within_tolerance_all_stay() -> None:
    axes = [Objective(name, True, 1.0, absolute=True) for name in "xyz"]
    turns = [(0.0, 0.8, 1.6), (1.6, 0.0, 0.8), (0.8, 1.6, 0.0)]  # each beats the next by 1.6 once, and loses 0.8 twice
    circle = [Candidate(str(i), dict(zip("xyz", map(Figure, turn), strict=True))) for i, turn in enumerate(turns)]
    assert "dominated" not in {one.front for one in place(circle, axes)}


def test_what_cannot_be_placed_is_refused_with_every_reason() -> None:
    with pytest.raises(ConfigError, match="'b' has no figure 'latency/p50_ms'"):
        place([point("a", 0.9, 1), Candidate("b", {"quality/accuracy": Figure(0.9)})], BOTH)
    with pytest.raises(ConfigError, match="Two candidates are named 'a'"):
        place([point("a", 0.9, 1), point("a", 0.8, 1)], BOTH)
    with pytest.raises(ConfigError, match="at least one objective"):
        place([point("a", 0.9, 1)], ())
    with pytest.raises(ConfigError, match="lie in its interval"):
        Figure(1.0, 2.0, 3.0)
    with pytest.raises(ConfigError, match="must be finite"):
        Figure(float("nan"))


def test_the_hypervolume_of_boxes_is_their_union() -> None:
    zero = np.zeros(3)
    assert hypervolume(np.array([[1.0, 2.0, 3.0]]), zero) == 6
    assert hypervolume(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.5, 1.0, 1.0]]), zero) == 6
    assert hypervolume(np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]), zero) == 4
    assert hypervolume(np.array([[2.0, -1.0, 1.0]]), zero) == 0
    assert hypervolume(np.empty((0, 3)), zero) == 0


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=6))
def test_the_hypervolume_counts_the_cells_that_points_cover(corners: list[tuple[int, ...]]) -> None:
    cells = {cell for corner in corners for cell in itertools.product(*(range(side) for side in corner))}
    assert hypervolume(np.array(corners, dtype=float), np.zeros(3)) == len(cells)


def test_the_knee_is_where_the_curve_bends() -> None:
    candidates = [point("small", 0.6, 1), point("knee", 0.88, 1.5), point("big", 0.9, 10)]
    found = find_knee(candidates, BOTH)
    assert found is not None and found.name == "knee"
    assert find_knee(candidates[:2], BOTH) is None
