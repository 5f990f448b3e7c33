"""Language models: what is written is what transformers would write, scores are its scores, whatever runs them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_language_model

from mlflow_slim import bundle
from mlflow_slim.catalog import load_backend, load_task
from mlflow_slim.config import Recipe
from mlflow_slim.errors import ConfigError, DataError, ExportError, ModelError
from mlflow_slim.inputs import Inputs, load_inputs
from mlflow_slim.interfaces import Context, Scheme
from mlflow_slim.runtime.decoders import TorchDecoder
from mlflow_slim.runtime.generation import Answers, Writing, lookup, score, unpack, write_on
from mlflow_slim.runtime.prompts import render_chat
from mlflow_slim.runtime.tasks import text_generation as served

KINDS = ("llama", "qwen2", "mistral", "gemma", "gpt2")
TASK = load_task("text-generation")


def rows_file(folder: Path, count: int = 60) -> Path:
    path = folder / "qa.jsonl"
    rows = [{"q": f"what is the name of river {i}", "a": f"the river {i * 7} runs home"} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def recipe_of(model: Path, data: Path, **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "text": "q",
        "label": "a",
        "task": "text-generation",
        "max_length": 96,
        "generate": {"max_new_tokens": 8, "eval_rows": 8},
        "export": {"backends": ["torch"]},
        "measure": {"timing_s": 4, "energy_s": 0, "fresh_starts": 0, "wait_s": 0},
    }
    return Recipe.load({**content, **changes})


def load(folder: Path, *, model: Path | None = None, **changes: Any) -> Inputs:
    where = model or make_language_model(folder / "lm")
    return load_inputs(recipe_of(where, rows_file(folder), **changes), folder, lambda uri: Path(uri))


def context_of(inputs: Inputs, folder: Path, *backends: str) -> Context:
    return Context(
        task=inputs.task,
        data=inputs.data,
        seed=0,
        threads=1,
        device="cpu",
        workdir=folder,
        load_model=lambda name: pytest.fail(name),
        report=lambda *_: None,
        backends={name: load_backend(name) for name in backends},
    )


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A tiny llama with rows; its model isn't changed by any test."""
    return load(tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_writes_what_transformers_writes(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = make_language_model(tmp_path / "lm", kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    ids = [5, 9, 40, 7, 12]
    wanted = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    ends = frozenset({0})
    assert list(write_on(TorchDecoder(model, threads=1), ids, Writing(20), ends)) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_right_or_wrong_change_no_token(kind: str, tmp_path: Path) -> None:
    import transformers

    folder = make_language_model(tmp_path / "lm", kind)
    decoder = TorchDecoder(transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval(), threads=1)
    ids = [5, 9, 40, 7, 12]
    plain = list(write_on(decoder, ids, Writing(30, ignore_end=True)))
    told: list[tuple[int, int]] = []

    def half_right(history: Sequence[int], room: int) -> list[int]:
        ahead = plain[len(history) - len(ids) :][:5]
        return [*ahead[:2], 1, 2, 3][:room]

    guessed = list(
        write_on(decoder, ids, Writing(30, ignore_end=True), guess=half_right, count=lambda a, b: told.append((a, b)))
    )
    assert guessed == plain
    assert sum(right for _, right in told) >= 15
    assert any(right < asked for asked, right in told)


def test_looking_up_finds_the_latest_place_and_keeps_within_the_room() -> None:
    guess = lookup(tokens=3, ngram=3)
    assert list(guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 10)) == [4, 5, 9]
    assert list(guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 1)) == [4]
    assert list(guess([7, 8, 5, 7, 8, 6, 7, 8], 10)) == [6, 7, 8]
    assert list(guess([1, 2, 3], 10)) == []
    assert list(guess([4], 10)) == []


def test_scores_are_those_of_transformers(lm: Inputs) -> None:
    import torch

    assert lm.source is not None
    ids = [5, 9, 40, 7, 12, 60, 33]
    with torch.inference_mode():
        logs = lm.source.model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    found, top = score(TorchDecoder(lm.source.model, threads=1), ids, 3)
    np.testing.assert_allclose(found, [logs[i - 1, ids[i]] for i in range(3, 7)], atol=1e-4)
    assert top.tolist() == [logs[i - 1].argmax() for i in range(3, 7)]


def test_answers_survive_packing() -> None:
    spec = {"max_new_tokens": 4, "max_length": 3}
    answers = Answers(
        log_likelihood=np.array([-1.5, 0.0]),
        tokens=np.array([2, 0]),
        bytes=np.array([7, 0]),
        top=np.array([[49151, 0, -1], [-1, -1, -1]]),
        right=np.array([[True, False, False], [False, False, False]]),
        texts=("naïve 東京", ""),
    )
    found = unpack(answers.pack(spec), spec)
    assert found.texts == answers.texts
    assert (found.top == answers.top).all()
    assert (found.right == answers.right).all()
    assert found.log_likelihood.tolist() == [-1.5, 0.0]
    assert found.bytes.tolist() == [7, 0]


def test_the_same_model_scores_the_same_in_memory_exported_and_by_hand(lm: Inputs, tmp_path: Path) -> None:
    assert lm.source is not None
    rows = lm.data.validation.inputs
    exported = load_backend("torch").export(lm.source, tmp_path / "torch", rows[:4])
    predictor: Any = load_backend("torch").load(exported.directory, threads=1)
    np.testing.assert_allclose(
        predictor.scores(rows), TASK.outputs(lm.source.model, lm.source.processor, rows, lm.source.spec), atol=1e-3
    )
    answers = unpack(predictor.predict(rows), lm.source.spec)
    quality = TASK.quality(predictor.predict(rows), lm.data.validation.references, lm.source.spec)
    assert quality["perplexity"] == pytest.approx(math.exp(-answers.log_likelihood.sum() / answers.tokens.sum()))
    sizes = [len(text.encode()) for _, text in rows]
    assert answers.bytes.tolist() == sizes
    assert quality["bits_per_byte"] == pytest.approx(-answers.log_likelihood.sum() / math.log(2) / sum(sizes))


def test_a_text_alone_is_scored_but_for_its_first_token(tmp_path: Path) -> None:
    inputs = load(tmp_path, label=None)
    assert inputs.source is not None
    rows = inputs.data.test.inputs
    assert all(prompt == "" for prompt, _ in rows)
    assert inputs.source.spec["chat"] is False
    answers = unpack(
        TASK.outputs(inputs.source.model, inputs.source.processor, rows, inputs.source.spec), inputs.source.spec
    )
    encode = inputs.source.processor.backend_tokenizer.encode
    assert answers.tokens.tolist() == [len(encode(text).ids) - 1 for _, text in rows]
    assert all(size < len(text.encode()) for size, (_, text) in zip(answers.bytes, rows, strict=True))


def test_long_rows_keep_the_end_of_the_prompt_and_the_start_of_the_text(tmp_path: Path) -> None:
    inputs = load(tmp_path, max_length=24, generate={"max_new_tokens": 4, "chat": False})
    assert inputs.source is not None
    row = ("river " * 50, "fox " * 50)
    answers = unpack(
        TASK.outputs(inputs.source.model, inputs.source.processor, [row], inputs.source.spec), inputs.source.spec
    )
    assert answers.tokens.tolist() == [23]
    (encoded,) = TASK.encode(inputs.source.processor, [row], inputs.source.spec)
    assert len(encoded["input_ids"]) == 24
    assert encoded["labels"].count(-100) == 1


def test_the_prompt_is_a_chat_where_the_model_has_a_template_and_can_be_plain(tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "lm")
    chat = load(tmp_path, model=model)
    plain = load(tmp_path, model=model, generate={"chat": False})
    assert chat.source is not None
    assert plain.source is not None
    rows = [("hello", "world")]
    with_chat, without = (
        TASK.encode(one.source.processor, rows, one.source.spec)[0]["input_ids"] for one in (chat, plain) if one.source
    )
    wanted = chat.source.processor.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    assert with_chat[: len(wanted)] == list(wanted)
    assert len(without) < len(with_chat)
    bare = make_language_model(tmp_path / "bare", chat=False)
    assert load(tmp_path, model=bare).source.spec["chat"] is False  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="no chat template"):
        load(tmp_path, model=bare, generate={"chat": True})


