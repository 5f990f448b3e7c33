"""Image classification: images in any form a table keeps them, the model's own preprocessing without it, every step."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import step_context
from PIL import Image
from test_pipeline import BUDGET, store  # noqa: F401  (a fixture)

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.bundle import image_settings
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.data import read_tables
from mlflow_slim.errors import DataError, ModelError
from mlflow_slim.interfaces import Context
from mlflow_slim.runtime.images import ImageFile, decode
from mlflow_slim.runtime.tasks.image_classification import check_rows
from mlflow_slim.tasks.image_classification import TASK


def picture(kind: str, number: int, size: int = 12) -> Image.Image:
    """Dots in the left half, or the right half."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 60, (size, size + 4, 3))
    half = slice(0, size // 2) if kind == "left" else slice(size // 2, None)
    pixels[:, half] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def as_bytes(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def as_text(image: Image.Image) -> str:
    return base64.b64encode(as_bytes(image)).decode()


KINDS = [("left", "right")[i % 2] for i in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images for each class."""
    place = tmp_path_factory.mktemp("photos")
    for number, kind in enumerate(KINDS):
        (place / kind).mkdir(exist_ok=True)
        picture(kind, number).save(place / kind / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    place = tmp_path_factory.mktemp("vit")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=4, num_labels=3, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(place)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(place)
    return place


def read(source: Path | str, **how: Any) -> Any:
    return read_tables(str(source), **{"text": "image", "label": "label", "inputs": "images", **how})


@pytest.fixture(scope="module")
def trained(folder: Path, vit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[OptimizedModel, Context]:
    data = TASK.make_data(read(folder))
    source = TASK.load_model(vit_dir, data, max_length=None, seed=0)
    assert not source.trained
    context = step_context(TASK, data, tmp_path_factory.mktemp("work"), source)
    step = load_technique("finetune.full")(epochs=4, learning_rate=5e-3, batch_size=16)
    return step.apply(source, context), context


def accuracy(model: OptimizedModel, context: Context) -> float:
    test = context.data.test
    outputs = TASK.outputs(model.model, model.processor, test.inputs, model.spec)
    return TASK.quality(outputs, test.references, model.spec)["accuracy"]


# --- data


def test_the_same_images_in_every_form_are_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    import datasets

    images = [picture(kind, number) for number, kind in enumerate(KINDS)]
    paths = [str(folder / kind / f"{number}.png") for number, kind in enumerate(KINDS)]
    pd.DataFrame({"image": paths, "label": KINDS}).to_csv(tmp_path / "paths.csv", index=False)
    relative = [str(Path(path).relative_to(folder)) for path in paths]
    pd.DataFrame({"image": relative, "label": KINDS}).to_csv(folder / "relative.csv", index=False)
    pd.DataFrame({"image": [as_bytes(i) for i in images], "label": KINDS}).to_parquet(tmp_path / "bytes.parquet")
    pixels = [{"image": np.asarray(i).tolist(), "label": k} for i, k in zip(images, KINDS, strict=True)]
    (tmp_path / "pixels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pixels))
    texts = [{"image": f"data:image/png;base64,{as_text(i)}", "label": k} for i, k in zip(images, KINDS, strict=True)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": as_bytes(i), "path": None} for i in images], "label": KINDS},
        features=datasets.Features(image=datasets.Image(), label=datasets.Value("string")),
    )
    made.save_to_disk(str(tmp_path / "saved"))
    wanted = sorted(np.asarray(image).tobytes() for image in images)
    sources = ["paths.csv", "bytes.parquet", "pixels.jsonl", "texts.jsonl", "saved"]
    for source in (*(tmp_path / name for name in sources), folder / "relative.csv"):
        tables = read(source)
        found = [text for part in (tables.train, tables.validation, tables.test) for text in part["text"]]
        assert sorted(np.asarray(decode(text)).tobytes() for text in found) == wanted, source
    (folder / "relative.csv").unlink()


def test_a_folder_for_each_class_and_split_is_read(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 6), ("test", 8)):
        for number in range(count):
            kind = ("left", "right")[number % 2]
            place = tmp_path / split / kind
            place.mkdir(parents=True, exist_ok=True)
            picture(kind, hash((split, number)) % 10_000).save(place / f"{number}.JPEG")
    tables = read(tmp_path)
    assert [len(part) for part in (tables.train, tables.validation, tables.test)] == [20, 6, 8]
    assert set(tables.test["label"]) == {"left", "right"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("nothing.png", "no image file of the name"),
        ("aGVsbG8=", "something in 'image' that is no image"),
        (None, "no image in 'image'"),
        ("", "no image in 'image'"),
    ],
)
def test_what_is_no_image_is_refused_or_dropped_and_counted(tmp_path: Path, value: Any, why: str) -> None:
    rows = [{"image": as_text(picture(kind, n)), "label": kind} for n, kind in enumerate(KINDS[:40])]
    rows.append({"image": value, "label": "left"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=why):
        read(tmp_path / "rows.jsonl")
    assert sum(read(tmp_path / "rows.jsonl", on_bad_rows="drop").report["dropped"]["all"].values()) == 1


@pytest.mark.parametrize(
    ("value", "why"),
    [("https://example.com/a.png", "not fetched"), ([[1, 2], [300, 4]], "outside of 0 to 255"), ([1, 2], "of shape")],
)
def test_addresses_and_lists_that_are_no_pixels_end_the_reading(tmp_path: Path, value: Any, why: str) -> None:
    rows = [{"image": value, "label": str(i % 2)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=why):
        read(tmp_path / "rows.jsonl")


# --- preprocessing


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 16, "width": 20}},
        {
            "size": {"height": 16, "width": 16},
            "resample": 3,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.9, 0.8, 0.7],
        },
        {"do_resize": False, "do_normalize": False},
        {"size": {"height": 20, "width": 20}, "resample": 0},
        {"do_rescale": False, "size": {"height": 9, "width": 9}},
    ],
)
def test_pixels_are_those_of_transformers_own_processor(options: dict[str, Any]) -> None:
    from transformers import ViTImageProcessorPil

    processor: Any = ViTImageProcessorPil(**options)
    images = [picture("left", 1, 30), picture("right", 2, 30)]
    wanted = processor(images, return_tensors="np")["pixel_values"]
    found = ImageFile(image_settings(processor))([as_text(image) for image in images])["pixel_values"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 41), (41, 30), (10, 11)])
def test_the_shortest_edge_and_the_middle_are_cut_as_clips_processor_does(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 24})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8))
    wanted = processor([image], return_tensors="np")["pixel_values"]
    found = ImageFile(image_settings(processor))([as_text(image)])["pixel_values"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    image = picture("left", 0).convert(mode)
    assert decode(as_text(image)).mode == "RGB"


def test_a_processor_that_does_more_is_refused(trained: tuple[OptimizedModel, Context], tmp_path: Path) -> None:
    from dataclasses import replace

    from transformers import ViTImageProcessorPil

    class Odd(ViTImageProcessorPil):  # type: ignore[misc]
        def _preprocess(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._preprocess(*args, **kwargs)
            found["pixel_values"] = [pixels + 1 for pixels in found["pixel_values"]]
            return found

    model, context = trained
    odd = replace(model, processor=Odd(size={"height": 16, "width": 16}))
    with pytest.raises(ModelError, match="in a way of its own"):
        load_backend("onnxruntime").export(odd, tmp_path / "model", context.data.test.inputs[:4])


# --- steps and runtimes


def test_a_fine_tuned_model_is_far_above_chance(trained: tuple[OptimizedModel, Context]) -> None:
    assert accuracy(*trained) > 0.9


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distill.logits", {"layers": 1, "epochs": 4, "learning_rate": 5e-3, "batch_size": 16}),
        pytest.param(
            "distill.hidden",
            {"layers": 1, "epochs": 4, "learning_rate": 5e-3, "batch_size": 16},
            marks=pytest.mark.slow,
        ),
        pytest.param("finetune.lora", {"rank": 2, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        pytest.param("prune.heads", {"sparsity": 0.5, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        ("prune.width", {"sparsity": 0.5, "epochs": 1, "batch_size": 16}),
        pytest.param(
            "prune.depth", {"layers": 1, "epochs": 4, "learning_rate": 5e-3, "batch_size": 16}, marks=pytest.mark.slow
        ),
        pytest.param("prune.magnitude", {"sparsity": 0.3}, marks=pytest.mark.slow),
        pytest.param("prune.wanda", {"sparsity": 0.3}, marks=pytest.mark.slow),
    ],
)
def test_every_step_for_encoders_keeps_what_was_learned(
    trained: tuple[OptimizedModel, Context], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, context = trained
    step: Any = load_technique(name)(**options)
    work = Context(**{**context.__dict__, "workdir": tmp_path, "original": model})
    if hasattr(step, "check"):
        step.check(model)
    outcome = step.apply(model, work)
    assert outcome.lineage[-1].technique == name
    assert accuracy(outcome, context) > 0.8
    exported = load_backend("onnxruntime").export(outcome, tmp_path / "model", context.data.test.inputs[:4])
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(context.data.test.inputs)
    wanted = TASK.outputs(outcome.model, outcome.processor, context.data.test.inputs, outcome.spec)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_a_vocabulary_is_nothing_that_images_have(trained: tuple[OptimizedModel, Context]) -> None:
    with pytest.raises(ModelError, match="is for texts"):
        load_technique("prune.vocabulary")().apply(*trained)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_exported_model_answers_as_its_source(
    trained: tuple[OptimizedModel, Context], backend: str, tmp_path: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    model, context = trained
    images = context.data.test.inputs
    exported = load_backend(backend).export(model, tmp_path / "model", images[:4])
    found = load_backend(backend).load(exported.directory, threads=1).predict(images, batch_size=5)
    np.testing.assert_allclose(found, TASK.outputs(model.model, model.processor, images, model.spec), atol=2e-4)


@pytest.mark.parametrize(
    "name",
    ["quantize.dynamic", *(pytest.param(f"quantize.{kind}", marks=pytest.mark.slow) for kind in ("static", "qat"))],
)
def test_integer_models_keep_what_was_learned(
    trained: tuple[OptimizedModel, Context], name: str, tmp_path: Path
) -> None:
    model, context = trained
    options: dict[str, Any] = {"calibration_rows": 12}
    if name == "quantize.qat":
        options |= {"epochs": 1, "batch_size": 16}
    backend = load_backend("onnxruntime")
    work = Context(**{**context.__dict__, "workdir": tmp_path, "backends": {"onnxruntime": backend}})
    outcome = load_technique(name)(**options).apply(model, work)
    exported = backend.export(outcome, tmp_path / "final", context.data.validation.inputs[:4])
    outputs = backend.load(exported.directory, threads=1).predict(context.data.test.inputs)
    assert TASK.quality(outputs, context.data.test.references, model.spec)["accuracy"] > 0.8


def test_top_five_is_told_where_there_are_more_classes() -> None:
    spec = {"labels": list("abcdefg"), "multi_label": False}
    outputs = np.tile(np.arange(7.0), (4, 1))
    found = TASK.quality(outputs, np.array([6, 5, 2, 0]), spec)
    assert (found["accuracy"], found["top5_accuracy"]) == (0.25, 0.75)


def test_max_length_is_refused(vit_dir: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="max_length is for texts"):
        TASK.load_model(vit_dir, TASK.make_data(read(folder)), max_length=8, seed=0)


# --- answers


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no rows"), (["aGVsbG8="], "row 0 is not an image"), ([3], "row 0 is a int"), ([{"x": ""}], "unknown keys")],
)
def test_rows_that_are_no_images_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows(rows, {})


def test_a_path_is_never_opened_by_a_served_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="row 0 is not an image"):
        check_rows([str(next(folder.glob("*/*.png")))], {})


@pytest.fixture(scope="module")
def outcome(store: Any, folder: Path, vit_dir: Path) -> Any:  # noqa: F811
    more = {"steps.distill.epochs": 3, "baseline.epochs": 4, "steps.distill.layers": 1, "track.experiment": "slim"}
    rates = {"baseline.learning_rate": 5e-3, "steps.distill.learning_rate": 5e-3}
    return slim.run("distill-images", model=str(vit_dir), data=str(folder), **BUDGET, **more, **rates)


def test_the_recipe_logs_models_that_answer_images(outcome: Any, store: Any) -> None:  # noqa: F811
    import mlflow

    assert outcome.points[-1].exported.variant == "distill.logits+quantize.dynamic@onnxruntime"
    assert outcome.reports[-1].metrics["quality/accuracy"] > 0.7
    for point in (outcome.points[0], outcome.points[-1]):
        assert store.get_run(point.run_id).data.tags["slim.reload"] == "same"
        model = mlflow.pyfunc.load_model(point.model_uri)
        found = model.predict([as_text(picture("left", 900)), as_text(picture("right", 901))])
        assert list(found.columns) == ["label", "score"]
        assert found["label"].tolist() == ["left", "right"]
        requirements = (Path(mlflow.artifacts.download_artifacts(point.model_uri)) / "requirements.txt").read_text()
        assert "pillow" in requirements
