"""Which points are compared with which, and why the rest isn't; other sessions' figures go through their baselines."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_slim.errors import ConfigError, InputNotFound
from mlflow_slim.ranking import Constraint, find_point, rank
from mlflow_slim.schema import meaning
from mlflow_slim.tracking.stored_points import StoredPoint

PARAMS = {
    "slim.task": "text-classification",
    "slim.measure.test_digest": "rows",
    "slim.host.fingerprint": "host",
    "slim.measure.protocol": "2",
    "slim.measure.threads": "2",
    "slim.baseline.digest": "original",
    "slim.measure.quality_margin": "0.01",
}


def point(
    name: str,
    accuracy: float = 0.9,
    ms: float = 10.0,
    mib: float = 80.0,
    *,
    session: str = "monday",
    baseline: str | None = "base",
    started: int = 1,
    status: str = "FINISHED",
    tags: dict[str, str] | None = None,
    params: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None,
    spread: float = 0.01,
) -> StoredPoint:
    figures = {"quality/accuracy": accuracy, "latency/p50_ms": ms, "size/disk_mib": mib}
    figures |= {"latency/p50_ms_lo": ms * (1 - spread), "latency/p50_ms_hi": ms * (1 + spread)}
    own = {"slim.recipe_run": session, "slim.quality.metric": "accuracy"}
    if baseline is not None:
        own["slim.baseline_run"] = baseline
        figures |= {"quality/accuracy_delta_lo": accuracy - 0.9 - 0.004, "quality/accuracy_delta_hi": accuracy - 0.896}
    return StoredPoint(
        run_id=name,
        experiment_id="1",
        name=name,
        variant=name,
        status=status,
        started=started,
        metrics={**figures, **(metrics or {})},
        params={**PARAMS, "slim.model.digest": name, **(params or {})},
        tags={**own, **(tags or {})},
    )


BASE = point("base", baseline=None)


def places(points: list[StoredPoint], **options: Any) -> dict[str, str]:
    found = rank(points, **options)
    return {one.point.run_id: one.placed.front for one in found.points} | {
        other.point.run_id: other.reason for other in found.rest
    }


def test_three_sets_by_quality_latency_and_size() -> None:
    found = rank([BASE, point("small", 0.89, 3, 20), point("worse", 0.85, 9, 90)])
    assert [(one.point.variant, one.placed.front) for one in found.points] == [
        ("small", "sure"),
        ("base", "sure"),
        ("worse", "dominated"),
    ]
    assert found.baseline is BASE
    assert found.hypervolume == pytest.approx(0.0)  # a whole point lost, and a margin of one point
    better = rank([BASE, point("small", 0.90, 3, 20)])
    assert better.hypervolume == pytest.approx(1.0 * 1.7370 * 2.0, rel=1e-3)


def test_a_latency_of_another_session_is_taken_through_its_own_baseline() -> None:
    # On Tuesday the machine was twice as slow: 5 ms there are 2.5 ms here.
    tuesday = point("base2", ms=20, baseline=None, session="tuesday", params={"slim.model.digest": "base"})
    there = point("there", 0.89, 5, 20, session="tuesday", baseline="base2", spread=0.02)
    found = rank([BASE, point("here", 0.89, 4, 20), tuesday, there])
    latency = {one.point.run_id: one.figures["latency/p50_ms"] for one in found.points}
    # of the two baselines, which are one model, the older one goes
    reference = 1 if found.baseline is BASE else 2
    assert latency["there"].value == pytest.approx(2.5 * reference)
    assert latency["here"].value == pytest.approx(4.0 * reference)
    assert latency["there"].ends == pytest.approx((2.45 * reference, 2.55 * reference))
    assert {one.point.run_id: one.placed.front for one in found.points}["here"] == "dominated"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "FAILED"}, "its run is FAILED"),
        ({"status": "RUNNING"}, "its run is RUNNING"),
        ({"tags": {"slim.measure.contended": "true", "slim.measure.contended_because": "a build"}}, "a build"),
        ({"tags": {"slim.imported": "olive"}}, "imported from olive"),
        ({"tags": {"slim.reload": "differs"}}, "answers differently"),
        ({"tags": {"slim.quality.metric": "mcc"}}, "its quality is mcc, not accuracy"),
        ({"params": {"slim.host.fingerprint": "other"}}, "another machine"),
        ({"params": {"slim.measure.test_digest": "other"}}, "other test rows"),
        ({"params": {"slim.measure.protocol": "1"}}, "another version of the protocol"),
        ({"params": {"slim.measure.threads": "8"}}, "another number of threads"),
        ({"params": {"slim.task": "other"}}, "another task"),
        ({"params": {"slim.baseline.digest": "other"}}, "against another original"),
    ],
)
def test_what_differs_is_not_ranked_and_says_why(change: dict[str, Any], reason: str) -> None:
    found = places([BASE, point("odd", 0.95, 1, 1, started=0, **change), point("fine", 0.89, 3, 20)])
    assert reason in found["odd"]
    assert found["fine"] == "sure"


def test_what_is_allowed_is_ranked_all_the_same() -> None:
    odd = point("odd", 0.95, 1, 1, started=0, params={"slim.host.fingerprint": "other"})
    assert places([BASE, odd], allow=["host"])["odd"] == "sure"
    with pytest.raises(ConfigError, match=r"nothing called 'hosts' to allow\. Did you mean 'host'"):
        places([BASE, odd], allow=["hosts"])


def test_a_figure_that_is_missing_is_named_with_its_reason() -> None:
    lame = point("lame", tags={"slim.absent.energy/wh_per_1k_samples": "the meter refused"})
    energetic = point("base", baseline=None, metrics={"energy/wh_per_1k_samples": 2.0})
    found = places([energetic, lame], objectives=["quality", "energy"])
    assert found["lame"] == "no energy/wh_per_1k_samples: the meter refused"


def test_energy_of_another_grade_is_not_ranked() -> None:
    energy = {"energy/wh_per_1k_samples": 2.0}
    base = point("base", baseline=None, metrics=energy, tags={"slim.energy.grade": "A"})
    other = point("other", metrics=energy, tags={"slim.energy.grade": "D"})
    assert "grade D, not A" in places([base, other], objectives=["quality", "energy"])["other"]
    assert places([base, other])["other"] == "possible"
    assert places([base, other], objectives=["quality", "energy"], allow=["grade"])["other"] == "possible"


def test_of_one_model_measured_twice_the_whole_measurement_stays() -> None:
    same = {"slim.model.digest": "m"}
    quick = point("quick", 0.89, 3, 20, started=9, params={**same, "slim.measure.quick": "true"})
    whole, older = point("whole", 0.89, 3, 20, started=5, params=same), point("older", 0.89, 3, 20, params=same)
    found = places([BASE, quick, whole, older])
    assert found["whole"] == "sure"
    assert found["quick"] == found["older"] == "the same model was measured again (run whole)"


def test_limits_hold_at_the_bad_end() -> None:
    near = point("near", 0.89, 9.95, 20)  # up to 10.05
    limit = [Constraint.parse("latency<=10")]
    assert "asked for latency/p50_ms <= 10" in places([BASE, near], constraints=limit)["near"]
    assert places([BASE, near], constraints=[Constraint.parse("latency<=10.1")])["near"] == "sure"
    assert "is limited and was not measured" in places([BASE], constraints=[Constraint.parse("memory<=1")])["base"]
    for wrong in ("latency<10", "latency<=fast", "<=3", "latency"):
        with pytest.raises(ConfigError, match="is no limit"):
            Constraint.parse(wrong)
    with pytest.raises(ConfigError, match=r"no figure 'latenzy'\. Did you mean 'latency'"):
        Constraint.parse("latenzy<=3")


def test_nothing_to_rank_is_no_error() -> None:
    found = rank([point("a", status="KILLED")])
    assert (found.points, found.baseline, found.knee) == ((), None, None)
    assert found.rows()[0]["reason"] == "its run is KILLED"
    assert rank([]).rows() == []


def test_objectives_are_known_figures_once_each() -> None:
    with pytest.raises(ConfigError, match="no figure 'speed'"):
        rank([BASE], objectives=["speed"])
    with pytest.raises(ConfigError, match="'latency/p50_ms' is given twice"):
        rank([BASE], objectives=["latency", "latency/p50_ms"])
    with pytest.raises(ConfigError, match="No figure is named"):
        rank([BASE], objectives=[])
    assert meaning("quality", headline="log_loss").higher_is_better is False
    assert meaning("quality/f1/very good").higher_is_better


def test_a_point_is_found_by_run_name_or_variant() -> None:
    old, new = point("abcdef123", started=1), point("abcdef456", started=2)
    assert find_point([old, new], "abcdef1") is old
    assert find_point([old, new], "abcdef456") is new
    with pytest.raises(InputNotFound, match="no point 'abcdef78'"):
        find_point([old, new], "abcdef78")


def test_rows_are_alike_for_all_points() -> None:
    rows = rank([BASE, point("small", 0.89, 3, 20), point("odd", status="FAILED")]).rows()
    assert len({tuple(row) for row in rows}) == 1
    assert [row["front"] for row in rows] == ["sure", "sure", "not ranked"]