def test_a_chat_template_can_do_nothing_but_write() -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="can't be used"):
        render_chat("{{ ''.__class__.__mro__[1].__subclasses__() }}", messages, {})
    with pytest.raises(ValueError, match="refuses these messages: no system"):
        render_chat("{{ raise_exception('no system') }}", messages, {})
    assert render_chat("{{ messages[0]['content'] | tojson }}{{ eos_token }}", messages, {"eos_token": "E"}) == '"hi"E'


def test_templates_of_prompts(tmp_path: Path) -> None:
    inputs = load(tmp_path, generate={"prompt": "Answer: {text}?", "eval_rows": 4})
    assert all(p.startswith("Answer: what") and p.endswith("?") for p, _ in inputs.data.test.inputs)
    assert len(inputs.data.test) == 4
    assert len(inputs.data.train) > 40
    with pytest.raises(DataError, match=r"no \{text\} in it"):
        load(tmp_path, generate={"prompt": "Answer"})


def test_answers_may_all_differ_and_repeat(tmp_path: Path) -> None:
    same = tmp_path / "same.jsonl"
    same.write_text("\n".join(json.dumps({"q": f"say {i}", "a": "yes"}) for i in range(30)), encoding="utf-8")
    model = make_language_model(tmp_path / "lm")
    inputs = load_inputs(recipe_of(model, same), tmp_path, lambda uri: Path(uri))
    assert set(inputs.data.train.references) == {"yes"}


