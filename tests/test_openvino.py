"""Backend ``openvino``: same answers, explicit threads, NNCF's integers by module name, and nothing sent anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_backends import outputs_of, random_texts, tiny_source
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)
from test_prune_techniques import context

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.errors import ConfigError, IntegrityError
from mlflow_slim.interfaces import Scheme
from mlflow_slim.openvino_quantization import weighted_nodes

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
TEXTS = random_texts(12, seed=2)


@pytest.fixture(scope="module")
def source() -> OptimizedModel:
    return tiny_source()


@pytest.fixture(scope="module")
def exported(source: OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_backend("openvino").export(source, tmp_path_factory.mktemp("ov") / "model", TEXTS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_answers_are_those_of_the_source_at_any_batch_and_length(kind: str, tmp_path: Path) -> None:
    model = tiny_source(kind)
    backend = load_backend("openvino")
    folder = backend.export(model, tmp_path / "model", TEXTS).directory
    found = backend.load(folder, threads=2)
    texts = [*TEXTS, "good", "the film " * 40]
    np.testing.assert_allclose(found.predict(texts, batch_size=5), outputs_of(model, texts), rtol=1e-3, atol=1e-4)


def test_settings_are_explicit(exported: Any) -> None:
    predictor = load_backend("openvino").load(exported.directory, threads=2)
    engine = next(value for value in vars(predictor).values() if hasattr(value, "settings"))
    compiled = engine._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1
    assert engine.settings == {"threads": 2, "streams": 1, "precision": "f32", "pinning": False}


def test_weights_are_kept_in_float32(exported: Any) -> None:
    graph = openvino.Core().read_model(str(exported.directory / "openvino_model.xml"))
    types = {op.get_element_type().get_type_name() for op in graph.get_ops() if op.get_type_name() == "Constant"}
    assert "f32" in types
    assert "f16" not in types


def test_a_changed_byte_of_the_weights_is_found(exported: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(exported.directory, tmp_path / "copy")
    weights = tmp_path / "copy" / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"openvino_model\.bin"):
        load_backend("openvino").load(tmp_path / "copy", threads=1)


def test_matrices_go_by_the_names_of_their_modules(exported: Any, source: OptimizedModel) -> None:
    graph = openvino.Core().read_model(str(exported.directory / "openvino_model.xml"))
    names = list(weighted_nodes(graph, source.model))
    linear = {name for name, module in source.model.named_modules() if type(module).__name__ == "Linear"}
    assert linear <= set(names)
    assert "bert.embeddings.word_embeddings" in names


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        (Scheme("static", reduce_range=True), 0.3),  # CPUs without VNNI saturate with 8 bits
        (Scheme("static", reduce_range=True, smooth=0.5, calibrate="percentile"), 0.3),
        (Scheme("weight_only"), 0.05),
        (Scheme("weight_only", bits=4, block_size=16), 0.6),
    ],
)
def test_integers_are_near_and_smaller(
    scheme: Scheme, limit: float, exported: Any, source: OptimizedModel, tmp_path: Path
) -> None:
    pytest.importorskip("nncf")
    backend: Any = load_backend("openvino")
    backend.quantize(exported, source, tmp_path / "q", scheme, TEXTS)
    wanted = outputs_of(source, TEXTS)
    found = backend.load(tmp_path / "q", threads=1).predict(TEXTS)
    assert 0 < np.abs(found - wanted).max() < limit * np.abs(wanted).max()
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (exported.directory, tmp_path / "q")]
    assert sizes[1] < 0.6 * sizes[0]


def test_named_modules_stay_in_float(exported: Any, source: OptimizedModel, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    backend: Any = load_backend("openvino")
    name = "bert.encoder.layer.0.output.dense"
    backend.quantize(exported, source, tmp_path / "q", Scheme("weight_only", keep_float=frozenset({name})), TEXTS)
    graph = openvino.Core().read_model(str(tmp_path / "q" / "openvino_model.xml"))
    assert name in weighted_nodes(graph, source.model), "found by its float values"


def test_what_nncf_does_not_have_is_refused(exported: Any, source: OptimizedModel, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    backend: Any = load_backend("openvino")
    with pytest.raises(ConfigError, match="no entropy calibration"):
        backend.quantize(exported, source, tmp_path / "q", Scheme("static", calibrate="entropy"), TEXTS)
    step = load_technique("quantize.static")(max_drop=None)
    outcome = step.apply(source, context(source, tmp_path, backends={"openvino": backend}))
    assert list(outcome.builds) == ["openvino"]


def test_nncf_sends_nothing() -> None:
    """In a process without pytest, whose presence switches NNCF's telemetry off by itself."""
    pytest.importorskip("nncf")
    code = (
        "from mlflow_slim.openvino_quantization import _quiet_nncf\n"
        "with _quiet_nncf(): pass\n"
        "import sys, nncf.telemetry.wrapper as wrapper\n"
        "assert 'pytest' not in sys.modules\n"
        "assert type(wrapper.telemetry).__name__ == 'MagicMock', type(wrapper.telemetry)\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_recipe_logs_a_model_that_serves(store: Any, reviews: Path, tiny_classifier_dir: Path) -> None:  # noqa: F811
    import mlflow

    more = {"export.backends": "openvino", "export.baseline": True}
    found = slim.run("baseline", **options(tiny_classifier_dir, reviews, **more))
    assert [point.exported.variant for point in found.points] == ["baseline", "baseline@openvino"]
    assert store.get_run(found.points[1].run_id).data.tags["slim.reload"] == "same"
    model = mlflow.pyfunc.load_model(found.points[1].model_uri)
    assert list(model.predict(["a good film"]).columns) == ["label", "score"]
