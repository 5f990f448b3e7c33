"""The gate and the registry: what passes, what is refused by which rule, and that an alias is never lost on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stored import EXPERIMENT, change, export, log_points, report

import mlflow_slim as slim
from mlflow_slim.catalog import load_backend
from mlflow_slim.cli import main
from mlflow_slim.errors import ConfigError, InputNotFound, IntegrityError, PromotionRefused
from mlflow_slim.gate import RULES
from mlflow_slim.measurement.helper import Helper

GOOD, GREENEST, WORSE = ("prune.depth", "quantize.dynamic", "prune.width")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store with an original, a good point, a greener one with less quality and one too bad; and their runs."""
    import mlflow

    folder = tmp_path_factory.mktemp("logged")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    figures = {GOOD: (0.901, 5, 1.0, 60), GREENEST: (0.898, 4, 0.8, 25), WORSE: (0.85, 2, 0.4, 20)}
    candidates = [
        (export(folder / name, steps=(name,), number=number), report(f"{name}@torch", *figures[name]))
        for number, name in enumerate(figures, start=1)
    ]
    runs = log_points(folder, candidates, export(folder / "baseline"))
    mlflow.set_tracking_uri(before)
    return folder, runs


@pytest.fixture
def store(tmp_path: Path, logged: tuple[Path, list[str]]) -> Iterator[Any]:
    """A copy of it, ``runs`` by variant; the models' files are put back in the end."""
    import mlflow

    folder, runs = logged
    before = mlflow.get_tracking_uri()
    shutil.copyfile(folder / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copytree(folder / "artifacts", tmp_path / "artifacts")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.runs = dict(zip(("baseline", GOOD, GREENEST, WORSE), runs, strict=True))  # type: ignore[attr-defined]
    yield client
    mlflow.set_tracking_uri(before)
    shutil.rmtree(folder / "artifacts")
    shutil.copytree(tmp_path / "artifacts", folder / "artifacts")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads models here: what a process of its own gives is shown once, and each takes seconds."""

    def outputs(self: Helper, model: Path, inputs: Any, *, batch_size: int = 32) -> Any:
        return load_backend("torch").load(model, threads=1).predict(inputs, batch_size=batch_size)

    monkeypatch.setattr(Helper, "outputs", outputs)


def promote(**options: Any) -> Any:
    return slim.promote(**{"experiment": EXPERIMENT, "name": "reviews", "max_quality_drop": 0.02, **options})


def alias(client: Any, name: str = "champion") -> str | None:
    found = client.get_registered_model("reviews").aliases.get(name)
    return None if found is None else str(found)


def test_the_greenest_that_passes_is_registered_once_and_serves(store: Any) -> None:
    import mlflow

    decision = promote()
    assert decision.point.run_id == store.runs[GREENEST]
    assert (decision.version, decision.before, decision.changed) == ("1", None, True)
    assert [refusal.rule for refusal in decision.refused[store.runs[WORSE]]] == ["quality"]
    again = promote()
    assert (again.version, again.changed) == ("1", False)
    assert "already" in str(again)
    assert len(store.search_model_versions("name = 'reviews'")) == 1
    answers = mlflow.pyfunc.load_model("models:/reviews@champion").predict(["good film"])
    assert len(answers["label"]) == 1
    version = store.get_model_version("reviews", "1")
    for words in ("quantize.dynamic", "its original", "Every rule of the gate was kept", "Some CPU", "1600"):
        assert words in version.description
    assert json.loads(version.tags["slim.decision"])["chosen"] == store.runs[GREENEST]
    model = store.get_logged_model(version.source.removeprefix("models:/"))
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "reviews", "version": "1"}]


@pytest.mark.usefixtures("in_this_process")
def test_the_objective_the_margin_and_limits_choose(store: Any) -> None:
    assert promote(dry_run=True, max_quality_drop=0.005).point.run_id == store.runs[GOOD]
    assert promote(dry_run=True, max_quality_drop=0.2).point.run_id == store.runs[WORSE]
    assert promote(dry_run=True, objective="quality").point.run_id == store.runs[GOOD]
    limited = promote(dry_run=True, constraints="size/disk_mib>=50")
    assert limited.point.run_id == store.runs[GOOD]
    assert limited.refused[store.runs[GREENEST]][0].reason == (
        "its size/disk_mib is 25 (25 to 25), asked for size/disk_mib >= 50"
    )
    assert not store.search_registered_models()


@pytest.mark.usefixtures("in_this_process")
def test_a_rollback_restores_what_was_there(store: Any) -> None:
    promote(point=f"{GOOD}@torch")
    promote()
    assert alias(store) == "2"
    back = promote(rollback=True)
    assert (back.version, back.before, alias(store)) == ("1", "2", "1")
    assert "slim.rolled_back.champion" in store.get_model_version("reviews", "2").tags
    first = promote(rollback=True)
    assert first.version is None
    assert alias(store) is None
    with pytest.raises(InputNotFound, match="on no version, so there is nothing to go back from"):
        promote(rollback=True)
    assert promote().version == "2"  # the version that exists is taken again


@pytest.mark.usefixtures("in_this_process")
def test_an_alias_put_there_by_hand_is_not_rolled_back(store: Any) -> None:
    promote()
    store.delete_model_version_tag("reviews", "1", "slim.replaced.champion")
    with pytest.raises(InputNotFound, match="does not say what it replaced"):
        promote(rollback=True)
    assert alias(store) == "1"


@pytest.mark.usefixtures("in_this_process")
def test_a_race_is_seen(store: Any) -> None:
    with pytest.raises(PromotionRefused, match="is on no version, not on 3"):
        promote(expect_current="3")
    assert promote(expect_current="absent").changed
    with pytest.raises(PromotionRefused, match="is on version 1, not on absent"):
        promote(expect_current="absent", point=f"{GOOD}@torch")
    assert alias(store) == "1"


def _fail(client: Any, run_id: str) -> None:
    client.update_run(run_id, status="FAILED")


def _tag(**tags: str | None) -> Callable[[Any, str], None]:
    return lambda client, run_id: change(client, run_id, **tags)


def _with_models(*statuses: str) -> Callable[[Any, str], str]:
    """A run that says the same and has other models."""

    def harm(client: Any, run_id: str) -> str:
        from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

        old = client.get_run(run_id)
        new = client.create_run(old.info.experiment_id).info.run_id
        client.log_batch(
            new,
            metrics=[Metric(key, value, 0, 0) for key, value in old.data.metrics.items()],
            params=[Param(key, value) for key, value in old.data.params.items()],
            tags=[RunTag(key, value) for key, value in old.data.tags.items() if not key.startswith("mlflow.")],
        )
        for status in statuses:
            model = client.create_logged_model(old.info.experiment_id, name="other", source_run_id=new)
            if status != "PENDING":
                client.finalize_logged_model(model.model_id, status)
            client.log_outputs(new, [LoggedModelOutput(model.model_id, 0)])
        client.set_terminated(new)
        return str(new)

    return harm


def _forget(client: Any, run_id: str) -> None:
    client.delete_run(client.get_run(run_id).data.tags["slim.baseline_run"])


REFUSED = [
    ("finished", _fail, "its run is FAILED, so it may be half-logged"),
    ("model", _with_models(), "its run logged no model"),
    ("model", _with_models("PENDING"), "its model is PENDING, not READY"),
    ("model", _with_models("FAILED"), "its model is FAILED, not READY"),
    ("model", _with_models("READY", "READY"), "its run logged 2 models"),
    ("reload", _tag(slim__reload="differs", slim__reload__because="its answers differ"), "its answers differ"),
    ("reload", _tag(slim__reload=None), "never loaded anew"),
    ("measured", _tag(slim__imported="olive"), "come from olive"),
    ("contended", _tag(slim__measure__contended="true", slim__measure__contended_because="a build"), "a build"),
    ("comparable", _forget, "the original it was measured against is not in the store"),
    ("slower", _tag(slim__speed__verdict="slower"), "slower than the original (2.50x)"),
    ("slower", _tag(slim__speed__verdict="inconclusive", slim__speed__because="noise"), "noise"),
    (
        "greener",
        _tag(slim__energy__verdict="equivalent"),
        "smaller, but not greener: the verdict on its energy is equiv",
    ),
    ("greener", _tag(slim__energy__verdict="hungrier (estimated)"), "smaller, but not greener"),
    ("greener", _tag(slim__energy__verdict=None), "nobody knows whether it is greener"),
]


@pytest.mark.parametrize(("rule", "harm", "words"), REFUSED)
def test_a_point_that_breaks_a_rule_is_refused_by_it(
    rule: str, harm: Callable[[Any, str], str | None], words: str, store: Any
) -> None:
    run_id = harm(store, store.runs[GREENEST]) or store.runs[GREENEST]
    with pytest.raises(PromotionRefused, match="No point may be promoted") as caught:
        promote(point=run_id)
    found = {refusal.rule: refusal.reason for refusal in caught.value.refused[run_id]}
    assert words in found[rule]
    assert not store.search_registered_models()
    assert set(found) <= {rule, "comparable"}  # what isn't sound isn't comparable either


@pytest.mark.usefixtures("in_this_process")
def test_a_waived_rule_is_recorded(store: Any) -> None:
    change(store, store.runs[GREENEST], slim__energy__verdict="equivalent")
    decision = promote(point=f"{GREENEST}@torch", accept="greener")
    assert [refusal.rule for refusal in decision.waived] == ["greener"]
    version = store.get_model_version("reviews", decision.version)
    assert version.tags["slim.waived"] == "greener"
    assert "Waived: **greener**" in version.description
    with pytest.raises(ConfigError, match=r"no rule 'greenr' to waive\. Did you mean 'greener'"):
        promote(accept="greenr")
    with pytest.raises(ConfigError, match="no rule 'model' to waive"):
        promote(accept="model")


@pytest.mark.usefixtures("in_this_process")
def test_no_better_than_the_original_is_refused(store: Any) -> None:
    with pytest.raises(PromotionRefused, match=r"\[gain\] its memory/peak_mib|\[gain\] it has no memory/peak_mib"):
        promote(objective="memory")
    store.log_metric(store.runs[GOOD], "energy/wh_per_1k_samples_hi", 2.5)
    assert "no better than the original's 2" in str(promote(dry_run=True).refused[store.runs[GOOD]][0].reason)


@pytest.mark.usefixtures("in_this_process")
def test_an_unknown_figure_counts_against_a_point(store: Any) -> None:
    with pytest.raises(PromotionRefused, match=r"memory/peak_mib is limited .* and was not measured"):
        promote(constraints="memory<=100")


def _bundle_of(store: Any, run_id: str) -> Path:
    from urllib.parse import urlsplit

    model = store.get_logged_model(store.get_run(run_id).outputs.model_outputs[0].model_id)
    return Path(urlsplit(model.artifact_location).path) / "bundle"


@pytest.mark.usefixtures("in_this_process")
def test_a_model_that_was_changed_is_refused(store: Any) -> None:
    from mlflow_slim import manifest

    folder = _bundle_of(store, store.runs[GREENEST])
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        promote()
    manifest.write(folder)  # whoever changes a file can also change the manifest
    with pytest.raises(IntegrityError, match="is not the one that was measured"):
        promote()
    assert not store.search_registered_models()


@pytest.mark.usefixtures("in_this_process")
def test_a_model_that_answers_otherwise_is_refused(store: Any) -> None:
    run_id = store.runs[GREENEST]
    store.log_text(run_id, json.dumps({"inputs": [], "outputs": [[9.0, 9.0, 9.0]] * 6}), "slim/answers.json")
    with pytest.raises(IntegrityError, match="answers differently from when it was measured"):
        promote()
    store.log_text(run_id, "{", "slim/answers.json")
    with pytest.raises(IntegrityError, match="can't be read"):
        promote()
    shutil.rmtree(_bundle_of(store, run_id))
    with pytest.raises(IntegrityError, match=r"holds no slim\.json"):
        promote()


@pytest.mark.parametrize(
    "request_",
    [
        "create_registered_model",
        "create_model_version",
        "set_logged_model_tags",
        "set_model_version_tag",
        "set_registered_model_alias",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("in_this_process")
def test_killed_at_any_step_an_alias_is_on_the_old_or_the_new(
    request_: str, when: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    promote(point=f"{GOOD}@torch")
    whole = getattr(mlflow.MlflowClient, request_)

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return whole(self, *args, **kwargs) if when == "after" else None
        finally:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, request_, stop)
        with pytest.raises(KeyboardInterrupt):
            promote()
    moved = request_ == "set_registered_model_alias" and when == "after"
    assert alias(store) == ("2" if moved else "1")
    assert promote().version == "2"
    assert alias(store) == "2"
    assert len(store.search_model_versions("name = 'reviews'")) == 2
    assert promote(rollback=True).version == "1"


def test_wrong_options_are_all_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        promote(name="a/b", alias="latest", objective="speeed", max_quality_drop=2, allow="", expect=3)
    text = str(caught.value)
    for words in ("name", "keeps 'latest' for itself", "no figure 'speeed'", "Unknown option 'expect'", "0.5 for 50 %"):
        assert words in text


def test_an_experiment_that_does_not_exist_is_said_with_those_that_do(store: Any) -> None:
    with pytest.raises(InputNotFound, match=r"no experiment 'chioce'.*'choice'"):
        promote(experiment="chioce")


@pytest.mark.usefixtures("in_this_process")
def test_a_model_is_called_as_its_experiment_when_nobody_says(store: Any) -> None:
    assert slim.promote(experiment=EXPERIMENT, max_quality_drop=0.02).name == EXPERIMENT
    assert str(store.get_model_version_by_alias(EXPERIMENT, "champion").version) == "1"
    store.create_experiment("a/b")
    with pytest.raises(ConfigError, match="name is missing, and 'a/b' can't be the name"):
        slim.promote(experiment="a/b")
    with pytest.raises(ConfigError, match="name is missing, and 'choice' and 'a/b'"):
        slim.promote(experiment=f"{EXPERIMENT},a/b")


@pytest.mark.usefixtures("in_this_process")
def test_the_command_says_what_it_did_and_what_it_refused(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["promote", f"--experiment={EXPERIMENT}", "--name=reviews", "--max_quality_drop=0.02", "--accept="]
    assert main([*words, "--dry_run=true"]) == 0
    assert "Would put quantize.dynamic@torch" in capsys.readouterr().out
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "models:/reviews@champion is on version 1 now" in out
    assert "not chosen" in out
    assert "[quality] its accuracy may be down" in out
    assert main([*words, "--max_quality_drop=0.0001"]) == 1
    assert "No point may be promoted" in capsys.readouterr().err
    assert set(RULES) == {rule for rule, _, _ in REFUSED} | {"quality", "gain"}