@pytest.fixture(scope="module")
def generator(lm: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Any:
    assert lm.source is not None
    folder = tmp_path_factory.mktemp("generator") / "torch"
    load_backend("torch").export(lm.source, folder, lm.data.validation.inputs[:2])
    return load_backend("torch").load(folder, threads=1)


def test_streams_add_up_and_stop_texts_never_show(generator: Any) -> None:
    whole = generator.answer("what is", Writing(24, ignore_end=True))
    pieces = list(generator.stream("what is", Writing(24, ignore_end=True)))
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    for stop in (whole[6:9], whole[3:4], whole[10:16]):
        found = "".join(generator.stream("what is", Writing(24, ignore_end=True, stop=(stop,))))
        assert found == whole[: whole.index(stop)]


def test_drawing_is_repeatable_by_seed_and_narrowed_by_top_p(generator: Any) -> None:
    def draw(seed: int, **how: Any) -> str:
        return str(generator.answer("what is", Writing(12, temperature=1.5, seed=seed, ignore_end=True, **how)))

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1
    assert draw(1, top_p=1e-6) == generator.answer("what is", Writing(12, ignore_end=True))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"beams": 3}, "Unknown params"),
    ],
)
def test_what_cannot_be_asked_for(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served.writing({"max_new_tokens": 8}, params)


def test_rows_that_can_be_served() -> None:
    chat = [{"role": "user", "content": "hi"}]
    rows = ["a", {"prompt": "b", "temperature": 0.5, "stop": ["x"], "n": 1, "stream": None}, {"messages": chat}]
    assert served.check_rows(rows, {}) == [("a", {}), ("b", {"temperature": 0.5, "stop": ["x"]}), (chat, {})]
    assert served.check_rows(chat, {}) == [(chat, {})]
    for row, message in (
        ("  ", "row 0 is an empty prompt"),
        (None, "row 0 has no prompt"),
        (3, "row 0 is a int"),
        ({"text": "a"}, "row 0 has the keys"),
        ({"messages": []}, "row 0 has no messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is no text"),
        ({"messages": [{"content": "x"}]}, "without a role"),
        ({"prompt": "a", "n": 2}, "asks for n=2, which isn't done here"),
        ({"prompt": "a", "stream": True}, "asks for stream=True"),
    ):
        with pytest.raises(ValueError, match=message):
            served.check_rows([row], {})
    with pytest.raises(ValueError, match="no rows"):
        served.check_rows([], {})


@pytest.mark.parametrize("form", ["llm/v1/chat", "llm/v1/completions"])
def test_a_model_answers_as_openai_does_when_it_is_logged_so(form: str, tmp_path: Path, store: Any) -> None:
    """Through MLflow's own signature and loading, with the request that its server hands on."""
    import mlflow

    from mlflow_slim import flavor

    inputs = load(tmp_path, generate={"max_new_tokens": 8, "eval_rows": 8, "serve_as": form})
    assert inputs.source is not None
    backend: Any = load_backend("torch")
    exported = backend.export(inputs.source, tmp_path / "out", inputs.data.validation.inputs[:2])
    flavor.save_model(exported, tmp_path / "saved")
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    assert model.metadata.metadata == {"task": form}
    chat = form == "llm/v1/chat"
    prompt = {"messages": [{"role": "user", "content": "the fox"}]} if chat else {"prompt": "the fox"}
    (found,) = model.predict({**prompt, "max_tokens": 5, "temperature": 0.0, "stop": ["zzz"]})
    assert found["object"] == ("chat.completion" if chat else "text_completion")
    (choice,) = found["choices"]
    text = choice["message"]["content"] if chat else choice["text"]
    plain = backend.load(exported.directory, threads=1)
    asked = prompt["messages"] if chat else prompt["prompt"]
    reply = plain.reply(asked, Writing(5))
    assert text == reply.text == plain.answer(asked, Writing(5))
    assert choice["finish_reason"] == ("length" if reply.cut else "stop")
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 5
    assert len(model.predict({**prompt, "max_tokens": 2, "n": 1, "stream": False})) == 1
    for name, value in (("n", 3), ("stream", True), ("frequency_penalty", 0.5) if chat else ("n", 2)):
        with pytest.raises(ValueError, match=f"asks for {name}="):
            model.predict({**prompt, name: value})


def test_written_texts_are_scored_as_the_papers_say() -> None:
    from mlflow_slim.measurement.text_quality import repetition, text_scores

    found = text_scores(["The cat sat.", "", "東京 の 川"], ["a cat sat", "word", "東京 の 山"])
    assert found["exact_match"].tolist() == [1, 0, 0]
    assert found["token_f1"][2] == pytest.approx(2 / 3)
    assert found["rouge_l"][0] == pytest.approx(2 / 3)
    assert found["rouge_l"][2] == pytest.approx(2 / 3)
    assert found["chrf"][0] > 0.5 > found["chrf"][1]
    assert repetition(["a b c d e", "a a a a a a"]) == pytest.approx(2 / 5)


def test_a_ratio_knows_its_rows() -> None:
    from mlflow_slim.measurement.stats import ratio_difference

    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(400):
        tokens = rng.integers(5, 40, size=40)
        before = -2.0 * tokens + rng.normal(size=40)
        gain = -0.05 * tokens + rng.normal(scale=0.1, size=40) * tokens
        found = ratio_difference(before, before + gain, tokens, confidence=0.90)
        misses += not found.lo <= -0.05 <= found.hi
    assert 20 <= misses <= 62  # a tenth, and three standard errors to each side


def test_differences_with_another_tokenizer_are_per_the_same_unit(lm: Inputs) -> None:
    assert lm.source is not None
    spec = {**lm.source.spec, "max_new_tokens": 0}
    places = np.full((4, spec["max_length"]), -1)
    zeros = np.zeros_like(places, dtype=bool)
    base = Answers(np.full(4, -20.0), np.full(4, 10), np.full(4, 30), places, zeros, ("",) * 4)
    coarse = replace(base, log_likelihood=np.full(4, -25.0), tokens=np.full(4, 5))
    found = TASK.difference("log_likelihood", base.pack(spec), coarse.pack(spec), np.array(["x"] * 4), spec, seed=0)
    assert found.value == pytest.approx(-0.5)


class TestOnnx:
    """Graphs of the builder, run by plain onnxruntime."""

    pytestmark = pytest.mark.usefixtures("builder")

    @pytest.fixture
    def builder(self) -> None:
        pytest.importorskip("onnxruntime_genai")

    @pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma"])
    def test_the_graph_writes_what_the_model_writes(self, kind: str, tmp_path: Path) -> None:
        inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", kind))
        assert inputs.source is not None
        rows = inputs.data.validation.inputs[:3]
        backends = {name: load_backend(name) for name in ("torch", "onnxruntime")}
        made: list[Any] = []
        for name, backend in backends.items():
            backend.export(inputs.source, tmp_path / name, rows)
            made.append(backend.load(tmp_path / name, threads=1))
        batch = made[0].encode(rows)
        assert (made[0].forward(batch) == made[1].forward(batch)).all()
        np.testing.assert_allclose(made[0].scores(rows), made[1].scores(rows), atol=1e-2)

    def test_a_cache_grows_and_keeps_what_it_holds(
        self, lm: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow_slim.runtime import decoders

        assert lm.source is not None
        rows = lm.data.validation.inputs[:2]
        load_backend("onnxruntime").export(lm.source, tmp_path / "onnx", rows)
        decoder: Any = load_backend("onnxruntime").load(tmp_path / "onnx", threads=1)._decoder
        ids = np.array([5, 9, 40, 7, 12, 60, 33, 8, 2, 4])
        wanted = decoder.step(ids, decoder.begin(10), keep=10)
        monkeypatch.setattr(decoders, "_ROOM", 3)
        cache = decoder.begin(10**9)
        assert cache.room == 3
        found = [decoder.step(ids[:2], cache, keep=2), decoder.step(ids[2:7], cache, keep=5)]
        decoder.crop(cache, 6)
        found += [decoder.step(ids[6:], cache, keep=4)]
        found[1] = found[1][:-1]
        np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-4)
        assert cache.length == 10 <= cache.room

    def test_an_architecture_that_the_builder_does_not_know_is_named(self, tmp_path: Path) -> None:
        inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", "gpt2"))
        assert inputs.source is not None
        with pytest.raises(ExportError, match=r"GPT2LMHeadModel.*export.backends=openvino or torch"):
            load_backend("onnxruntime").export(inputs.source, tmp_path / "onnx", inputs.data.validation.inputs[:2])
        assert not (tmp_path / "onnx").exists()

    def test_a_shape_that_the_kernels_refuse_is_an_export_that_fails(self, tmp_path: Path) -> None:
        shape = {"hidden_size": 72, "num_attention_heads": 4, "head_dim": 18}
        inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", **shape))
        assert inputs.source is not None
        with pytest.raises(ExportError, match=r"can't run the graph of LlamaForCausalLM.*other export.backends"):
            load_backend("onnxruntime").export(inputs.source, tmp_path / "onnx", inputs.data.validation.inputs[:2])

    @pytest.mark.parametrize("kind", ["llama", "mistral"])
    def test_codes_in_the_graph_are_the_weights_they_stand_for(self, kind: str, tmp_path: Path) -> None:
        """Against a torch model whose weights were rounded likewise; the graph's products are int8."""
        import copy

        import torch

        from mlflow_slim.gptq import nearest

        inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", kind))
        assert inputs.source is not None
        backend: Any = load_backend("onnxruntime")
        rows = inputs.data.validation.inputs
        exported = backend.export(inputs.source, tmp_path / "float", rows[:2])
        for bits, wide in ((8, frozenset()), (4, frozenset({"lm_head"}))):
            rounded = copy.deepcopy(inputs.source.model)
            with torch.no_grad():
                for name, module in rounded.named_modules():
                    if isinstance(module, torch.nn.Linear):
                        own = 8 if name in wide else bits
                        module.weight.copy_(nearest(module.weight, bits=own, block_size=32).weight())
                if kind == "mistral":  # its input embedding is one of its own
                    table = rounded.get_input_embeddings().weight
                    table.copy_(nearest(table, bits=8, block_size=32).weight())
            scheme = Scheme("weight_only", bits=bits, block_size=32, wide=wide)
            folder = tmp_path / f"q{bits}"
            backend.quantize(exported, inputs.source, folder, scheme, rows)
            found = unpack(backend.load(folder, threads=1).scores(rows), inputs.source.spec)
            wanted = unpack(
                TASK.outputs(rounded, inputs.source.processor, rows, inputs.source.spec), inputs.source.spec
            )
            np.testing.assert_allclose(found.log_likelihood, wanted.log_likelihood, rtol=0.01)
            before = (exported.directory / "model.onnx.data").stat().st_size
            assert (folder / "model.onnx.data").stat().st_size < before * (0.4 if bits == 8 else 0.35)

    def test_four_bits_widen_until_the_margin_holds(self, lm: Inputs, tmp_path: Path) -> None:
        from mlflow_slim.techniques.quantize_weight_only import QuantizeWeightOnly

        assert lm.source is not None
        context = context_of(lm, tmp_path, "onnxruntime")
        loose = QuantizeWeightOnly(bits=4, max_drop=0.9).apply(lm.source, context)
        assert "kept_in_8_bits" not in loose.lineage[-1].notes["onnxruntime"]
        strict = QuantizeWeightOnly(bits=4, max_drop=0.0).apply(
            lm.source, replace(context, workdir=tmp_path / "strict")
        )
        notes = strict.lineage[-1].notes
        held = notes["onnxruntime"].get("calibration_drop", 1) <= 0
        assert held or "caution" in notes

    @pytest.mark.parametrize("same", [True, False])
    def test_a_smaller_model_guesses_and_changes_no_token(self, lm: Inputs, same: bool, tmp_path: Path) -> None:
        """The model itself as its own assistant is always right; one with other tokens guesses through texts."""
        from mlflow_slim.techniques.speculate_assistant import SpeculateAssistant

        assert lm.source is not None
        helper = lm.source
        if not same:
            other = load(tmp_path, model=make_language_model(tmp_path / "other", seed=5)).source
            assert other is not None
            other.processor.add_tokens(["the quick"])
            other.model.resize_token_embeddings(len(other.processor))
            helper = other
        context = replace(context_of(lm, tmp_path, "torch", "onnxruntime"), load_model=lambda _: helper)
        fast = SpeculateAssistant(assistant="small", tokens=3).apply(lm.source, context)
        notes = fast.lineage[-1].notes
        assert notes["same_vocabulary"] == same
        for name in ("torch", "onnxruntime"):
            if same:
                assert notes[name]["acceptance_rate"] == 1
                assert notes[name]["tokens_per_pass"] > 2
            assert notes[name]["cost_of_a_guess"] > 0
            backend: Any = load_backend(name)
            plain, guessing = (
                backend.load(
                    backend.export(one, tmp_path / f"{name}-{kind}", lm.data.test.inputs[:2]).directory, threads=1
                )
                for kind, one in (("plain", lm.source), ("guessing", fast))
            )
            batch = plain.encode(lm.data.test.inputs)
            assert (plain.forward(batch) == guessing.forward(batch)).all()
        assert (tmp_path / "torch-guessing" / "assistant" / "slim.json").is_file()

    def test_guessing_follows_quantizing_and_writes_the_same(self, lm: Inputs, tmp_path: Path) -> None:
        from mlflow_slim.techniques.quantize_weight_only import QuantizeWeightOnly
        from mlflow_slim.techniques.speculate_lookup import SpeculateLookup

        assert lm.source is not None
        context = context_of(lm, tmp_path / "a", "onnxruntime")
        small = QuantizeWeightOnly(bits=8).apply(lm.source, context)
        fast = SpeculateLookup().apply(small, replace(context, workdir=tmp_path / "b"))
        backend: Any = load_backend("onnxruntime")
        plain, guessing = (
            backend.load(backend.export(one, tmp_path / name, []).directory, threads=1)
            for name, one in (("plain", small), ("guessing", fast))
        )
        batch = plain.encode(lm.data.test.inputs)
        assert (plain.forward(batch) == guessing.forward(batch)).all()
        assert 0 <= fast.lineage[-1].notes["onnxruntime"]["acceptance_rate"] <= 1
        assert bundle.read(tmp_path / "guessing").variant == "quantize.weight_only+speculate.lookup@onnxruntime"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
def test_a_compiled_model_writes_the_same_whatever_is_guessed(kind: str, tmp_path: Path) -> None:
    from mlflow_slim.techniques.compile_torch import CompileTorch

    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", kind))
    assert inputs.source is not None
    found = CompileTorch().apply(inputs.source, context_of(inputs, tmp_path, "torch"))
    notes = found.lineage[-1].notes
    assert (notes["graphs"], notes["graph_breaks"]) == (1, 0)
    assert notes["identical_prompts"] == notes["compared_prompts"] == 4
    bundle.set_engine(found.builds["torch"], {"lookup": {"tokens": 4, "ngram": 2}})
    backend: Any = load_backend("torch")
    compiled = backend.load(found.builds["torch"], threads=1)
    backend.export(inputs.source, tmp_path / "plain", inputs.data.test.inputs[:2])
    plain = backend.load(tmp_path / "plain", threads=1)
    prompts = [prompt for prompt, _ in inputs.data.test.inputs]
    assert [compiled.answer(p, Writing(12)) for p in prompts] == [plain.answer(p, Writing(12)) for p in prompts]
    assert compiled.answer(prompts[0], Writing(150)) == plain.answer(prompts[0], Writing(150))  # beyond its cache


def test_texts_written_in_several_threads_at_once_are_the_same(lm: Inputs, tmp_path: Path) -> None:
    """A server does that; a smaller model that guesses keeps what it has read of a text."""
    from concurrent.futures import ThreadPoolExecutor

    from mlflow_slim.techniques.speculate_assistant import SpeculateAssistant

    assert lm.source is not None
    context = replace(context_of(lm, tmp_path, "torch"), load_model=lambda _: lm.source)
    fast = SpeculateAssistant(assistant="small", tokens=3).apply(lm.source, context)
    backend: Any = load_backend("torch")
    model = backend.load(backend.export(fast, tmp_path / "out", []).directory, threads=1)
    prompts = [prompt for prompt, _ in lm.data.test.inputs]
    one_by_one = [model.answer(prompt, Writing(20)) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: model.answer(prompt, Writing(20)), prompts * 3)) == one_by_one * 3


