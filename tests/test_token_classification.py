"""Token classification: tagged rows in any form, spans as seqeval counts them, every step and runtime, entities out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import save_tiny_classifier, step_context
from test_pipeline import BUDGET, store  # noqa: F401  (a fixture)

import mlflow_slim as slim
from mlflow_slim.artifact import OptimizedModel
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.data import read_tables
from mlflow_slim.errors import DataError, MeasurementError, SlimError
from mlflow_slim.interfaces import Context
from mlflow_slim.measurement.spans import span_counts, span_quality, span_tags
from mlflow_slim.runtime.tasks.token_classification import answers, check_rows, respond
from mlflow_slim.tasks.token_classification import TASK

WORDS = ("the", "movie", "was", "film", "plot", "story", "and", "very", "not", "zebra")
FIRST = {"animal": "BEING", "person": "BEING", "red": "COLOUR", "green": "COLOUR", "blue": "COLOUR"}
MORE = {"BEING": "one", "COLOUR": "two"}


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences in which spans of one or two words are marked, as the words themselves say."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words: list[str] = []
        tags: list[str] = []
        for _ in range(draw.randint(1, 5)):
            words.append(draw.choice(WORDS))
            tags.append("O")
            if draw.random() < 0.7:
                word = draw.choice(list(FIRST))
                kind = FIRST[word]
                longer = draw.random() < 0.4
                words += [word, MORE[kind]] if longer else [word]
                tags += [f"B-{kind}", f"I-{kind}"] if longer else [f"B-{kind}"]
        rows.append({"tokens": [*words, str(number)], "ner_tags": [*tags, "O"], "origin": draw.choice("ab")})
    return rows


def write_rows(path: Path, count: int = 240, seed: int = 0) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(count, seed)), encoding="utf-8")
    return path


def read(path: Path | str, **how: Any) -> Any:
    return read_tables(str(path), **{"text": "tokens", "label": "ner_tags", "labels": "tags", **how})


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "model", ("x", "y"), head="TokenClassification")


@pytest.fixture(scope="module")
def tagger(rows_file: Path, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[OptimizedModel, Context]:
    """A fine-tuned tiny tagger and what its steps get."""
    data = TASK.make_data(read(rows_file))
    source = TASK.load_model(tiny_dir, data, max_length=24, seed=0)
    assert not source.trained, "the folder's head is for other labels"
    context = step_context(TASK, data, tmp_path_factory.mktemp("work"), source)
    step = load_technique("finetune.full")(epochs=12, learning_rate=1e-2, batch_size=16)
    return step.apply(source, context), context


# --- data


def test_lists_texts_and_ids_of_the_same_rows_are_the_same_data(tmp_path: Path, rows_file: Path) -> None:
    rows = make_rows(240)
    texts = [
        {"tokens": " ".join(row["tokens"]), "ner_tags": "  ".join(row["ner_tags"]), "origin": row["origin"]}
        for row in rows
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    table = pd.DataFrame(rows)
    table["tokens"], table["ner_tags"] = table["tokens"].map(json.dumps), table["ner_tags"].map(repr)
    table.to_csv(tmp_path / "lists.csv", index=False)
    conll = "".join(
        "".join(f"{w} X {t}\n" for w, t in zip(r["tokens"], r["ner_tags"], strict=True)) + "\n" for r in rows
    )
    (tmp_path / "rows.conll").write_text("-DOCSTART- -X- O\n\n" + conll)
    wanted = TASK.make_data(read(rows_file))
    assert wanted.spec["labels"] == ["O", "B-BEING", "B-COLOUR", "I-BEING", "I-COLOUR"]
    for path, how in (("texts.jsonl", {}), ("lists.csv", {}), ("rows.conll", {"label": "tags"})):
        found = TASK.make_data(read(tmp_path / path, **how))
        assert found.spec == wanted.spec
        assert found.test.digest == wanted.test.digest
        assert (found.test.references == wanted.test.references).all()


def test_class_ids_get_the_names_that_datasets_keeps(tmp_path: Path) -> None:
    import datasets

    rows = make_rows(60)
    names = ["O", "B-BEING", "I-BEING", "B-COLOUR", "I-COLOUR"]
    made = datasets.Dataset.from_dict(
        {"tokens": [r["tokens"] for r in rows], "ner_tags": [[names.index(t) for t in r["ner_tags"]] for r in rows]},
        features=datasets.Features(
            tokens=datasets.Sequence(datasets.Value("string")),
            ner_tags=datasets.Sequence(datasets.ClassLabel(names=names)),
        ),
    )
    made.save_to_disk(str(tmp_path / "saved"))
    data = TASK.make_data(read(tmp_path / "saved"))
    assert set(data.spec["labels"]) == set(names)
    row = (
        data.train.inputs.index(" ".join(rows[0]["tokens"])) if " ".join(rows[0]["tokens"]) in data.train.inputs else 0
    )
    assert (data.train.references[row] >= 0).sum() == len(data.train.inputs[row].split(" "))


def test_ids_without_names_are_those_of_a_trained_head(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", str(i)], "ner_tags": [0, i % 3]} for i in range(40)]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"architectures": ["BertForTokenClassification"], "id2label": {"0": "O", "1": "B-X", "2": "I-X"}}
    data = TASK.make_data(read(tmp_path / "ids.jsonl"), config=config)
    assert (data.spec["labels"], data.report["labels_from"]) == (["O", "B-X", "I-X"], "model")
    assert TASK.make_data(read(tmp_path / "ids.jsonl")).spec["labels"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("tokens", "tags", "why"),
    [
        (["a", "b"], ["O"], "another number of tags in 'ner_tags' than of words in 'tokens'"),
        ([], [], "no words in 'tokens'"),
        (["a"], None, "no tags in 'ner_tags'"),
        (["a", "b"], ["O", None], "a word without a tag in 'ner_tags'"),
        (["\ud800"], ["O"], "isn't valid Unicode"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_or_dropped_and_counted(
    tmp_path: Path, tokens: Any, tags: Any, why: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 60)
    with path.open("a") as file:
        file.write(json.dumps({"tokens": tokens, "ner_tags": tags}) + "\n")
    with pytest.raises(DataError, match=why):
        read(path)
    assert sum(read(path, on_bad_rows="drop").report["dropped"]["all"].values()) == 1


def test_lists_as_numpy_prints_them_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame([{**row, "tokens": str(np.array(row["tokens"]))} for row in make_rows(40)])
    table.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="as numpy prints them"):
        read(tmp_path / "rows.csv")


def test_a_pair_column_and_a_single_tag_are_refused(tmp_path: Path, rows_file: Path) -> None:
    with pytest.raises(DataError, match="text_pair is for pairs"):
        read(rows_file, text_pair="origin")
    rows = [{"tokens": [str(i), "a"], "ner_tags": ["O", "O"]} for i in range(40)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="one tag only"):
        read(tmp_path / "one.jsonl")


def test_conllu_names_its_fields_and_leaves_out_words_that_are_several(tmp_path: Path) -> None:
    line = "{}\t{}\t_\t{}\t_\t_\t0\t_\t_\t_\n"
    text = ""
    for i in range(30):
        text += "# text = of it\n" + line.format("1-2", "ofit", "_") + line.format(1, "of", "ADP")
        text += line.format(2, f"it{i}", "PRON") + "\n"
    (tmp_path / "rows.conllu").write_text(text)
    tables = read(tmp_path / "rows.conllu", text="form", label="upos")
    assert tables.train["label"].iloc[0] == ["ADP", "PRON"]
    data = TASK.make_data(tables)
    assert not data.spec["spans"], "every word has a class of its own"
    assert TASK.headline(data.test.references, data.spec)[0] == "token_accuracy"


# --- quality


@pytest.mark.parametrize("scheme", ["BIO", "IO", "plain", "BIOES", "BILOU"])
def test_spans_are_counted_as_seqeval_counts_them(scheme: str) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    marks = {"BIO": "BI", "IO": "I", "plain": "", "BIOES": "BIES", "BILOU": "BILU"}[scheme]
    labels = ["O", *(f"{m}-{k}" for m in marks for k in ("PER", "LOC"))] if marks else ["O", "PER", "LOC"]
    draw = np.random.default_rng(0)
    references = draw.integers(0, len(labels), (50, 12))
    predicted = np.where(draw.random(references.shape) < 0.7, references, draw.integers(0, len(labels), (50, 12)))
    references[:, 9:] = -100
    predicted[3, 5:] = -1
    tags = np.array([*span_tags(labels), "O"], dtype=object)
    right = [tags[row[row >= 0]].tolist() for row in references]
    ours = [tags[np.maximum(row[:9], -1)].tolist() for row in predicted]
    found = span_quality(*span_counts(predicted, references, labels))
    assert found["span_f1"] == pytest.approx(f1_score(right, ours))
    assert found["span_precision"] == pytest.approx(precision_score(right, ours))
    assert found["span_recall"] == pytest.approx(recall_score(right, ours))
    per_kind = f1_score(right, ours, average=None)
    assert [found["f1/LOC"], found["f1/PER"]] == pytest.approx(list(per_kind))


def logits_of(ids: np.ndarray, classes: int) -> np.ndarray:
    return np.where(ids[..., None] >= 0, 5.0 * np.eye(classes)[np.maximum(ids, 0)] - 1, 0.0).astype(np.float32)


def test_words_that_were_cut_off_are_wrong_and_in_no_span(tagger: tuple[OptimizedModel, Context]) -> None:
    spec = {"labels": ["O", "B-X"], "spans": True}
    references = np.array([[0, 1, 1], [1, 0, -100]])
    whole = TASK.quality(logits_of(np.array([[0, 1, 1], [1, 0, -1]]), 2), references, spec)
    cut = TASK.quality(logits_of(np.array([[0, 1, -1], [1, 0, -1]]), 2), references, spec)
    assert (whole["token_accuracy"], whole["span_f1"]) == (1, 1)
    assert cut["token_accuracy"] == pytest.approx(4 / 5)
    assert cut["span_recall"] == pytest.approx(2 / 3)
    with pytest.raises(MeasurementError, match="not finite"):
        TASK.quality(np.full((2, 3, 2), np.nan), references, spec)


@pytest.mark.parametrize("spans", [True, False])
def test_some_of_the_rows_are_scored_though_the_longest_is_not_among_them(spans: bool) -> None:
    spec = {"labels": ["O", "B-X"], "spans": spans}
    references = np.array([[0, 1, -100, -100], [1, 0, -100, -100]])  # of a split whose longest row has four words
    for width in (2, 3, 6):
        outputs = np.pad(logits_of(references[:, :2], 2), [(0, 0), (0, width - 2), (0, 0)])
        scores = TASK.quality(outputs, references, spec)
        assert scores["token_accuracy"] == 1 and scores.get("span_f1", 1) == 1
        assert TASK.judge(TASK.headline(references, spec)[0], outputs, references, spec) == 1
        assert TASK.correct(outputs, references, spec).all()


@pytest.mark.parametrize("metric", ["span_f1", "token_accuracy"])
def test_a_difference_is_paired_and_never_sure_of_few_equal_rows(metric: str) -> None:
    spec = {"labels": ["O", "B-X", "I-X"], "spans": True}
    draw = np.random.default_rng(1)
    references = draw.integers(0, 3, (200, 8))
    outputs = logits_of(references, 3)
    same = TASK.difference(metric, outputs, outputs, references, spec, seed=0)
    assert same.value == 0 and same.lo < -0.001 and same.hi > 0.001
    worse = logits_of(np.where(draw.random(references.shape) < 0.1, (references + 1) % 3, references), 3)
    found = TASK.difference(metric, outputs, worse, references, spec, seed=0)
    assert found.hi < 0
    drop = TASK.quality(worse, references, spec)[metric] - TASK.quality(outputs, references, spec)[metric]
    assert found.value == pytest.approx(drop)
    assert TASK.judge(metric, worse, references, spec) == pytest.approx(1 + drop)


def test_changes_tell_words_that_flipped_and_the_texts_that_lost(tagger: tuple[OptimizedModel, Context]) -> None:
    model, context = tagger
    test = context.data.test
    outputs = TASK.outputs(model.model, model.processor, test.inputs, model.spec)
    broken = outputs.copy()
    broken[0] = broken[0, :, ::-1]  # the answers of the first text are mirrored
    found = TASK.changes(outputs, broken, test, model.spec)
    words = int((test.references[0] >= 0).sum())
    assert 0 < found.metrics["negative_flips"] <= words / int((test.references >= 0).sum())
    assert found.metrics["mean_kl"] > 0
    assert found.tables["broken_rows"][0]["row"] == 0
    assert test.inputs[0].split(" ")[0] in found.tables["broken_rows"][0]["text"]
    assert TASK.changes(outputs, outputs, test, model.spec).metrics["agreement"] == 1
    train = context.data.train
    answers_ = TASK.outputs(model.model, model.processor, train.inputs, model.spec)
    names = {part["name"] for part in TASK.changes(answers_, answers_, train, model.spec).tables["slices"]}
    assert {"column origin: a", "column origin: b"} <= names, names


# --- learning and steps


def test_a_fine_tuned_tagger_is_far_above_the_commonest_tag(tagger: tuple[OptimizedModel, Context]) -> None:
    model, context = tagger
    test = context.data.test
    scores = TASK.quality(
        TASK.outputs(model.model, model.processor, test.inputs, model.spec), test.references, model.spec
    )
    commonest = float((test.references[test.references >= 0] == 0).mean())
    assert scores["token_accuracy"] > commonest + 0.2
    assert scores["span_f1"] > 0.8


def test_outputs_are_those_of_the_words_first_tokens(tagger: tuple[OptimizedModel, Context]) -> None:
    import torch

    model, _ = tagger
    text = "zebra was red blue"  # zebra has five tokens
    found = TASK.outputs(model.model, model.processor, [text, "red"], model.spec)
    encoded = model.processor(text.split(" "), is_split_into_words=True, return_tensors="pt")
    first = [encoded.word_ids().index(word) for word in range(4)]
    with torch.inference_mode():
        wanted = model.model(**encoded).logits[0].numpy()[first]
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    assert found[1].any(axis=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distill.logits", {"layers": 1, "epochs": 6, "learning_rate": 5e-3, "batch_size": 16}),
        ("distill.hidden", {"layers": 1, "epochs": 6, "learning_rate": 5e-3, "batch_size": 16}),
        pytest.param("finetune.lora", {"rank": 2, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        pytest.param("prune.heads", {"sparsity": 0.5, "epochs": 1, "batch_size": 16}, marks=pytest.mark.slow),
        ("prune.width", {"sparsity": 0.5, "epochs": 2, "batch_size": 16}),
        pytest.param(
            "prune.depth", {"layers": 1, "epochs": 4, "learning_rate": 5e-3, "batch_size": 16}, marks=pytest.mark.slow
        ),
        pytest.param("prune.magnitude", {"sparsity": 0.3}, marks=pytest.mark.slow),
        pytest.param("prune.wanda", {"sparsity": 0.3}, marks=pytest.mark.slow),
        ("prune.vocabulary", {}),
    ],
)
def test_every_step_for_encoders_keeps_what_was_learned(
    tagger: tuple[OptimizedModel, Context], name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, context = tagger
    step: Any = load_technique(name)(**options)
    work = Context(**{**context.__dict__, "workdir": tmp_path, "original": model})
    if hasattr(step, "check"):
        step.check(model)
    outcome = step.apply(model, work)
    test = context.data.test
    scores = [
        TASK.quality(TASK.outputs(one.model, one.processor, test.inputs, one.spec), test.references, one.spec)
        for one in (model, outcome)
    ]
    assert scores[1]["span_f1"] > scores[0]["span_f1"] - 0.25
    assert outcome.lineage[-1].technique == name


def test_a_student_with_another_tokenizer_learns_word_by_word(
    tagger: tuple[OptimizedModel, Context], tmp_path: Path
) -> None:
    from conftest import VOCABULARY, make_tokenizer

    teacher, context = tagger
    folder = save_tiny_classifier(tmp_path / "student", ("x", "y"), head="TokenClassification")
    own = [word for word in VOCABULARY if word not in ("red", "green", "animal")]  # several tokens in the student
    make_tokenizer(own).save_pretrained(folder)
    student = TASK.load_model(folder, context.data, max_length=32, seed=0)
    work = Context(**{**context.__dict__, "workdir": tmp_path, "load_model": lambda _: student})
    step = load_technique("distill.logits")(
        student="other", alpha=1.0, epochs=12, learning_rate=1e-2, batch_size=16
    )  # the teacher's answers alone
    learned = step.apply(teacher, work)
    test = context.data.test
    scores = TASK.quality(
        TASK.outputs(learned.model, learned.processor, test.inputs, learned.spec), test.references, learned.spec
    )
    assert scores["span_f1"] > 0.7


# --- runtimes


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_an_exported_tagger_answers_as_its_source(
    tagger: tuple[OptimizedModel, Context], backend: str, tmp_path: Path
) -> None:
    model, context = tagger
    if backend == "openvino":
        pytest.importorskip("openvino")
    texts = [*context.data.test.inputs, "red " * 40 + "blue", "x"]
    exported = load_backend(backend).export(model, tmp_path / "model", texts[:8])
    predictor = load_backend(backend).load(exported.directory, threads=1)
    found = predictor.predict(texts, batch_size=5)
    wanted = TASK.outputs(model.model, model.processor, texts, model.spec)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert not found[len(texts) - 2, 30].any(), "words beyond max_length have no answer"


def test_a_graph_may_say_something_else_of_padding(rows_file: Path, tmp_path: Path) -> None:
    """ModernBERT: where a window holds padding only, torch and onnxruntime attend to different nothings."""
    import torch
    import transformers
    from conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer), local_attention=8, global_attn_every_n_layers=2, **sizes, **ends
    )
    torch.manual_seed(0)
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = TASK.make_data(read(rows_file))
    source = TASK.load_model(tmp_path / "model", data, max_length=60, seed=0)
    texts = ["red", "the movie was not very " * 6]
    exported = load_backend("onnxruntime").export(source, tmp_path / "graph", texts)
    found = load_backend("onnxruntime").load(exported.directory, threads=1).predict(texts)
    wanted = TASK.outputs(source.model, source.processor, texts, source.spec)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    ["quantize.dynamic", *(pytest.param(f"quantize.{kind}", marks=pytest.mark.slow) for kind in ("static", "qat"))],
)
def test_integer_taggers_keep_what_was_learned(
    tagger: tuple[OptimizedModel, Context], name: str, tmp_path: Path
) -> None:
    model, context = tagger
    options: dict[str, Any] = {"calibration_rows": 16}
    if name == "quantize.qat":
        options |= {"epochs": 1, "batch_size": 16}
    step = load_technique(name)(**options)
    backend = load_backend("onnxruntime")
    work = Context(**{**context.__dict__, "workdir": tmp_path, "backends": {"onnxruntime": backend}})
    outcome = step.apply(model, work)
    exported = backend.export(outcome, tmp_path / "final", context.data.validation.inputs[:8])
    outputs = backend.load(exported.directory, threads=1).predict(context.data.test.inputs)
    scores = TASK.quality(outputs, context.data.test.references, model.spec)
    assert scores["span_f1"] > 0.7


# --- answers


@pytest.mark.parametrize(
    ("words", "served"),
    [(["red", ",", "movie", "."], ["red", ",", "movie", "."]), (["red,", "movie."], ["red,", "movie."])],
)
def test_a_served_text_comes_apart_as_the_words_of_training_did(
    words: list[str], served: list[str], tmp_path: Path, tiny_dir: Path
) -> None:
    rows = [{"tokens": [str(n), *words], "ner_tags": ["number", *["word"] * len(words)]} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = TASK.make_data(read(path))
    source = TASK.load_model(tiny_dir, data, max_length=16, seed=0)
    backend = load_backend("torch")
    exported = backend.export(source, tmp_path / "out", data.test.inputs[:4])
    found = respond(backend.load(exported.directory, threads=1), ["red, movie.", ["red,", "movie ."]], {})
    assert [entity["word"] for entity in found["entities"][0]] == served
    assert [entity["word"] for entity in found["entities"][1]] == ["red,", "movie ."], "these are apart already"


def test_entities_are_joined_as_their_marks_say_and_keep_their_places() -> None:
    text = "Ada Lovelace met Babbage Charles in York"
    places = [(0, 3), (4, 12), (13, 16), (17, 24), (25, 32), (33, 35), (36, 40)]
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    outputs = logits_of(np.array([1, 2, 0, 1, 1, 0, 3]), 4)
    found = answers(text, places, outputs, {"labels": labels, "spans": True}, {})
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in found] == [
        ("PER", "Ada Lovelace", 0, 12),
        ("PER", "Babbage", 17, 24),
        ("PER", "Charles", 25, 32),
        ("LOC", "York", 36, 40),
    ]
    assert all(0.9 < e["score"] < 1 for e in found)
    each = answers(text, places, outputs, {"labels": labels, "spans": False}, {})
    assert [e["entity_group"] for e in each] == ["B-PER", "I-PER", "O", "B-PER", "B-PER", "O", "B-LOC"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no rows"), ([""], "row 0 is an empty text"), ([3], "row 0 is a int"), ([{"tekst": "a"}], "unknown keys")],
)
def test_rows_that_are_no_texts_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows(rows, {})


@pytest.fixture(scope="module")
def outcome(store: Any, rows_file: Path, tiny_dir: Path, tmp_path_factory: Any) -> Any:  # noqa: F811
    """The recipe, from a model without a head for these labels."""
    more = {"steps.distill.epochs": 10, "baseline.epochs": 12, "steps.distill.layers": 1, "max_length": 24}
    rates = {"baseline.learning_rate": 1e-2, "steps.distill.learning_rate": 1e-2}
    columns = {"text": "tokens", "label": "ner_tags", "track.experiment": "slim"}
    return slim.run("distill-tokens", model=str(tiny_dir), data=str(rows_file), **columns, **BUDGET, **more, **rates)


def test_the_recipe_measures_spans_in_pairs_and_logs_models_that_answer_texts(
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
    assert last.metrics["quality/span_f1"] > 0.5
    assert last.metrics["quality/span_f1_delta_lo"] <= last.metrics["quality/span_f1_delta"]
    assert last.tags["slim.quality.verdict"] in ("non-inferior", "worse", "not enough data")
    for point in (outcome.points[0], outcome.points[-1]):
        run = store.get_run(point.run_id)
        assert run.data.tags["slim.reload"] == "same"
        model = mlflow.pyfunc.load_model(point.model_uri)
        found = model.predict(["the movie: red, very!", "zebra"])
        assert list(found.columns) == ["entities"] and len(found) == 2
        for entity in found["entities"][0]:
            assert "the movie: red, very!"[entity["start"] : entity["end"]] == entity["word"]
        assert any(entity["word"] == "red" for entity in found["entities"][0])
        assert model.metadata.signature.outputs.input_names() == ["entities"]


@pytest.mark.slow
def test_the_baseline_is_a_pipeline_of_transformers_too(outcome: Any) -> None:
    import mlflow

    pipeline = mlflow.transformers.load_model(outcome.points[0].model_uri)
    ours = mlflow.pyfunc.load_model(outcome.points[0].model_uri).predict(["the red movie"])["entities"][0]
    theirs = list(pipeline("the red movie", aggregation_strategy="first"))
    assert [(e["entity_group"], e["start"], e["end"]) for e in ours] == [
        (e["entity_group"], e["start"], e["end"]) for e in theirs
    ]
    assert [e["score"] for e in ours] == pytest.approx([float(e["score"]) for e in theirs], abs=1e-4)


@pytest.mark.slow
def test_a_logged_tagger_is_measured_again_and_other_tags_are_refused(
    outcome: Any,
    rows_file: Path,
    tmp_path: Path,
    store: Any,  # noqa: F811
) -> None:
    columns = {"text": "tokens", "label": "ner_tags", "task": "token-classification", "track.experiment": "slim"}
    again = slim.run(
        "evaluate",
        model=outcome.points[-1].model_uri,
        against=outcome.points[0].model_uri,
        data=str(rows_file),
        **columns,
        **BUDGET,
    )
    assert again.reports[-1].metrics["quality/span_f1"] == pytest.approx(outcome.reports[-1].metrics["quality/span_f1"])
    rows = [{"tokens": ["a", str(i)], "ner_tags": ["O", f"B-{'XY'[i % 2]}"]} for i in range(40)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SlimError, match="doesn't know: B-X, B-Y"):
        slim.run(
            "evaluate",
            model=outcome.points[-1].model_uri,
            against=outcome.points[0].model_uri,
            data=str(tmp_path / "other.jsonl"),
            **columns,
            **BUDGET,
        )
