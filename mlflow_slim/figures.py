"""Pictures of a comparison: quality against what it costs, and when the optimization has paid for itself.

Figures are made without pyplot, so no display is needed and no global setting of matplotlib is touched. The
caller saves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .ledger import Line
    from .measurement.report import Report

__all__ = ["break_even_figure", "make_figures", "trade_off_figure", "waterfall_figure"]

# Okabe and Ito's palette, told apart by colour-blind people; the marker says the same once more.
_STYLES: Mapping[str, tuple[str, str]] = {
    "baseline": ("#595959", "s"),
    "torch": ("#0072b2", "o"),
    "onnxruntime": ("#d55e00", "D"),
    "openvino": ("#009e73", "^"),
}
_OTHER = ("#cc79a7", "v")

_COSTS: Mapping[str, tuple[str, str]] = {
    "latency": ("latency/p50_ms", "Median latency, one sample at a time (ms)"),
    "size": ("size/disk_mib", "Size on disk (MiB)"),
    "energy": ("energy/wh_per_1k_samples", "Energy per 1,000 samples (Wh)"),
}


def make_figures(reports: Sequence[Report]) -> dict[str, Figure]:
    """Every picture that these reports have figures for, by name; reports without a figure are left out of it."""
    figures = {}
    for name, (key, _) in _COSTS.items():
        if sum(_quality(report) is not None and key in report.metrics for report in reports) >= 2:
            figures[f"quality_vs_{name}"] = trade_off_figure(reports, name)
    figure = break_even_figure(reports)
    if figure is not None:
        figures["break_even"] = figure
    return figures


def _quality(report: Report) -> float | None:
    return report.metrics.get(f"quality/{_metric(report)}")


def _metric(report: Report) -> str:
    return report.tags.get("slim.quality.metric", "accuracy")


def _style(variant: str) -> tuple[str, str]:
    chain, _, backend = variant.partition("@")
    return _STYLES["baseline"] if chain == "baseline" and not backend else _STYLES.get(backend or "torch", _OTHER)


def _interval(report: Report, key: str) -> tuple[float, float] | None:
    """Low and high end of a figure's own interval."""
    low, high = report.metrics.get(f"{key}_lo"), report.metrics.get(f"{key}_hi")
    return None if low is None or high is None else (low, high)


def _quality_interval(report: Report, baseline: Report | None) -> tuple[float, float] | None:
    """The interval of quality; where only that of the difference is known, it is drawn around the baseline's value."""
    key = f"quality/{_metric(report)}"
    own = _interval(report, key)
    if own is not None or baseline is None or report is baseline:
        return own
    anchor, delta = _quality(baseline), _interval(report, f"{key}_delta")
    return None if anchor is None or delta is None else (anchor + delta[0], anchor + delta[1])


def _cost_interval(report: Report, key: str, baseline: Report | None) -> tuple[float, float] | None:
    """The interval of a cost; that of latency follows from the paired speed-up against the baseline."""
    own = _interval(report, key)
    if own is not None or key != "latency/p50_ms" or baseline is None:
        return own
    anchor, speedup = baseline.metrics.get(key), _interval(report, "speedup/single")
    if anchor is None or speedup is None or speedup[0] <= 0:
        return None
    return anchor / speedup[1], anchor / speedup[0]


