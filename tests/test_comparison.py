"""`compare`: what it prints, logs and marks; the page holds whatever a name holds as text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stored import EXPERIMENT, change, export, log_points, report

import mlflow_slim as slim
from mlflow_slim.cli import main
from mlflow_slim.comparison import render
from mlflow_slim.errors import ConfigError, ExportError, InputNotFound

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    small = export(folder / "small", steps=("prune.depth",), number=1)
    evil = export(folder / "evil", steps=("prune.width",), number=2)
    candidates = [
        (small, report("prune.depth@torch", 0.89, 4, 0.8, 25)),
        (evil, report(EVIL, 0.85, 9, 1.9, 80)),
    ]
    client = mlflow.MlflowClient()
    client.runs = log_points(folder, candidates, export(folder / "base"))  # type: ignore[attr-defined]
    failed = client.create_run(
        client.get_experiment_by_name(EXPERIMENT).experiment_id,
        tags={"slim.kind": "point", "slim.variant": "=cmd()"},
    )
    client.set_terminated(failed.info.run_id, "FAILED")
    yield client
    mlflow.set_tracking_uri(before)


def page_data(html: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_is_one_file_and_shows_names_as_text(store: Any) -> None:
    found = slim.compare(experiment=EXPERIMENT, log=False, region="FRA", price_per_hour=0.2)
    assert "onerror=alert" not in found.html.replace("\\u003c", "<").split("<script")[0]
    assert EVIL not in found.html
    assert found.html.count("</script>") == 2
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", found.html)
    data = page_data(found.html)
    assert [point["front"] for point in data["points"]] == ["sure", "sure", "dominated"]
    assert EVIL in [point["variant"] for point in data["points"]]
    assert data["rest"][0]["reason"] == "its run is FAILED"
    assert data["world"]["intensity"] == data["regions"]["FRA"] > 0
    assert data["world"]["price"] == 0.2


def test_a_run_is_logged_and_points_are_marked(store: Any) -> None:
    found = slim.compare(experiment=EXPERIMENT)
    run = store.get_run(found.run_id)
    assert (run.info.status, run.data.tags["slim.kind"]) == ("FINISHED", "comparison")
    names = {item.path for item in store.list_artifacts(found.run_id)}
    assert {"report.html", "summary.json", "figures", "tables"} <= names
    assert {item.path for item in store.list_artifacts(found.run_id, "figures")} >= {"figures/quality_vs_latency.png"}
    assert "its run is FAILED" in run.data.tags["mlflow.note.content"]
    fronts = [store.get_run(run_id).data.tags["slim.front"] for run_id in store.runs]
    assert fronts == ["sure", "sure", "dominated"]
    colors = [store.get_run(run_id).data.tags["mlflow.runColor"] for run_id in store.runs]
    assert colors[1] == "#0072b2"
    assert colors[2] not in colors[:2]
    change(store, store.runs[2], slim__measure__contended="true")
    slim.compare(experiment=EXPERIMENT)
    assert "slim.front" not in store.get_run(store.runs[2]).data.tags
    change(store, store.runs[2], slim__measure__contended="false")


def test_a_comparison_is_no_point_of_the_next(store: Any) -> None:
    first, second = (slim.compare(experiment=EXPERIMENT).frontier for _ in range(2))
    assert [one.point.run_id for one in first.points] == [one.point.run_id for one in second.points]
    assert len(first.rest) == len(second.rest) == 1


def test_every_format_holds_every_point(store: Any) -> None:
    found = slim.frontier(EXPERIMENT)
    rows = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [row["front"] for row in rows] == ["sure", "sure", "dominated", "not ranked"]
    assert rows[-1]["variant"] == "'=cmd()"  # nothing that a spreadsheet would run
    assert len(json.loads(render(found, "json"))["points"]) == 4
    text = render(found, "markdown")
    assert "\\<img src=x" in text
    assert "its run is FAILED" in text
    with pytest.raises(ConfigError, match="no format 'xml'"):
        render(found, "xml")


def test_the_command_prints_the_table_and_writes_the_page(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", f"--experiment={EXPERIMENT}", "--objectives=quality,energy", "--log=false"]
    assert main([*words, f"--output={tmp_path / 'new' / 'page.html'}"]) == 0
    out = capsys.readouterr().out
    assert "prune.depth@torch" in out
    assert "Energy per 1,000 samples (Wh)" in out
    assert page_data((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))["across"].startswith("energy/")
    assert main([*words, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"]
    assert main(["compare", "--experiment=none", "--log=false"]) == 2
    assert main(["compare", "--objectives=speeed", "--allow=hosts", "--experiment=x"]) == 2
    error = capsys.readouterr().err
    assert "no figure 'speeed'" in error


def test_what_exists_is_not_overwritten(store: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ExportError, match="exists already and is not overwritten"):
        slim.compare(experiment=EXPERIMENT, output=str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text() == "mine"


def test_figures_come_from_this_experiment_or_a_filter(store: Any) -> None:
    with pytest.raises(InputNotFound, match="no experiment 'elsewhere'"):
        slim.frontier("elsewhere")
    assert len(slim.frontier(EXPERIMENT, search="tags.`slim.variant` = 'baseline'").points) == 1
    with pytest.raises(slim.SlimError, match="read the points"):
        slim.frontier(EXPERIMENT, search="nonsense ===")
