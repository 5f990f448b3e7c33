"""Models of other libraries through the recipe ``evaluate``: refused until allowed, then points like any other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)

import mlflow_slim as slim
from mlflow_slim import foreign
from mlflow_slim.backends.pyfunc import PyfuncPredictor, answers_of
from mlflow_slim.catalog import load_backend
from mlflow_slim.errors import ConfigError, IntegrityError, ModelError, UnsafeModelError
from mlflow_slim.gate import RULES

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow's sklearn flavor and of sklearn, not ours to mend
SPEC = {"labels": ["bad", "good"], "multi_label": False, "pair": False}


@pytest.fixture(scope="module")
def sklearn_model(store: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A classifier of words, trained on the reviews, as MLflow's sklearn flavor saves it."""
    import mlflow.sklearn
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = pd.read_csv(reviews)
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(rows["the review"], rows["stars/5"])
    folder = tmp_path_factory.mktemp("sklearn") / "model"
    mlflow.sklearn.save_model(model, folder, pip_requirements=["scikit-learn"], serialization_format="cloudpickle")
    return folder


@pytest.fixture
def allowed(sklearn_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(foreign.VARIABLE, foreign.model_digest(sklearn_model))
    return sklearn_model


def test_nothing_is_loaded_before_its_digest_is_allowed(sklearn_model: Path, reviews: Path, store: Any) -> None:  # noqa: F811
    wrong = options(sklearn_model, reviews)
    with pytest.raises(UnsafeModelError, match=rf"{foreign.VARIABLE}={foreign.model_digest(sklearn_model)}"):
        slim.run("evaluate", **wrong)


def test_one_byte_more_is_another_model(allowed: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(allowed, copy)
    foreign.check_allowed(copy, "copy")
    (copy / "registered_model_meta").write_text("x")  # MLflow's own addition to what it downloads
    foreign.check_allowed(copy, "copy")
    (copy / "sitecustomize.py").write_text("x = 1")
    with pytest.raises(UnsafeModelError):
        foreign.check_allowed(copy, "copy")


def test_it_is_a_point_beside_a_model_of_ours(
    allowed: Path,
    reviews: Path,  # noqa: F811
    tiny_classifier_dir: Path,
    store: Any,  # noqa: F811
) -> None:
    given = options(tiny_classifier_dir, reviews, **{"export.backends": "torch"})
    ours = slim.run("baseline", **given).points[0]
    outcome = slim.run("evaluate", **options(allowed, reviews, against=ours.model_uri))
    first, last = outcome.reports
    assert outcome.points[1].exported.backend == "pyfunc"
    assert last.metrics["quality/accuracy"] == 1.0
    assert last.metrics["quality/accuracy_delta"] == pytest.approx(1.0 - first.metrics["quality/accuracy"])
    assert "speedup/single" in last.metrics or "slim.absent.speedup/single" in last.tags
    assert "quality/log_loss" in first.metrics
    assert "quality/log_loss" not in last.metrics, "it gives labels without probabilities"
    assert "slim.absent.quality/log_loss" in last.tags
    assert "size/parameters_m" not in last.metrics, "nobody knows"
    run = store.get_run(outcome.points[1].run_id)
    assert run.data.tags["slim.reload"] == "same"
    assert run.info.status == "FINISHED"
    found = slim.frontier("slim", objectives=["quality", "size"], allow=["contended"])
    rest = {one.point.run_id: one.reason for one in found.rest}
    assert outcome.points[1].run_id in {one.point.run_id for one in found.points}, rest


@pytest.mark.slow
def test_what_was_logged_loads_in_mlflow_and_is_measured_again_alone(
    allowed: Path,
    reviews: Path,  # noqa: F811
    store: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow.pyfunc

    first = slim.run("evaluate", **options(allowed, reviews)).points[0]
    loaded = mlflow.pyfunc.load_model(first.model_uri)
    assert len(loaded.predict(["a good film", "a bad film"])) == 2
    again = slim.run("evaluate", **options(first.model_uri, reviews))
    assert again.reports[0].metrics["quality/accuracy"] == 1.0
    waived = ",".join(rule for rule in RULES if rule != "model")  # it was measured alone, and for a second
    given = {"experiment": "slim", "name": "words", "point": again.points[0].run_id, "accept": waived}
    assert str(slim.promote(**given).version) == "1"
    assert len(mlflow.pyfunc.load_model("models:/words@champion").predict(["a good film", "a bad film"])) == 2
    monkeypatch.delenv(foreign.VARIABLE)
    with pytest.raises(IntegrityError, match=foreign.VARIABLE):
        slim.promote(**{**given, "name": "others"})
    with pytest.raises(UnsafeModelError):
        slim.run("evaluate", **options(first.model_uri, reviews))


def test_nothing_is_optimized_or_exported_that_was_made_elsewhere(allowed: Path, reviews: Path, store: Any) -> None:  # noqa: F811
    with pytest.raises(ModelError, match="only a model of the flavor transformers or mlflow_slim can be optimised"):
        slim.run("prune", **options(allowed, reviews))
    with pytest.raises(ConfigError, match="only measures models that were made elsewhere"):
        slim.run("prune", **options("demo", reviews, **{"export.backends": "pyfunc"}))


@pytest.mark.parametrize("spec", [{**SPEC, "multi_label": True}])
def test_what_has_no_single_label_is_refused(spec: Any, allowed: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one label a row"):
        foreign.adopt(allowed, "x", task="text-classification", spec=spec, directory=tmp_path / "m")


def test_a_changed_file_is_found(allowed: Path, tmp_path: Path) -> None:
    spec = {**SPEC, "labels": ["1", "5"]}
    exported = foreign.adopt(allowed, "x", task="text-classification", spec=spec, directory=tmp_path / "m")
    (exported.directory / "requirements.txt").write_text("other")
    with pytest.raises(IntegrityError, match=r"requirements\.txt"):
        load_backend("pyfunc").load(exported.directory, threads=1)


@pytest.mark.parametrize(
    ("given", "answers"),
    [
        (["a", "b"], ["a", "b"]),
        (np.array([3, 1]), [3, 1]),
        (np.array([[0.1, 0.9], [0.8, 0.2]]), [1, 0]),
        (np.array([["a"], ["b"]]), ["a", "b"]),
        (pd.DataFrame({"score": [0.5, 0.5], "label": ["a", "b"]}), ["a", "b"]),
        (pd.DataFrame({"a": [0.1, 0.9], "b": [0.9, 0.1]}), ["b", "a"]),
        (pd.DataFrame({"answer": ["a", "b"]}), ["a", "b"]),
        (pd.Series(["a", "b"]), ["a", "b"]),
        ([{"label": "a", "score": 1.0}, {"label": "b", "score": 0.5}], ["a", "b"]),
    ],
)
def test_answers_of_every_form(given: Any, answers: list[Any]) -> None:
    assert answers_of(given) == answers


SOURCE = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        {body}

set_model(Model())
"""


def python_model(folder: Path, body: str, columns: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    source = folder / "model.py"
    source.write_text(SOURCE.format(body=body))
    signature = None
    if columns is not None:
        signature = ModelSignature(Schema([ColSpec("string", name) for name in columns]))
    mlflow.pyfunc.save_model(
        str(folder / "model"), python_model=str(source), signature=signature, pip_requirements=["pandas"]
    )
    monkeypatch.setenv(foreign.VARIABLE, foreign.model_digest(folder / "model"))
    return folder / "model"


def loaded(model: Path, folder: Path, spec: Any = SPEC) -> PyfuncPredictor:
    exported = foreign.adopt(model, "x", task="text-classification", spec=spec, directory=folder / "adopted")
    found = load_backend("pyfunc").load(exported.directory, threads=1)
    assert isinstance(found, PyfuncPredictor)
    return found


def test_columns_are_named_as_the_signature_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return ['good' if 'good' in text else 'bad' for text in model_input['review']]"
    model = loaded(python_model(tmp_path, body, ["review"], monkeypatch), tmp_path)
    assert model.predict(["a good one", "no", "good"], batch_size=2).tolist() == [1, 0, 1]


def test_pairs_are_two_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return ['good' if a == b else 'bad' for a, b in zip(model_input['one'], model_input['other'])]"
    folder = python_model(tmp_path, body, ["one", "other"], monkeypatch)
    model = loaded(folder, tmp_path, {**SPEC, "pair": True})
    assert model.predict([("a", "a"), ("a", "b")]).tolist() == [1, 0]


def test_a_label_nobody_knows_is_wrong_and_nothing_but_such_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "return ['great' if 'x' in text else 'good' for text in model_input['text']]"
    model = loaded(python_model(tmp_path, body, ["text"], monkeypatch), tmp_path)
    assert model.predict(["x", "y"]).tolist() == [2, 1]
    with pytest.raises(ModelError, match="The model answers great, and the labels of the data are bad, good"):
        model.predict(["x"] * 40)


@pytest.mark.parametrize(
    ("body", "columns", "message"),
    [
        ("return ['good']", ["text"], "1 answers to 2 texts"),
        ("raise RuntimeError('no such thing')", ["text"], "no such thing"),
        ("return ['good'] * len(model_input)", ["a", "b", "c"], "Log it with a signature of 1"),
    ],
)
def test_what_gives_no_answer_a_text_says_why(
    body: str, columns: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = python_model(tmp_path, body, columns, monkeypatch)
    with pytest.raises(ModelError, match=re.escape(message)):
        loaded(folder, tmp_path)


def test_a_bundle_that_claims_the_backend_runs_nothing(allowed: Path, tmp_path: Path) -> None:
    exported = foreign.adopt(allowed, "x", task="text-classification", spec=SPEC, directory=tmp_path / "m")
    content = json.loads((exported.directory / "slim.json").read_text())
    assert content["backend"] == "pyfunc"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(foreign.VARIABLE)
        with pytest.raises(UnsafeModelError):
            load_backend("pyfunc").load(exported.directory, threads=1)
