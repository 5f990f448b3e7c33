"""The comparison as a table: on the terminal, in markdown, and as rows for an artifact.

One row a point, the baseline first. What was not measured shows as "-", and the reasons follow the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .markdown import escape

if TYPE_CHECKING:
    from rich.table import Table

    from .measurement.report import Report

__all__ = ["is_plain", "markdown_table", "print_table", "reasons", "summary_rows"]

_ABSENT = "slim.absent."

_SUMMARY: Mapping[str, str] = {
    "p50_ms": "latency/p50_ms",
    "p90_ms": "latency/p90_ms",
    "speedup": "speedup/single",
    "speedup_lo": "speedup/single_lo",
    "speedup_hi": "speedup/single_hi",
    "samples_per_s": "throughput/samples_per_s",
    "disk_mib": "size/disk_mib",
    "parameters_m": "size/parameters_m",
    "peak_mib": "memory/peak_mib",
    "cold_start_s": "load/cold_start_s",
    "wh_per_1k_samples": "energy/wh_per_1k_samples",
    "gco2e_per_1k_samples": "emissions/gco2e_per_1k_samples",
    "usd_per_1m_samples": "cost/usd_per_1m_samples",
    "break_even_samples": "optimize/break_even_samples",
}

# The figures that a column stands on: the footnotes explain these and no others.
_SHOWN = (
    "latency/p50_ms",
    "speedup/single",
    "size/disk_mib",
    "energy/wh_per_1k_samples",
    "emissions/gco2e_per_1k_samples",
    "optimize/break_even_samples",
)


def summary_rows(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One row of plain values a point; all rows have the same keys, None where nothing was measured."""
    rows = []
    for report in reports:
        metric = _headline(report)
        quality = f"quality/{metric}"
        row: dict[str, Any] = {"variant": report.variant, "quality_metric": metric}
        for name, key in {
            "quality": quality,
            "quality_delta": f"{quality}_delta",
            "quality_delta_lo": f"{quality}_delta_lo",
            "quality_delta_hi": f"{quality}_delta_hi",
            **_SUMMARY,
        }.items():
            row[name] = report.metrics.get(key)
        row["quality_verdict"] = report.tags.get("slim.quality.verdict")
        row["speed_verdict"] = report.tags.get("slim.speed.verdict")
        row["energy_grade"] = report.tags.get("slim.energy.grade")
        row["contended"] = report.tags.get("slim.measure.contended")
        rows.append(row)
    return rows


def _headline(report: Report) -> str:
    return report.tags.get("slim.quality.metric", "accuracy")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _small(value: float | None) -> str:
    """Three significant digits without an exponent where that stays readable."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 0.0001 else f"{value:.1e}"


def _count(value: float | None) -> str:
    """A number of samples as people say it.

    >>> _count(1_234_567), _count(940), _count(None)
    ('1.2 M', '940', '-')
    """
    if value is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _quality_cell(report: Report) -> tuple[str, ...]:
    """Quality with its change against the baseline, and the interval of the change."""
    key = f"quality/{_headline(report)}"
    metrics = report.metrics
    value, delta = _number(metrics.get(key), "{:.3f}"), metrics.get(f"{key}_delta")
    first = value if delta is None else f"{value} ({delta:+.3f})"
    low, high = metrics.get(f"{key}_delta_lo"), metrics.get(f"{key}_delta_hi")
    return (first,) if low is None or high is None else (first, f"{low:+.3f} to {high:+.3f}")


def _speedup_cell(report: Report) -> tuple[str, ...]:
    metrics = report.metrics
    first = _number(metrics.get("speedup/single"), "{:.2f}x")
    low, high = metrics.get("speedup/single_lo"), metrics.get("speedup/single_hi")
    return (first,) if low is None or high is None else (first, f"{low:.2f} to {high:.2f}")


def _name_cell(variant: str) -> tuple[str, ...]:
    """The chain, and below it the runtime."""
    chain, at, backend = variant.rpartition("@")
    return (chain, f"  {at}{backend}") if chain else (variant,)


def _cells(report: Report) -> list[tuple[str, ...]]:
    """The cells of a row, each as the lines that are stacked in it."""
    metrics, tags = report.metrics, report.tags
    grade = tags.get("slim.energy.grade")
    energy = _small(metrics.get("energy/wh_per_1k_samples"))
    mark = "*" if tags.get("slim.measure.contended") == "true" else ""
    verdicts = [tags[key] for key in ("slim.quality.verdict", "slim.speed.verdict") if key in tags]
    return [
        _name_cell(report.variant),
        _quality_cell(report),
        tuple(verdicts) or ("-",),
        (_number(metrics.get("latency/p50_ms"), "{:.2f}") + mark,),
        _speedup_cell(report),
        (_number(metrics.get("size/disk_mib"), "{:.1f}"),),
        (f"{energy} ({grade})" if grade and energy != "-" else energy,),
        (_small(metrics.get("emissions/gco2e_per_1k_samples")),),
        (_count(metrics.get("optimize/break_even_samples")),),
    ]


def _headers(reports: Sequence[Report]) -> list[str]:
    names = sorted({_headline(report) for report in reports}) or ["quality"]
    return [
        "Point",
        "/".join(names),
        "Verdict",
        "p50 ms",
        "Speed-up",
        "MiB",
        "Wh/1k",
        "gCO2e/1k",
        "Break-even",
    ]


def reasons(reports: Sequence[Report]) -> list[str]:
    """Why a figure of the table is missing, one sentence each; points with the same reason share one."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        shown = {*_SHOWN, f"quality/{_headline(report)}", f"quality/{_headline(report)}_delta"}
        for tag, why in report.tags.items():
            key = tag.removeprefix(_ABSENT)
            if tag.startswith(_ABSENT) and key in shown:
                grouped.setdefault((key, why), []).append(report.variant)
    lines = [f"{key}: {why} ({', '.join(variants)})" for (key, why), variants in sorted(grouped.items())]
    contended = [report.variant for report in reports if report.tags.get("slim.measure.contended") == "true"]
    if contended:
        lines.append(f"* measured while other programs used the machine ({', '.join(contended)})")
    return lines


