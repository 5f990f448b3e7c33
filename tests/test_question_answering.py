"""Question answering: data in any form, SQuAD's scores, every step and runtime, long contexts, answers with places."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import VOCABULARY, make_tokenizer, save_tiny_classifier, step_context
from test_pipeline import BUDGET, store  # noqa: F401  (a fixture)

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.data import read_tables
from mlflow_slim.errors import DataError, MeasurementError, ModelError
from mlflow_slim.interfaces import Context
from mlflow_slim.lessons import Teaching, make_lesson
from mlflow_slim.runtime.questions import WINDOWS
from mlflow_slim.runtime.tasks.question_answering import answers, check_rows
from mlflow_slim.tasks.question_answering import TASK
from mlflow_slim.training import collate, training_rows

torch = pytest.importorskip("torch")

FILLERS = ("the", "movie", "was", "plot", "story", "and", "very", "not", "zebra")
KINDS = {  # which word of the question asks for which of the context
    "film": ("red", "green", "blue"),
    "book": ("animal", "plant", "person"),
    "food": ("big", "small", "fast"),
}
ROWS = 480
MORE = {"film": "one", "book": "two", "food": "three"}


def make_rows(count: int, seed: int = 0, *, unanswerable: float = 0.0) -> list[dict[str, Any]]:
    """Contexts with a word of each kind, some of two words, among others; the question says which is asked for."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        parts = {}
        for kind, words in KINDS.items():
            word = draw.choice(words)
            parts[kind] = f"{word} {MORE[kind]}" if draw.random() < 0.4 else word
        asked = draw.choice(list(KINDS))
        lacking = draw.random() < unanswerable
        shown = [text for kind, text in parts.items() if not (lacking and kind == asked)]
        draw.shuffle(shown)
        context = "".join(f"{draw.choice(FILLERS)} {text}, " for text in shown) + str(number)
        found = {"text": [], "answer_start": []}
        if not lacking:
            found = {"text": [parts[asked]], "answer_start": [context.index(parts[asked])]}
        rows.append({"question": f"{asked} ?", "context": context, "answers": found, "kind": asked})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


COLUMNS = {"text": "question", "text_pair": "context", "label": "answers"}


def read(path: Path | str, **how: Any) -> Any:
    return read_tables(str(path), **{**COLUMNS, "labels": "answers", **how})


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", make_rows(ROWS))


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "model", initializer_range=0.1)


def fine_tuned(path: Path, model: Path, folder: Path, **how: Any) -> tuple[OptimizedModel, Context]:
    data = TASK.make_data(read(path))
    source = TASK.load_model(model, data, max_length=48, seed=0)
    assert not source.trained, "the folder's head is of another kind"
    context = step_context(TASK, data, folder, source)
    step = load_technique("finetune.full")(**{"epochs": 11, "learning_rate": 5e-3, "batch_size": 16, **how})
    return step.apply(source, context), context


@pytest.fixture(scope="module")
def reader(rows_file: Path, tiny_dir: Path, tmp_path_factory: Any) -> tuple[OptimizedModel, Context]:
    """A fine-tuned tiny model and what its steps get."""
    return fine_tuned(rows_file, tiny_dir, tmp_path_factory.mktemp("work"))


def scores_of(model: OptimizedModel, split: Any) -> dict[str, float]:
    outputs = TASK.outputs(model.model, model.processor, split.inputs, model.spec)
    return TASK.quality(outputs, split.references, model.spec)


# --- data