def _errors(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    # A paired interval need not hold the unpaired value: a bar can't have a negative length.
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _canvas(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12, loc="left")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(text: str) -> str:
    """A name as it stands: a pair of dollar signs would be read as mathematics."""
    return text.replace("$", r"\$")


def trade_off_figure(reports: Sequence[Report], cost: str) -> Figure:
    """Quality (up) against a cost (left is better), with intervals where there are any.

    Args:
        reports: The points, the baseline first.
        cost: ``latency``, ``size`` or ``energy``.
    """
    key, label = _COSTS[cost]
    baseline = reports[0] if reports and reports[0].variant.startswith("baseline") else None
    drawn = [report for report in reports if _quality(report) is not None and key in report.metrics]
    metric = _metric(drawn[0]) if drawn else "quality"
    figure, axes = _canvas(f"{metric.replace('_', ' ').capitalize()} against {cost}")
    for report in drawn:
        x, y = report.metrics[key], _quality(report)
        assert y is not None
        color, marker = _style(report.variant)
        contended = report.tags.get("slim.measure.contended") == "true" and cost != "size"
        axes.errorbar(
            [x],
            [y],
            xerr=_errors(x, _cost_interval(report, key, baseline)),
            yerr=_errors(y, _quality_interval(report, baseline)),
            fmt=marker,
            color=color,
            markerfacecolor="white" if contended else color,
            markersize=9,
            elinewidth=1.4,
            capsize=3,
            label=_plain(report.variant) + (" (contended)" if contended else ""),
        )
    pairs = [(report.metrics[key], quality) for report in drawn if (quality := _quality(report)) is not None]
    corners = _staircase(pairs)
    if len(corners) > 1:
        axes.plot(*zip(*corners, strict=True), color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel(label)
    axes.set_ylabel(metric.replace("_", " "))
    # From zero, so that "half the latency" looks like half.
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.25)
    if drawn:
        figure.legend(loc="outside lower center", ncols=min(2, len(drawn)), frameon=False, fontsize=9)
    return figure


def waterfall_figure(lines: Sequence[Line]) -> Figure:
    """What each step of a chain did to speed and size, as bars on a logarithmic scale; 1x is the point before it.

    Args:
        lines: The ledger.
    """
    figure, axes = _canvas("What each step did")
    kinds = (
        ("speedup", "faster", "#0072b2"),
        ("compression", "smaller", "#e69f00"),
        ("energy", "less energy", "#009e73"),
    )
    for offset, (field, words, color) in enumerate(kinds):
        known = [(place, value) for place, line in enumerate(lines) if (value := getattr(line, field)) is not None]
        axes.barh(
            [place + 0.27 * (offset - 1) for place, _ in known],
            [value - 1 for _, value in known],
            left=1,
            height=0.25,
            color=color,
            label=f"times {words}",
        )
    axes.axvline(1, color="#595959", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(lines)), [_plain(f"{line.step}\n{line.variant}") for line in lines], fontsize=8)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the front of (cost, quality) pairs, from the cheapest up."""
    corners: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if not corners or quality > corners[-1][1]:
            if corners:
                corners.append((cost, corners[-1][1]))
            corners.append((cost, quality))
    return corners


def break_even_figure(reports: Sequence[Report]) -> Figure | None:
    """Energy spent, making included, against samples served; None when no candidate saves energy.

    Each line starts at what making the point cost and climbs with what serving it costs. Where it crosses the
    baseline's, the making is repaid.
    """
    if not reports:
        return None
    baseline = reports[0]
    per_sample = baseline.metrics.get("energy/wh_per_1k_samples")
    candidates = [
        report
        for report in reports[1:]
        if {"energy/wh_per_1k_samples", "optimize/energy_kwh", "optimize/break_even_samples"} <= set(report.metrics)
        and report.metrics["optimize/break_even_samples"] > 0
    ]
    if per_sample is None or not candidates:
        return None
    furthest = max(report.metrics["optimize/break_even_samples"] for report in candidates)
    factor, unit = _scale(2 * furthest)
    figure, axes = _canvas("When the energy of making it is repaid")
    for report in (baseline, *candidates):
        color, marker = _style(report.variant)
        start = 1000 * report.metrics.get("optimize/energy_kwh", 0.0) if report is not baseline else 0.0
        slope = report.metrics["energy/wh_per_1k_samples"] / 1000
        ends = [0.0, 2 * furthest]
        axes.plot(
            [samples / factor for samples in ends],
            [start + slope * samples for samples in ends],
            color=color,
            linewidth=2,
            linestyle="--" if report is baseline else "-",
            label=_plain(report.variant),
        )
        if report is not baseline:
            crossing = report.metrics["optimize/break_even_samples"]
            axes.plot([crossing / factor], [start + slope * crossing], marker=marker, color=color, markersize=9)
    axes.set_xlabel(f"Samples served ({unit})" if unit else "Samples served")
    axes.set_ylabel("Energy spent (Wh)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _scale(largest: float) -> tuple[float, str]:
    for factor, unit in ((1e9, "thousand millions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= factor:
            return factor, unit
    return 1.0, ""