def print_table(
    reports: Sequence[Report], *, title: str = "", file: TextIO | None = None, width: int | None = None
) -> None:
    """Prints the comparison; fits any width, and uses plain characters where the terminal knows no others.

    Args:
        reports: The points, the baseline first.
        title: A line above the table.
        file: Where to; standard output by default.
        width: Columns; by default the terminal's, and 160 when there is none.
    """
    import sys

    from rich.console import Console

    out = file or sys.stdout
    if width is None and not getattr(out, "isatty", lambda: False)():
        width = 160
    console = Console(file=out, width=width, highlight=False)
    if title:
        console.print(title, markup=False)
    whole = _table(reports, plain=is_plain(out))
    if console.measure(whole, options=console.options.update(max_width=10_000)).maximum <= console.width:
        console.print(whole)
    else:
        for table in _narrow(reports, plain=is_plain(out)):
            console.print(table)
    for line in reasons(reports):
        console.print(line, markup=False, style=None)


def is_plain(out: TextIO) -> bool:
    """Whether lines must be drawn in ASCII: a stream that can't encode the others would raise."""
    import os

    encoding = (getattr(out, "encoding", None) or "utf-8").lower()
    return os.environ.get("TERM") == "dumb" or not encoding.startswith("utf")


def _table(reports: Sequence[Report], *, plain: bool, columns: Sequence[int] | None = None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headers = _headers(reports)
    chosen = list(columns) if columns is not None else list(range(len(headers)))
    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_lines=False)
    for index in chosen:
        words = index in (0, 2)
        # Names may be folded anywhere, figures never: half a number reads as another number.
        table.add_column(Text(headers[index]), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for report in reports:
        cells = _cells(report)
        # Text, not str: a name such as "[red]" is a name, not a colour.
        table.add_row(*(Text("\n".join(cells[index])) for index in chosen))
    return table


def _narrow(reports: Sequence[Report], *, plain: bool) -> list[Table]:
    """Two tables under one another, for terminals of 80 columns."""
    return [
        _table(reports, plain=plain, columns=[0, 1, 2, 3, 4]),
        _table(reports, plain=plain, columns=[0, 5, 6, 7, 8]),
    ]


def markdown_table(reports: Sequence[Report]) -> str:
    """The comparison as a markdown table with its footnotes, for run descriptions."""
    headers = _headers(reports)
    lines = [
        f"| {' | '.join(escape(header) for header in headers)} |",
        f"|{'|'.join(':--' if index in (0, 2) else '--:' for index in range(len(headers)))}|",
    ]
    for report in reports:
        cells = ("<br>".join(escape(line) for line in cell) for cell in _cells(report))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {escape(line)}" for line in reasons(reports)]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