def test_all_forms_of_the_same_answers_are_the_same_data(tmp_path: Path, rows_file: Path) -> None:
    rows = make_rows(ROWS)
    wanted = TASK.make_data(read(rows_file))

    def with_answers(form: Any) -> list[dict[str, Any]]:
        return [{**row, "answers": form(row["answers"])} for row in rows]

    forms = {
        "texts": lambda a: a["text"],
        "text": lambda a: a["text"][0],
        "dicts": lambda a: [{"text": t, "answer_start": s} for t, s in zip(a["text"], a["answer_start"], strict=True)],
        "one": lambda a: {"text": a["text"][0], "answer_start": a["answer_start"][0]},
        "wrong places": lambda a: {"text": a["text"], "answer_start": [s + 1 for s in a["answer_start"]]},
        "space around": lambda a: {
            "text": [f" {t}" for t in a["text"]],
            "answer_start": [s - 1 for s in a["answer_start"]],
        },
    }
    for name, form in forms.items():
        found = TASK.make_data(read(write_rows(tmp_path / f"{name}.jsonl", with_answers(form))))
        assert (found.test.references == wanted.test.references).all(), name
        assert found.test.digest == wanted.test.digest
    table = pd.DataFrame(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    table.assign(answers=table["answers"].map(repr)).to_csv(tmp_path / "rows.csv", index=False)
    articles = [
        {
            "title": "a",
            "paragraphs": [
                {
                    "context": row["context"],
                    "qas": [{"id": str(i), "question": row["question"], "answers": forms["dicts"](row["answers"])}],
                }
                for i, row in enumerate(rows)
            ],
        }
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    for path in ("rows.parquet", "rows.csv", "squad.json"):
        assert (TASK.make_data(read(tmp_path / path)).test.references == wanted.test.references).all(), path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answers": ["zzz"]}, "no answer in 'answers' that is a part of 'context'"),
        ({"answers": None}, r"no answer in 'answers' \(an empty list says"),
        ({"answers": "  "}, r"no answer in 'answers' \(an empty list says"),
        ({"context": None}, "no text in 'context'"),
        ({"question": ""}, "no text in 'question'"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_or_dropped_and_counted(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    rows = make_rows(60)
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], **change}])
    with pytest.raises(DataError, match=why):
        read(path)
    assert sum(read(path, on_bad_rows="drop").report["dropped"]["all"].values()) == 1


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("{'text': array(['red'], dtype=object)}", "as numpy prints them"),
        ({"answer_start": [1]}, "mappings without text"),
        ({"text": ["a", "b"], "answer_start": [1]}, "2 texts with 1 answer_start"),
        ({"text": ["red"], "answer_start": ["x"]}, "no number of characters"),
        ([True], "holds bool values"),
    ],
)
def test_columns_that_hold_something_else_are_refused(tmp_path: Path, label: Any, why: str) -> None:
    rows = make_rows(40)
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "answers": label}])
    with pytest.raises(DataError, match=why):
        read(path, on_bad_rows="drop")


def test_what_is_missing_is_named(tmp_path: Path, rows_file: Path) -> None:
    with pytest.raises(DataError, match="text_pair=context"):
        read(rows_file, text_pair=None)
    (tmp_path / "broken.json").write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}, {"qas": [{"id": 1}]}]}]}))
    with pytest.raises(DataError, match="looks like a file of SQuAD and lacks 'question'"):
        read(tmp_path / "broken.json")
    rows = [{**row, "answers": []} for row in make_rows(40)]
    with pytest.raises(DataError, match="No training row has an answer"):
        TASK.make_data(read(write_rows(tmp_path / "none.jsonl", rows)))


def test_questions_about_one_context_are_on_one_side_of_a_cut(tmp_path: Path) -> None:
    rows = make_rows(60)
    doubled = [{**row, "question": f"{row['question']} {i}"} for row in rows for i in range(4)]
    tables = read(write_rows(tmp_path / "rows.jsonl", doubled))
    sides = [set(getattr(tables, name)["text_pair"]) for name in ("train", "validation", "test")]
    assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_answers_may_be_missing_where_rows_or_the_user_say_so(tmp_path: Path, rows_file: Path) -> None:
    some = write_rows(tmp_path / "some.jsonl", make_rows(120, unanswerable=0.3))
    data = TASK.make_data(read(some))
    assert data.spec["unanswerable"] and data.report["questions_without_an_answer"]["train"] > 10
    assert not TASK.make_data(read(rows_file)).spec["unanswerable"]
    assert TASK.make_data(read(rows_file), options={"answer": {"unanswerable": True}}).spec["unanswerable"]
    kept = TASK.make_data(read(some), spec={"unanswerable": False, "stride": 7, "max_answer_length": 3})
    assert (kept.spec["unanswerable"], kept.spec["stride"], kept.spec["max_answer_length"]) == (False, 7, 3)