@pytest.mark.parametrize("option", ["teacher", "student"])
def test_another_model_that_writes_nothing_is_refused_before_any_work(option: str, tmp_path: Path) -> None:
    from test_backends import tiny_source

    classifier = tmp_path / "classifier"
    other = tiny_source()
    other.model.save_pretrained(classifier)
    other.processor.save_pretrained(classifier)
    step = {"technique": "distill.generate", option: str(classifier)}
    with pytest.raises(ModelError, match=r"BertForSequenceClassification and no language model"):
        load(tmp_path, steps=[step])


def test_a_model_without_keys_and_values_is_refused(tmp_path: Path) -> None:
    import transformers

    folder = make_language_model(tmp_path / "lm")
    ends = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    config = transformers.MambaConfig(vocab_size=340, hidden_size=32, num_hidden_layers=1, **ends)
    transformers.MambaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="MambaForCausalLM keeps a running state"):
        load(tmp_path, model=folder)


def test_a_broken_gguf_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from mlflow_slim.model_source import resolve_model

    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelError, match=r"can't read .*broken.gguf"):
        resolve_model(str(tmp_path / "broken.gguf"), workdir=tmp_path)


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    """Written by gguf itself, float32, so that the very weights must come back."""
    gguf = pytest.importorskip("gguf")
    import transformers

    from mlflow_slim.model_source import resolve_model

    model = transformers.AutoModelForCausalLM.from_pretrained(str(make_language_model(tmp_path / "lm")))
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "self_attn.o_proj": "attn_output",
        "self_attn.v_proj": "attn_v",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(0x100 + i) for i in range(config.vocab_size)]
    letters[-1] = letters[1] + letters[2]
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges([f"{letters[1]} {letters[2]}"])
    writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        array = weight.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp keeps rotary halves side by side
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
                name = name.replace(f"self_attn.{part}", f"attn_{part[0]}")
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = resolve_model(str(tmp_path / "tiny.gguf"), workdir=tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(str(found.directory)).state_dict()
    for name, weight in model.state_dict().items():
        np.testing.assert_allclose(again[name].numpy(), weight.numpy(), atol=1e-6, err_msg=name)


def test_gptq_loses_less_of_the_answers_than_rounding() -> None:
    import torch

    from mlflow_slim.gptq import nearest, solve

    torch.manual_seed(0)
    given = torch.randn(800, 96) @ torch.randn(96, 96) * 0.3 + torch.randn(800, 96)
    weight = torch.randn(40, 96)
    lost = [
        float((given @ (weight - codes.weight()).T).square().mean())
        for codes in (
            nearest(weight, bits=4, block_size=32),
            solve(weight, given.T @ given, bits=4, block_size=32),
            nearest(weight, bits=8, block_size=32),
        )
    ]
    assert lost[2] < lost[1] < 0.7 * lost[0]


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-9])
def test_scales_are_halved_where_that_costs_nothing(size: float) -> None:
    import torch

    from mlflow_slim.gptq import nearest

    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)) * size
    codes = nearest(weight, bits=8, block_size=32)
    _, scales, _ = codes.packed()
    assert scales.dtype == (np.float16 if size > 1e-4 else np.float32)
    apart = (codes.weight() - weight).abs().amax() / codes.scales.amax()
    assert apart < 0.52, "nothing is cut off beyond the nearest code"


