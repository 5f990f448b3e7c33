"""Run descriptions in markdown: what a person reads first when opening a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..markdown import escape

if TYPE_CHECKING:
    from ..measurement.report import Report

__all__ = ["escape", "point_card", "recipe_card", "run_link"]

# What a card shows, in reading order: key, words, digits, unit.
_LINES: Sequence[tuple[str, str, str, str]] = (
    ("latency/p50_ms", "Latency, median", "{:.2f}", "ms"),
    ("latency/p90_ms", "Latency, 90th percentile", "{:.2f}", "ms"),
    ("throughput/samples_per_s", "Throughput", "{:,.0f}", "samples/s"),
    ("speedup/single", "Speed-up, one at a time", "{:.2f}", "x"),
    ("speedup/offline", "Speed-up, offline", "{:.2f}", "x"),
    ("size/disk_mib", "Size on disk", "{:.1f}", "MiB"),
    ("size/parameters_m", "Parameters", "{:.2f}", "million"),
    ("memory/peak_mib", "Memory, peak", "{:.0f}", "MiB"),
    ("load/cold_start_s", "Cold start", "{:.2f}", "s"),
    ("energy/wh_per_1k_samples", "Energy per 1,000 samples", "{:.4g}", "Wh"),
    ("emissions/gco2e_per_1k_samples", "Emissions per 1,000 samples", "{:.4g}", "gCO2e"),
    ("cost/usd_per_1m_samples", "Cost per million samples", "{:.4g}", "USD"),
    ("optimize/duration_s", "Making it took", "{:.0f}", "s"),
    ("optimize/energy_kwh", "Making it used", "{:.4g}", "kWh"),
    ("optimize/break_even_samples", "Samples until the energy is repaid", "{:,.0f}", ""),
)


def run_link(experiment_id: str, run_id: str, words: str) -> str:
    """A markdown link to a run; relative to the page, so it holds wherever the UI is served."""
    return f"[{escape(words)}](#/experiments/{experiment_id}/runs/{run_id})"


def _with_interval(report: Report, key: str, form: str) -> str:
    value = form.format(report.metrics[key])
    low, high = report.metrics.get(f"{key}_lo"), report.metrics.get(f"{key}_hi")
    if low is None or high is None:
        return value
    return f"{value} ({form.format(low)} to {form.format(high)})"


def point_card(report: Report) -> str:
    """The description of a point's run: verdicts, figures with intervals, and what is missing and why."""
    tags = report.tags
    metric = tags.get("slim.quality.metric", "accuracy")
    rows = []
    if f"quality/{metric}" in report.metrics:
        rows.append((f"Quality ({escape(metric)})", _with_interval(report, f"quality/{metric}", "{:.4f}")))
    if f"quality/{metric}_delta" in report.metrics:
        rows.append(("Quality against the baseline", _with_interval(report, f"quality/{metric}_delta", "{:+.4f}")))
    for key, words, form, unit in _LINES:
        if key in report.metrics:
            rows.append((words, f"{_with_interval(report, key, form)} {unit}".rstrip()))
    verdicts = [
        f"{words}: **{escape(tags[key])}**"
        for key, words in (
            ("slim.quality.verdict", "Quality"),
            ("slim.speed.verdict", "Speed"),
            ("slim.energy.verdict", "Energy"),
            ("slim.energy.grade", "Energy grade"),
        )
        if key in tags
    ]
    parts = [f"### {escape(report.variant)}"]
    if verdicts:
        parts.append(" · ".join(verdicts))
    if tags.get("slim.measure.contended") == "true":
        parts.append("**Measured while other programs used the machine: times and energy are not to be trusted.**")
    if rows:
        parts.append("\n".join(["| | |", "|:--|--:|", *(f"| {words} | {value} |" for words, value in rows)]))
    absent = sorted(
        (key.removeprefix("slim.absent."), why) for key, why in tags.items() if key.startswith("slim.absent.")
    )
    if absent:
        parts.append("\n".join(["Not measured:", "", *(f"- {escape(key)}: {escape(why)}" for key, why in absent)]))
    return "\n\n".join(parts)


def recipe_card(title: str, table: str, links: Mapping[str, str], *, notes: Sequence[str] = ()) -> str:
    """The description of a recipe's run.

    Args:
        title: One line of plain text.
        table: The comparison as markdown, from `mlflow_slim.tables.markdown_table`.
        links: Point name to markdown link, from `run_link`.
        notes: Sentences a reader should know (what was dropped, what was fine-tuned first), plain text.
    """
    parts = [f"### {escape(title)}", table]
    if links:
        parts.append("Points: " + " · ".join(links.values()))
    if notes:
        parts.append("\n".join(f"- {escape(note)}" for note in notes))
    return "\n\n".join(parts)