def test_windows_without_room_are_refused_before_any_work(tiny_dir: Path, rows_file: Path) -> None:
    data = TASK.make_data(read(rows_file), options={"answer": {"stride": 40}})
    with pytest.raises(ModelError, match="share 40 tokens need 91 at least"):
        TASK.load_model(tiny_dir, data, max_length=64, seed=0)
    assert TASK.load_model(tiny_dir, data, max_length=96, seed=0).spec["stride"] == 40


# --- quality


def outputs_for(spans: list[tuple[int, int]], pieces: int, *, none: float = -9.0) -> np.ndarray:
    """What a model says that is sure of these spans of pieces."""
    found = np.full((len(spans), 1 + pieces, 2), -5.0, dtype=np.float32)
    found[:, 0] = none
    for row, (start, end) in enumerate(spans):
        found[row, start + 1, 0] = found[row, end + 1, 1] = 5.0
    return found


def key(context: str, *texts: str) -> bytes:
    return json.dumps({"context": context, "texts": texts, "spans": []}).encode()


def test_scores_are_those_of_squad() -> None:
    context = "In the big, red film a person was fast."
    references = np.array([key(context, "the big, red film"), key(context, "fast", "a person"), key(context)])
    spec = {"max_answer_length": 30, "unanswerable": True}
    #  In the big , red film a person was fast .
    #  0  1   2   3 4   5    6 7      8   9    10
    found = TASK.quality(outputs_for([(2, 5), (7, 8), (0, 0)], 11), references, spec)
    assert found["exact_match"] == pytest.approx(1 / 3), "articles and marks don't count"
    assert found["token_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3), "person was | person"
    assert found["token_f1/answerable"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["token_f1/unanswerable"] == 0
    silent = TASK.quality(outputs_for([(2, 5), (7, 7), (0, 0)], 11, none=9.0), references, spec)
    assert silent["token_f1/unanswerable"] == 1 and silent["token_f1/answerable"] == 0
    always = TASK.quality(
        outputs_for([(2, 5), (7, 7), (0, 0)], 11, none=9.0), references, {**spec, "unanswerable": False}
    )
    assert always["token_f1/answerable"] == 1 and always["exact_match"] == pytest.approx(2 / 3)
    with pytest.raises(MeasurementError, match="not finite"):
        TASK.quality(np.full((3, 12, 2), np.nan), references, spec)


def test_agreement_is_the_share_of_pieces_in_both_answers() -> None:
    spec = {"max_answer_length": 30, "unanswerable": True}
    before = np.concatenate([outputs_for([(2, 5), (0, 1), (3, 3)], 8), outputs_for([(0, 0), (1, 1)], 8, none=9.0)])
    after = np.concatenate([outputs_for([(2, 5), (1, 2), (5, 6), (4, 4)], 8), outputs_for([(0, 0)], 8, none=9.0)])
    assert TASK.agreement(before, after, spec) == pytest.approx((1 + 0.5 + 0 + 0 + 1) / 5)
    assert TASK.agreement(before, before, spec) == 1


@pytest.mark.parametrize("metric", ["token_f1", "exact_match"])
def test_a_difference_is_paired_and_never_sure_of_few_equal_rows(
    reader: tuple[OptimizedModel, Context], metric: str
) -> None:
    spec = reader[0].spec
    context = "red one was big"
    references = np.array([key(context, "red one")] * 200)
    right = outputs_for([(0, 1)] * 200, 4)
    same = TASK.difference(metric, right, right, references, spec, seed=0)
    assert same.value == 0 and same.lo < -0.001 and same.hi > 0.001
    worse = outputs_for([(0, 1)] * 160 + [(2, 3)] * 40, 4)
    found = TASK.difference(metric, right, worse, references, spec, seed=0)
    assert found.hi < 0 and found.value == pytest.approx(-0.2)
    assert TASK.judge(metric, worse, references, spec) == pytest.approx(0.8)
    assert TASK.correct(worse, references, spec).sum() == 160


def test_changes_tell_answers_that_flipped_and_the_questions_that_lost(
    reader: tuple[OptimizedModel, Context],
) -> None:
    model, context = reader
    train = context.data.train
    outputs = TASK.outputs(model.model, model.processor, train.inputs, model.spec)
    broken = outputs.copy()
    broken[0, 1:][outputs[0, 1:] != 0] *= -1
    found = TASK.changes(outputs, np.pad(broken, [(0, 0), (0, 5), (0, 0)]), train, model.spec)
    assert found.metrics["negative_flips"] == pytest.approx(1 / len(train))
    assert found.metrics["agreement"] == pytest.approx(1 - 1 / len(train))
    assert found.metrics["mean_kl"] > 0
    assert [row["row"] for row in found.tables["broken_rows"]] == [0]
    assert found.tables["broken_rows"][0]["baseline_answer"] == found.tables["broken_rows"][0]["right"]
    names = {part["name"] for part in found.tables["slices"]}
    assert {"column kind: film", "column kind: book"} <= names, names
    assert TASK.changes(outputs, outputs, train, model.spec).metrics["mean_kl"] == 0


# --- learning and steps


def test_a_fine_tuned_model_reads_the_question_and_the_context(reader: tuple[OptimizedModel, Context]) -> None:
    model, context = reader
    test = context.data.test
    assert scores_of(model, test)["token_f1"] > 0.9
    asked = [(test.inputs[row - 1][0], text) for row, (_, text) in enumerate(test.inputs)]
    outputs = TASK.outputs(model.model, model.processor, asked, model.spec)
    assert TASK.quality(outputs, test.references, model.spec)["token_f1"] < 0.7, "with the questions of other rows"


def test_outputs_are_those_of_transformers_at_the_tokens_of_the_pieces(reader: tuple[OptimizedModel, Context]) -> None:

    model, _ = reader
    row = ("film ?", "zebra red, was")  # zebra has five tokens
    found = TASK.outputs(model.model, model.processor, [row, ("book ?", "was")], model.spec)
    encoded = model.processor(*row, return_tensors="pt")
    with torch.inference_mode():
        said = model.model(**encoded)
    tokens = encoded.tokens()
    first = [0, *(tokens.index(token) for token in ("z", "red", ",", "was"))]
    last = [0, *(tokens.index(token) for token in ("##a", "red", ",", "was"))]
    np.testing.assert_allclose(found[0, :, 0], said.start_logits[0].numpy()[first], atol=1e-5)
    np.testing.assert_allclose(found[0, :, 1], said.end_logits[0].numpy()[last], atol=1e-5)
    assert found[1].any(axis=1).tolist() == [True, True, False, False, False]


def test_an_answer_is_learned_in_the_windows_that_hold_it_and_nothing_in_the_others(
    reader: tuple[OptimizedModel, Context],
) -> None:
    model, _ = reader
    spec = {**model.spec, "max_length": 24, "stride": 4}
    context = "the movie was not very " * 6 + "red one " + "and the plot was " * 6
    row = ("film ?", context)
    reference = json.dumps({"context": context, "texts": ["red one"], "spans": [(30, 31)]}).encode()
    windows = TASK.encode(model.processor, [row], spec)
    assert len(windows) > 2 and all(window["row"] == 0 for window in windows)
    tokens = [model.processor.convert_ids_to_tokens(window["input_ids"]) for window in windows]
    holds = ["red" in own and "one" in own[own.index("red") :] for own in tokens]
    assert any(holds) and not all(holds)
    teacher = outputs_for([(30, 31)], len(context.split()))[0]
    for window, own, there in zip(windows, tokens, holds, strict=True):
        start, end = TASK.align(window, reference)
        soft = TASK.align(window, teacher)
        assert soft.shape == (2, len(own))
        if there:
            assert (own[start], own[end]) == ("red", "one")
            assert soft.argmax(axis=1).tolist() == [start, end]
            assert (soft[:, [own.index("[SEP]"), 1]] < -100).all(), "neither the question nor marks can be answers"
        else:
            assert (start, end) == (0, 0)
            assert soft.argmax(axis=1).tolist() == [0, 0]
            told = np.isfinite(soft[:, [own.index(word) for word in ("movie", "very", "the") if word in own]])
            assert told.size and told.all(), "that the answer is none of them is to be learned"
        assert np.isneginf(soft[:, own.index("[SEP]")]).all()
        assert window[WINDOWS][2] == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0, 50.0])
