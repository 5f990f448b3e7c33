"""The comparison table: every figure whole, every absence explained, nothing read as markup."""

from __future__ import annotations

import io

import pytest

from mlflow_slim.measurement.report import Report
from mlflow_slim.tables import markdown_table, print_table, reasons, summary_rows


def baseline() -> Report:
    return Report(
        "baseline",
        {
            "quality/f1_macro": 0.842,
            "latency/p50_ms": 11.4,
            "size/disk_mib": 87.1,
            "energy/wh_per_1k_samples": 0.0812,
            "emissions/gco2e_per_1k_samples": 0.0385,
        },
        {
            "slim.quality.metric": "f1_macro",
            "slim.energy.grade": "C",
            "slim.absent.optimize/break_even_samples": "nothing was optimized",
        },
    )


def student(variant: str = "distill.logits@onnxruntime") -> Report:
    return Report(
        variant,
        {
            "quality/f1_macro": 0.836,
            "quality/f1_macro_delta": -0.006,
            "quality/f1_macro_delta_lo": -0.014,
            "quality/f1_macro_delta_hi": 0.002,
            "latency/p50_ms": 2.9,
            "speedup/single": 3.93,
            "speedup/single_lo": 3.71,
            "speedup/single_hi": 4.15,
            "size/disk_mib": 66.8,
            "energy/wh_per_1k_samples": 0.0212,
            "emissions/gco2e_per_1k_samples": 0.00998,
            "optimize/break_even_samples": 1_234_567,
        },
        {
            "slim.quality.metric": "f1_macro",
            "slim.quality.verdict": "non-inferior",
            "slim.speed.verdict": "faster",
            "slim.energy.grade": "C",
        },
    )


def printed(reports: list[Report], width: int) -> str:
    out = io.StringIO()
    print_table(reports, file=out, width=width)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_every_figure_is_whole_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = printed([baseline(), student()], width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("0.842", "0.836 (-0.006)", "-0.014 to +0.002", "non-inferior", "faster", "3.93x", "3.71 to 4.15"):
        assert part in text
    for part in ("11.40", "2.90", "87.1", "66.8", "0.0812 (C)", "0.0212 (C)", "0.0385", "0.00998", "1.2 M"):
        assert part in text
    assert "@onnxruntime" in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_chain_is_folded_not_cut(width: int) -> None:
    name = "distill.hidden+prune.magnitude+quantize.weight_only@onnxruntime"
    text = printed([baseline(), student(name)], width)
    assert max(map(len, text.splitlines())) <= width
    column = "".join(line[:24].strip() for line in text.splitlines())
    assert "3.93x" in text and "1.2 M" in text and "…" not in text
    assert "distill" in column and "runtime" in text


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    text = printed([baseline(), student("[red]evil[/red]@x")], 120)
    assert "[red]evil[/red]" in text


def test_what_was_not_measured_is_a_dash_with_its_reason() -> None:
    bare = Report("distill.logits", {}, {"slim.absent.energy/wh_per_1k_samples": "no counter [/b] here"})
    text = printed([baseline(), bare], 120)
    row = next(line for line in text.splitlines() if "distill.logits" in line and "no counter" not in line)
    assert row.split()[1:] == ["-"] * 8
    assert "energy/wh_per_1k_samples: no counter [/b] here (distill.logits)" in text
    assert "optimize/break_even_samples: nothing was optimized (baseline)" in text


def test_points_with_the_same_reason_share_a_line_and_other_metrics_are_not_explained() -> None:
    tags = {"slim.absent.latency/p50_ms": "no time", "slim.absent.memory/peak_mib": "not shown in the table"}
    assert reasons([Report("a", {}, tags), Report("b", {}, tags)]) == ["latency/p50_ms: no time (a, b)"]


def test_contended_times_carry_a_star() -> None:
    text = printed([baseline(), Report("x", {"latency/p50_ms": 2.5}, {"slim.measure.contended": "true"})], 120)
    assert "2.50*" in text
    assert "* measured while other programs used the machine (x)" in text


def test_a_dumb_terminal_gets_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert printed([baseline(), student()], 120).isascii()


def test_a_stream_that_only_takes_ascii_is_no_error() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    print_table([baseline(), student()], file=out, width=120)
    out.flush()
    assert b"3.93x" in raw.getvalue()


def test_no_reports_print_an_empty_table() -> None:
    assert "p50 ms" in printed([], 120)


def test_summary_rows_hold_plain_numbers_and_the_same_keys() -> None:
    first, second = summary_rows([baseline(), student()])
    assert list(first) == list(second)
    assert first["speedup"] is None and second["speedup"] == 3.93
    assert second["quality"] == 0.836 and second["quality_delta_lo"] == -0.014
    assert second["quality_metric"] == "f1_macro"


def test_markdown_has_one_row_a_point_and_escapes_names() -> None:
    text = markdown_table([baseline(), student("a|b<img>@x")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    bars = [line.replace("\\|", "").count("|") for line in rows]
    assert bars == [10] * 4
    assert "<img>" not in text and "a\\|b\\<img\\>" in text