def test_silent_inputs_and_zero_rows_stay_finite() -> None:
    import torch

    from mlflow_slim.gptq import nearest, solve

    weight = torch.zeros(4, 32)
    weight[1] = torch.linspace(-1, 1, 32)
    moments = torch.zeros(32, 32)
    for codes in (solve(weight, moments, bits=4, block_size=16), nearest(weight, bits=4, block_size=16)):
        assert torch.isfinite(codes.weight()).all()
        assert (codes.weight()[0] == 0).all()


def test_guessing_is_refused_for_classifiers_and_silent_models(lm: Inputs) -> None:
    from mlflow_slim.techniques.speculate_lookup import SpeculateLookup

    assert lm.source is not None
    with pytest.raises(ModelError, match="models that write"):
        SpeculateLookup().check(replace(lm.source, task="text-classification"))
    with pytest.raises(ModelError, match="max_new_tokens"):
        SpeculateLookup().check(replace(lm.source, spec={**lm.source.spec, "max_new_tokens": 0}))


def test_techniques_of_encoders_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"steps\[0\] 'distill.hidden' isn't done for language models"):
        Recipe.load({"task": "text-generation", "steps": ["distill.hidden", "finetune.full"]})


def test_nothing_but_guessing_may_follow_quantizing() -> None:
    chain = [{"technique": "quantize.weight_only"}, {"technique": "speculate.lookup"}]
    exported = {"export": {"backends": ["onnxruntime"]}}
    assert len(Recipe.load({"steps": chain, **exported}).steps) == 2
    with pytest.raises(ConfigError, match="can't follow"):
        Recipe.load({"steps": [*chain, {"technique": "finetune.full"}][::2], **exported})