def test_a_model_has_nothing_to_learn_from_itself(reader: tuple[OptimizedModel, Context], temperature: float) -> None:
    model, context = reader
    lesson = make_lesson(model, model, context, Teaching(temperature, alpha=1.0))
    rows = training_rows(model, context.data.train, context, lesson.columns)[:24]
    batch = collate(model.processor, rows)
    inputs = {name: batch[name] for name in model.processor.model_input_names}

    def lost() -> float:
        with torch.no_grad():
            said = TASK.answer(model.model(**inputs), inputs, model.spec)
        return float(lesson.loss(model.model, inputs, said, batch))

    assert len({len(row["input_ids"]) for row in rows}) > 1, "some of the rows are padded"
    assert abs(lost()) < 1e-4
    head = model.model.qa_outputs.weight
    with torch.no_grad():
        head.mul_(1.5)
        worse = lost()
        head.div_(1.5)
    assert worse > 1e-2


def test_an_answer_within_a_token_is_the_token_that_holds_it(reader: tuple[OptimizedModel, Context]) -> None:
    model, _ = reader
    plain = make_tokenizer([*VOCABULARY, "3d"])
    windows = TASK.encode(plain, [("film ?", "was 3d red")], model.spec)
    reference = json.dumps({"context": "was 3d red", "texts": ["d"], "spans": [(2, 2)]}).encode()
    start, end = TASK.align(windows[0], reference)
    assert plain.convert_ids_to_tokens(windows[0]["input_ids"])[start : end + 1] == ["3d"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distill.logits", {"layers": 1, "epochs": 6, "learning_rate": 5e-3, "batch_size": 16}),
        pytest.param(
            "distill.hidden",
            {"layers": 1, "epochs": 6, "learning_rate": 5e-3, "batch_size": 16},
            marks=pytest.mark.slow,
        ),
        pytest.param("finetune.lora", {"rank": 2, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        pytest.param("prune.heads", {"sparsity": 0.5, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        ("prune.width", {"sparsity": 0.5, "epochs": 3, "learning_rate": 5e-3, "batch_size": 16}),
        pytest.param(
            "prune.depth", {"layers": 1, "epochs": 5, "learning_rate": 5e-3, "batch_size": 16}, marks=pytest.mark.slow
        ),
        pytest.param("prune.magnitude", {"sparsity": 0.3}, marks=pytest.mark.slow),
        pytest.param("prune.wanda", {"sparsity": 0.3}, marks=pytest.mark.slow),
        ("prune.vocabulary", {}),
    ],
)
def test_every_step_for_encoders_keeps_what_was_learned(
    reader: tuple[OptimizedModel, Context], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, context = reader
    step: Any = load_technique(name)(**options)
    work = Context(**{**context.__dict__, "workdir": tmp_path, "original": model})
    if hasattr(step, "check"):
        step.check(model)
    outcome = step.apply(model, work)
    before, after = (scores_of(one, context.data.test)["token_f1"] for one in (model, outcome))
    assert after > before - 0.3
    assert outcome.lineage[-1].technique == name


@pytest.mark.slow
def test_a_student_with_another_tokenizer_learns_from_the_answers_alone(
    reader: tuple[OptimizedModel, Context], tmp_path: Path
) -> None:
    teacher, context = reader
    folder = save_tiny_classifier(tmp_path / "student", initializer_range=0.1)
    own = [word for word in VOCABULARY if word not in ("red", "green", "animal")]  # several tokens in the student
    make_tokenizer(own).save_pretrained(folder)
    student = TASK.load_model(folder, context.data, max_length=48, seed=0)
    work = Context(**{**context.__dict__, "workdir": tmp_path, "load_model": lambda _: student})
    step = load_technique("distill.logits")(student="other", alpha=1.0, epochs=14, learning_rate=5e-3, batch_size=16)
    learned = step.apply(teacher, work)
    assert scores_of(learned, context.data.test)["token_f1"] > 0.7


@pytest.mark.slow
def test_a_model_learns_that_there_is_no_answer(tmp_path: Path, tiny_dir: Path) -> None:
    path = write_rows(tmp_path / "some.jsonl", make_rows(500, unanswerable=0.3))
    model, context = fine_tuned(path, tiny_dir, tmp_path, epochs=12)
    scores = scores_of(model, context.data.test)
    assert scores["token_f1/answerable"] > 0.8 and scores["token_f1/unanswerable"] > 0.8, scores


# --- runtimes


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_an_exported_reader_answers_as_its_source_in_one_window_and_in_many(
    reader: tuple[OptimizedModel, Context], backend: str, tmp_path: Path
) -> None:
    model, context = reader
    if backend == "openvino":
        pytest.importorskip("openvino")
    long = ("book ?", "the movie was " * 40 + "plant two, " + "and not " * 500)
    rows = [*context.data.test.inputs, long, ("film " * 90, "red"), ("x", "y")]
    exported = load_backend(backend).export(model, tmp_path / "model", rows[:8])
    predictor = load_backend(backend).load(exported.directory, threads=1)
    found = predictor.predict(rows, batch_size=5)
    wanted = TASK.outputs(model.model, model.processor, rows, model.spec)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    said = answers([text for _, text in rows], found, model.spec)
    assert said["answer"][len(rows) - 3] == "plant two"


@pytest.mark.parametrize(
    "name",
    ["quantize.dynamic", *(pytest.param(f"quantize.{kind}", marks=pytest.mark.slow) for kind in ("static", "qat"))],
)
def test_integer_readers_keep_what_was_learned(
    reader: tuple[OptimizedModel, Context], name: str, tmp_path: Path
) -> None:
    model, context = reader
    options: dict[str, Any] = {"calibration_rows": 16}
    if name == "quantize.qat":
        options |= {"epochs": 1, "batch_size": 16}
    step = load_technique(name)(**options)
    backend = load_backend("onnxruntime")
    work = Context(**{**context.__dict__, "workdir": tmp_path, "backends": {"onnxruntime": backend}})
    outcome = step.apply(model, work)
    exported = backend.export(outcome, tmp_path / "final", context.data.validation.inputs[:8])
    outputs = backend.load(exported.directory, threads=1).predict(context.data.test.inputs)
    assert TASK.quality(outputs, context.data.test.references, model.spec)["token_f1"] > 0.7


# --- answers


def test_answers_keep_their_places_and_may_be_none() -> None:
    context = "In 1990s films,  a big-red person!"
    pieces = ["In", "1990", "s", "films", ",", "a", "big", "-", "red", "person", "!"]
    spans = [(6, 8), (1, 2), (9, 9)]
    always = {"max_answer_length": 30, "unanswerable": False}
    found = answers([context] * 3, outputs_for(spans, len(pieces)), always)
    assert found["answer"].tolist() == ["big-red", "1990s", "person"]
    assert [context[s:e] for s, e in zip(found["start"], found["end"], strict=True)] == found["answer"].tolist()
    assert ((found["score"] > 0.9) & (found["score"] <= 1)).all()
    none = answers([context], outputs_for([(0, 0)], len(pieces), none=20.0), {**always, "unanswerable": True})
    assert none.iloc[0].drop("score").tolist() == ["", 0, 0] and none["score"][0] > 0.9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (["a"], "Send a mapping with question and context"),
        ([{"question": "a"}], "row 0 has no context"),
        ([("a", "b"), {"question": "a", "context": " "}], "row 1 has no context"),
        ([{"question": "a", "text": "b"}], "unknown keys"),
        ([("a", "b", "c")], "row 0 is"),
    ],
)
def test_rows_that_are_no_questions_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows(rows, {})


@pytest.fixture(scope="module")
def outcome(store: Any, rows_file: Path, tiny_dir: Path) -> Any:  # noqa: F811
    """The recipe, from a model without a head for spans."""
    more = {"steps.distill.epochs": 6, "baseline.epochs": 11, "steps.distill.layers": 1, "max_length": 48}
    rates = {"baseline.learning_rate": 5e-3, "steps.distill.learning_rate": 5e-3}
    columns = {**COLUMNS, "track.experiment": "slim"}
    return slim.run("distill-answers", model=str(tiny_dir), data=str(rows_file), **columns, **BUDGET, **more, **rates)


def test_the_recipe_measures_answers_in_pairs_and_logs_models_that_answer_questions(
    outcome: Any,
    store: Any,  # noqa: F811
) -> None:
    import mlflow

    assert [point.exported.variant for point in outcome.points] == [
        "baseline",
        "distill.logits@onnxruntime",
        "distill.logits+quantize.dynamic@onnxruntime",
    ]
    last = outcome.reports[-1]
    assert last.metrics["quality/token_f1"] > 0.5
    assert last.metrics["quality/token_f1_delta_lo"] <= last.metrics["quality/token_f1_delta"]
    assert last.tags["slim.quality.verdict"] in ("non-inferior", "worse", "not enough data")
    text = "the movie was red one, very big 7"
    for point in (outcome.points[0], outcome.points[-1]):
        run = store.get_run(point.run_id)
        assert run.data.tags["slim.reload"] == "same"
        model = mlflow.pyfunc.load_model(point.model_uri)
        asked = {"question": "film ?", "context": text}
        assert model.predict(asked) == model.predict(pd.DataFrame([asked])) == ["red one"]
        told = model.predict([asked, {**asked, "question": "food ?"}], params={"details": True})
        assert list(told.columns) == ["answer", "score", "start", "end"]
        assert [text[s:e] for s, e in zip(told["start"], told["end"], strict=True)] == told["answer"].tolist()
        assert model.metadata.signature.inputs.input_names() == ["question", "context"]


@pytest.mark.slow
def test_a_logged_reader_is_measured_again(outcome: Any, rows_file: Path, store: Any) -> None:  # noqa: F811
    again = slim.run(
        "evaluate",
        model=outcome.points[-1].model_uri,
        against=outcome.points[0].model_uri,
        data=str(rows_file),
        task="question-answering",
        **{**COLUMNS, "track.experiment": "slim"},
        **BUDGET,
    )
    assert again.reports[-1].metrics["quality/token_f1"] == pytest.approx(
        outcome.reports[-1].metrics["quality/token_f1"]
    )


def test_a_graph_made_elsewhere_answers_as_the_model_it_came_from(
    reader: tuple[OptimizedModel, Context], tmp_path: Path
) -> None:
    import copy

    from test_ready_graph import adopt, export_elsewhere

    model, context = reader
    folder = tmp_path / "model"
    model.processor.save_pretrained(folder)
    model.model.config.save_pretrained(folder)
    export_elsewhere(copy.deepcopy(model.model), folder / "model.onnx", "start_logits", "end_logits")
    exported = adopt(folder / "model.onnx", tmp_path / "own", task="question-answering", max_length=48)
    assert exported.spec["stride"] == 12 and not exported.spec["unanswerable"]
    rows = context.data.test.inputs
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(rows)
    wanted = TASK.outputs(model.model, model.processor, rows, exported.spec)
    assert abs(found - wanted).max() < 1e-4
