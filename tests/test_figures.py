"""The pictures: where the points lie, how long the bars are, what is left out."""

from __future__ import annotations

import io

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mlflow_slim.figures import break_even_figure, make_figures, trade_off_figure
from mlflow_slim.measurement.report import Report

BASE = Report(
    "baseline",
    {"quality/accuracy": 0.84, "latency/p50_ms": 12.0, "size/disk_mib": 87.0, "energy/wh_per_1k_samples": 0.08},
)
STUDENT = Report(
    "distill.logits@onnxruntime",
    {
        "quality/accuracy": 0.83,
        "quality/accuracy_delta": -0.01,
        "quality/accuracy_delta_lo": -0.03,
        "quality/accuracy_delta_hi": 0.01,
        "latency/p50_ms": 3.0,
        "speedup/single": 4.0,
        "speedup/single_lo": 3.0,
        "speedup/single_hi": 6.0,
        "size/disk_mib": 67.0,
        "energy/wh_per_1k_samples": 0.03,
        "optimize/energy_kwh": 0.005,
        "optimize/break_even_samples": 100_000.0,
    },
)


def bars(figure: Figure) -> list[ErrorbarContainer]:
    return [box for box in figure.axes[0].containers if isinstance(box, ErrorbarContainer)]


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out)
    return out.getvalue()


def test_points_lie_where_they_were_measured_with_their_intervals() -> None:
    first, second = bars(trade_off_figure([BASE, STUDENT], "latency"))
    assert first.lines[0].get_xydata().tolist() == [[12.0, 0.84]]
    assert second.lines[0].get_xydata().tolist() == [[3.0, 0.83]]
    horizontal, vertical = (bar.get_segments()[0].tolist() for bar in second.lines[2])
    # 12 ms divided by speed-ups of 6 and 3; quality 0.84 plus differences of -0.03 and 0.01.
    assert horizontal == [[pytest.approx(2.0), 0.83], [pytest.approx(4.0), 0.83]]
    assert vertical == [[3.0, pytest.approx(0.81)], [3.0, pytest.approx(0.85)]]


def test_every_picture_with_two_points_is_made_and_saves() -> None:
    figures = make_figures([BASE, STUDENT])
    assert set(figures) == {"quality_vs_latency", "quality_vs_size", "quality_vs_energy", "break_even"}
    for figure in figures.values():
        assert png(figure).startswith(b"\x89PNG")


def test_points_without_the_figure_are_left_out() -> None:
    bare = Report("distill.logits", {"quality/accuracy": 0.8})
    assert set(make_figures([BASE, bare])) == set()
    assert len(bars(trade_off_figure([BASE, bare, STUDENT], "size"))) == 2


def test_break_even_lines_cross_at_the_break_even() -> None:
    figure = break_even_figure([BASE, STUDENT])
    assert figure is not None
    base, student, crossing = figure.axes[0].lines
    x, y = crossing.get_xydata()[0]
    assert x == 100.0  # thousands
    assert y == pytest.approx(0.08 / 1000 * 100_000)
    assert student.get_ydata()[0] == pytest.approx(5.0)
    assert base.get_ydata()[0] == 0.0


def test_no_candidate_that_saves_energy_no_break_even_picture() -> None:
    assert break_even_figure([BASE, Report("x", {"energy/wh_per_1k_samples": 0.2})]) is None
    assert break_even_figure([]) is None


def test_names_with_dollar_signs_and_an_interval_off_the_value_are_no_error() -> None:
    odd = Report("a$\\frac{$b@x", {**STUDENT.metrics, "quality/accuracy": 0.9})
    for figure in make_figures([BASE, odd]).values():
        assert png(figure)


def test_no_global_setting_of_matplotlib_is_touched() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    make_figures([BASE, STUDENT])
    assert dict(matplotlib.rcParams) == before