def test_fine_tuning_makes_the_right_texts_likelier(tmp_path: Path) -> None:
    from mlflow_slim.techniques.finetune_full import FinetuneFull
    from mlflow_slim.techniques.finetune_lora import FinetuneLora

    inputs = load(tmp_path)
    assert inputs.source is not None
    rows, right = inputs.data.test.inputs, inputs.data.test.references

    def likelihood(model: Any) -> float:
        outputs = TASK.outputs(model, inputs.source.processor, rows, inputs.source.spec)  # type: ignore[union-attr]
        return TASK.judge("log_likelihood", outputs, right, inputs.source.spec)  # type: ignore[union-attr]

    before = likelihood(inputs.source.model)
    for number, technique in enumerate(
        (
            FinetuneFull(epochs=2, learning_rate=3e-3, batch_size=8),
            FinetuneLora(epochs=2, learning_rate=1e-2, batch_size=8),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        tuned = technique.apply(inputs.source, context_of(inputs, folder))
        assert likelihood(tuned.model) > before + 0.5
        assert likelihood(inputs.source.model) == pytest.approx(before)


def test_epochs_are_chosen_by_what_scoring_alone_can_tell(tmp_path: Path) -> None:
    from mlflow_slim.techniques.finetune_full import FinetuneFull

    inputs = load(tmp_path)
    assert inputs.source is not None
    step = FinetuneFull(epochs=2, learning_rate=3e-3, batch_size=8)
    notes = step.apply(inputs.source, replace(context_of(inputs, tmp_path), metric="token_f1")).lineage[-1].notes
    assert notes["validation_metric"] == "log_likelihood"
    assert notes["validation"][1] > notes["validation"][0]
    assert notes["best_epoch"] == 2


def test_a_recipe_measures_tokens_and_logs_a_model_that_answers_strings(store: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    import mlflow
    import pandas as pd

    from mlflow_slim.pipeline import run

    model = make_language_model(tmp_path / "lm")
    steps = [{"technique": "quantize.weight_only", "bits": 8}]
    measure = {"timing_s": 4, "energy_s": 0, "fresh_starts": 0, "wait_s": 0, "concurrency": 2}
    exported = {"backends": ["onnxruntime"], "baseline": False}
    recipe = recipe_of(model, rows_file(tmp_path), steps=steps, export=exported, measure=measure, price_per_hour=0.1)
    outcome = run(recipe)
    last = outcome.reports[-1]
    for figure in (
        *("latency/ttft_p50_ms", "latency/tpot_p50_ms", "throughput/tokens_per_s", "speedup/decode"),
        *("throughput/concurrent_tokens_per_s", "speedup/concurrent", "quality/mean_kl"),
    ):
        assert last.metrics[figure] > 0, figure
    price = last.metrics["cost/usd_per_1m_samples"] / 8
    assert last.metrics["cost/usd_per_1m_tokens"] == pytest.approx(price)
    assert last.params["slim.measure.tokens.written_per_call"] == "8"
    assert "quality/rouge_l" in last.metrics
    assert store.client.get_run(outcome.points[-1].run_id).data.tags["slim.reload"] == "same"
    loaded = mlflow.pyfunc.load_model(outcome.points[-1].model_uri)
    texts = loaded.predict(["what is"], params={"max_new_tokens": 3})
    assert isinstance(texts, list)
    assert isinstance(texts[0], str)
    chat = pd.DataFrame({"messages": [[{"role": "user", "content": "what is"}]]})
    served_model: Any = loaded._model_impl
    assert served_model.predict(chat, {"max_new_tokens": 3}) == texts
