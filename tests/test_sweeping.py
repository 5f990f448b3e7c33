"""A sweep on a tiny model: failing variants, shared beginnings, finalists on test rows, and going on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import BUDGET, reviews, store, write_reviews  # noqa: F401

import mlflow_slim as slim
from mlflow_slim import sweeping
from mlflow_slim.cli import main
from mlflow_slim.search import Sweep

SPACE: list[Any] = [
    [],
    [{"technique": "prune.depth", "layers": {"choices": [1, [0, 9]]}}],  # there is no layer 9
    [
        {"technique": "prune.depth", "layers": 1},
        {"technique": "prune.width", "sparsity": {"choices": [0.25, 0.5]}, "recovery": "none"},
    ],
]


def content(model: Path | str, data: Path, **more: Any) -> dict[str, Any]:
    measure = {key.removeprefix("measure."): value for key, value in BUDGET.items() if key.startswith("measure.")}
    return {
        "name": "tiny",
        "model": str(model),
        "data": str(data),
        "text": "the review",
        "label": "stars/5",
        "quick": True,
        "threads": 1,
        "track": {"experiment": "slim"},
        "measure": measure,
        "export": {"backends": ["torch"]},
        "search": {"finalists": 2, "screen_s": 0.2},  # what is timed is nobody's business here
        "space": SPACE,
        **more,
    }


@pytest.fixture(scope="module")
def swept(store: Any, reviews: Path, tiny_classifier_dir: Path) -> Any:  # noqa: F811
    return slim.sweep(content(tiny_classifier_dir, reviews))


def table(store: Any, run_id: str, name: str) -> list[dict[str, Any]]:  # noqa: F811
    found = json.loads(Path(store.download_artifacts(run_id, name)).read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def test_every_variant_is_a_row_and_a_failing_one_ends_nothing(swept: Any, store: Any) -> None:  # noqa: F811
    rows = table(store, swept.run_id, "tables/trials.json")
    assert len(rows) == 5
    assert [row["front"] == "failed" for row in rows] == [False, False, True, False, False]
    assert "9" in rows[2]["failed"]
    assert all(row["size/disk_mib"] > 0 for row in rows if not row["failed"])
    assert "trials/2.txt" in [item.path for item in store.list_artifacts(swept.run_id, "trials")]
    run = store.get_run(swept.run_id)
    assert (run.info.status, run.data.tags["slim.kind"]) == ("FINISHED", "sweep")
    assert run.data.metrics["sweep/trials"] == 5
    assert run.data.metrics["sweep/failed"] == 1
    assert run.data.metrics["sweep/waste_s"] <= run.data.metrics["sweep/steps_s"]


def test_finalists_are_points_measured_on_test(swept: Any, store: Any) -> None:  # noqa: F811
    assert 2 <= len(swept.points) <= 3
    assert swept.points[0].exported.variant == "baseline"
    tags = store.get_run(swept.points[-1].run_id).data.tags
    assert tags["slim.kind"] == "point"
    assert tags["slim.trial"].isdigit()
    assert tags["slim.reload"] == "same"
    params = store.get_run(swept.points[-1].run_id).data.params
    assert params["slim.measure.test_rows"] == "20"  # a tenth of the rows
    assert any("variants screened" in note for note in swept.notes)


def test_a_model_that_was_logged_is_searched_as_any_other(swept: Any, store: Any, reviews: Path) -> None:  # noqa: F811
    chains = [[{"technique": "prune.depth", "layers": 1}]]
    found = slim.sweep(content(swept.points[0].model_uri, reviews, space=chains))
    assert store.get_run(found.run_id).data.metrics["sweep/trials"] == 1
    assert [point.exported.variant for point in found.points] == ["baseline", "prune.depth@torch"]


def test_a_finalist_that_kills_measuring_loses_its_own_figures_only(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = sweeping._SweepFlow.log
    harmed: list[str] = []

    def log_and_harm(self: Any, exported: Any, inputs: Any) -> None:
        log(self, exported, inputs)
        if len(self.logged.points) == 2:  # the first finalist
            next(exported.directory.rglob("model.safetensors")).write_bytes(b"")
            harmed.append(self.logged.points[-1].run_id)

    monkeypatch.setattr(sweeping._SweepFlow, "log", log_and_harm)
    monkeypatch.setattr(sweeping._SweepFlow, "_finalists", lambda self: self.trials)
    space = [[{"technique": "prune.width", "sparsity": share, "recovery": "none"}] for share in (0.25, 0.5)]
    outcome = slim.sweep(content(tiny_classifier_dir, reviews, space=space))
    assert [bool(report.metrics) for report in outcome.reports] == [True, False, True]
    run = store.get_run(harmed[0])
    assert not any(name.startswith("quality/") for name in run.data.metrics)
    assert "slim.measure.failed" in run.data.tags
    assert any("has no figures" in note for note in outcome.notes)
    left_out = {one.point.run_id: one.reason for one in slim.frontier("slim").rest}
    assert left_out[harmed[0]]


@pytest.mark.slow
def test_a_shared_beginning_is_done_once(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow_slim.techniques import prune_depth

    done: list[Any] = []
    apply = prune_depth.PruneDepth.apply

    def counted(self: Any, *args: Any) -> Any:
        done.append(self.layers)
        return apply(self, *args)

    monkeypatch.setattr(prune_depth.PruneDepth, "apply", counted)
    chains = [SPACE[1][:0] or [{"technique": "prune.depth", "layers": 1}], SPACE[2]]
    slim.sweep(content(tiny_classifier_dir, reviews, space=chains))
    assert done == [1]


def test_a_killed_sweep_goes_on_where_it_was(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SLIM_CACHE", str(tmp_path / "cache"))
    given = content(tiny_classifier_dir, reviews, space=SPACE[:2])
    tried: list[str] = []
    whole = sweeping._SweepFlow._try

    def watched(self: Any, trial: Any, *args: Any) -> None:
        if len(tried) == 1:
            raise KeyboardInterrupt
        tried.append(trial.variant.title)
        whole(self, trial, *args)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping._SweepFlow, "_try", watched)
        with pytest.raises(KeyboardInterrupt):
            slim.sweep(given)
    journals = list((tmp_path / "cache" / "sweeps").glob("*.jsonl"))
    assert [len(path.read_text().split()) > 1 for path in journals] == [True]
    journals[0].write_text(journals[0].read_text() + '\n{"variant": "cut of')
    again: list[str] = []

    def counted(self: Any, trial: Any, *args: Any) -> None:
        again.append(trial.variant.title)
        whole(self, trial, *args)

    monkeypatch.setattr(sweeping._SweepFlow, "_try", counted)
    outcome = slim.sweep(given)
    assert not set(again) & set(tried)
    assert len(again) == 2
    assert any("1 variants of this sweep were screened before" in note for note in outcome.notes)
    # nothing is left to try but the one that failed, which is tried again
    again.clear()
    slim.sweep(given)
    assert len(again) == 1


def test_a_variant_that_screening_has_no_time_for_says_so(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
) -> None:
    found = slim.sweep(content(tiny_classifier_dir, reviews), **{"search.screen_s": 1e-6, "search.max_trials": 1})
    (row,) = table(store, found.run_id, "tables/trials.json")
    assert row["front"] == "failed" and row["failed"].startswith("no median latency: The budget"), row
    assert any("1 of 1 failed, the first with" in note for note in found.notes)


@pytest.mark.slow
def test_budgets_end_the_search(store: Any, reviews: Path, tiny_classifier_dir: Path) -> None:  # noqa: F811
    found = slim.sweep(content(tiny_classifier_dir, reviews), budget_minutes=1e-9)
    assert any("budget of 1e-09 minutes ended" in note for note in found.notes)
    assert len(found.points) == 1
    assert any("No variant could be screened" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_samplers_stop_at_max_trials(
    sampler: str,
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
) -> None:
    if sampler != "random":
        pytest.importorskip("optuna")
    given = content(tiny_classifier_dir, reviews, search={"sampler": sampler, "max_trials": 2, "finalists": 1})
    found = slim.sweep(given)
    assert store.get_run(found.run_id).data.metrics["sweep/trials"] == 2


@pytest.mark.slow
def test_the_command_takes_a_file(
    store: Any,  # noqa: F811
    tmp_path: Path,
    make_tiny_classifier: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import yaml

    data = write_reviews(tmp_path / "r.csv")
    given = content(make_tiny_classifier(), data, space=[[{"technique": "prune.depth", "layers": 1}]])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(given))
    assert main(["sweep", str(path), "--search.finalists=1"]) == 0
    printed = capsys.readouterr()
    assert "prune.depth" in printed.out
    assert "Trial 1, prune.depth@torch (" not in printed.err
    assert "Trial 1, prune.depth@torch: accuracy" in printed.err
    assert main(["sweep", str(path), "--search.finalists=x"]) == 2
    assert Sweep.load(path).recipe.name == "tiny"
