"""Language models that learn from language models: from probabilities token by token, and from texts."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import make_language_model
from pydantic import ValidationError
from test_text_generation import context_of, load

from mlflow_slim.answer_filters import Rules, repeated_share, why_not
from mlflow_slim.answers import AnswerStore, Budget, ask
from mlflow_slim.catalog import load_technique
from mlflow_slim.errors import ConfigError, DataError, ModelError
from mlflow_slim.inputs import Inputs
from mlflow_slim.interfaces import Context
from mlflow_slim.lessons import Teaching, make_lesson
from mlflow_slim.losses import divergence_of
from mlflow_slim.teachers import EndpointTeacher, LocalTeacher, Reply
from mlflow_slim.training import collate, training_rows

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load(tmp_path_factory.mktemp("lm"))


def logs(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_divergences_are_zero_only_for_the_same(kind: Any) -> None:
    same, other = logs(4, 7), logs(4, 7, seed=1)
    assert divergence_of(same, same, kind=kind).abs().max() < 1e-6
    assert divergence_of(same, other, kind=kind).min() > 1e-3


def test_divergences_are_the_formulas() -> None:
    student, teacher = logs(1, 5).double(), logs(1, 5, seed=1).double()
    q, p = student.exp(), teacher.exp()
    assert float(divergence_of(student, teacher)) == pytest.approx(float((p * (p / q).log()).sum()))
    assert float(divergence_of(student, teacher, kind="reverse_kl")) == pytest.approx(float((q * (q / p).log()).sum()))
    m = 0.3 * p + 0.7 * q
    by_hand = 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum()
    assert float(divergence_of(student, teacher, kind="jsd", beta=0.3)) == pytest.approx(float(by_hand))


@pytest.mark.parametrize("top_k", [400, 8])
def test_the_lesson_is_the_divergence_at_the_places_to_learn(lm: Inputs, top_k: int, tmp_path: Path) -> None:
    """Against plain logits of both models over the whole vocabulary; with few tokens kept it is a lower bound."""
    assert lm.source is not None
    teacher = load(tmp_path, model=make_language_model(tmp_path / "other", seed=3)).source
    assert teacher is not None
    context = context_of(lm, tmp_path)
    lesson = make_lesson(lm.source, teacher, context, Teaching(temperature=2.0, top_k=top_k))
    rows = training_rows(lm.source, context.data.train, context, lesson.columns)[:5]
    batch = collate(lm.source.processor, rows)
    extra = {name: batch.pop(name) for name in ("labels", "teacher_ids", "teacher_logs")}
    with torch.no_grad():
        ours, theirs = (one.model(**batch).logits for one in (lm.source, teacher))
        found = float(lesson.loss(lm.source.model, batch, ours, extra))
        at = extra["labels"][:, 1:] != -100
        q, p = ((part[:, :-1][at] / 2).log_softmax(-1) for part in (ours, theirs))
    wanted = 4 * float((p.exp() * (p - q)).sum(-1).mean())
    if top_k == 400:
        assert found == pytest.approx(wanted, rel=1e-3)
    else:
        assert 0 < found < wanted


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}, {"divergence": "reverse_kl", "on_policy": 1.0}])
def test_a_student_comes_nearer_to_its_teacher(lm: Inputs, options: dict[str, Any], tmp_path: Path) -> None:
    assert lm.source is not None
    step: Any = load_technique("distill.logits")(
        layers=1, epochs=3, alpha=1.0, learning_rate=3e-3, batch_size=8, **options
    )
    context = context_of(lm, tmp_path)
    found = step.apply(lm.source, context)
    losses = found.lineage[-1].notes["losses"]
    assert losses[-1] < losses[0]
    assert found.model.config.num_hidden_layers == 1


def test_another_vocabulary_is_refused_with_a_way_out(lm: Inputs, tmp_path: Path) -> None:
    other = load(tmp_path, model=make_language_model(tmp_path / "other")).source
    assert other is not None and lm.source is not None
    other.processor.add_tokens(["<|more|>"])
    with pytest.raises(ModelError, match=r"different vocabularies .*distill.generate"):
        make_lesson(other, lm.source, context_of(lm, tmp_path), Teaching())


def test_texts_that_are_cut_otherwise_are_refused(lm: Inputs, tmp_path: Path) -> None:
    assert lm.source is not None
    shorter = replace(lm.source, spec={**lm.source.spec, "max_length": 40})
    with pytest.raises(ModelError, match=r"takes 40 tokens and the teacher 96.*max_length=40"):
        make_lesson(shorter, lm.source, context_of(lm, tmp_path), Teaching())


def test_on_policy_is_for_models_that_write() -> None:
    from test_backends import tiny_source

    with pytest.raises(ConfigError, match="on_policy is for models that write"):
        load_technique("distill.logits")(on_policy=0.5).check(tiny_source("bert"))  # type: ignore[attr-defined]


def test_a_teacher_on_this_machine_writes_what_the_loop_writes(lm: Inputs, tmp_path: Path) -> None:
    from mlflow_slim.catalog import load_backend
    from mlflow_slim.runtime.generation import Writing

    assert lm.source is not None
    backend: Any = load_backend("torch")
    backend.export(lm.source, tmp_path / "lm", lm.data.validation.inputs[:2])
    model = backend.load(tmp_path / "lm", threads=1)
    prompts = [prompt for prompt, _ in lm.data.test.inputs] + ["the fox", "a"]
    teacher = LocalTeacher(lm.source, "itself", device="cpu", temperature=0, seed=0)
    replies = teacher.answer(prompts, max_new_tokens=9)
    assert [reply.text for reply in replies] == [model.answer(prompt, Writing(9)).strip() for prompt in prompts]
    assert all(0 < reply.new_tokens <= 9 for reply in replies)


class Scripted:
    """A teacher whose answers are known, and who counts."""

    name = "scripted"

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at = fail_at

    def answer(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Reply]:
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise ModelError("gone")
        self.asked += prompts
        return [Reply(f"answer to {prompt}", 10, max_new_tokens, False) for prompt in prompts]


def test_no_answer_is_asked_for_twice_even_after_a_failure(tmp_path: Path) -> None:
    prompts = [f"prompt {i % 90}" for i in range(100)]
    first = Scripted(fail_at=64)
    with pytest.raises(ModelError):
        ask(first, prompts, AnswerStore(tmp_path), Budget(), max_new_tokens=5, label="t")
    second = Scripted()
    found = ask(second, prompts, AnswerStore(tmp_path), Budget(1.0, 2.0), max_new_tokens=5, label="t")
    assert len(first.asked) == 64
    assert sorted(first.asked + second.asked) == sorted(set(prompts))
    assert [reply.text for reply in found.replies if reply] == [f"answer to {prompt}" for prompt in prompts]
    assert (found.read, found.written) == (900, 450)
    assert found.usd == pytest.approx((900 * 1 + 450 * 2) / 1e6)


def test_answers_stay_until_asked_for_and_while_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow_slim.answers import open_store
    from mlflow_slim.cache import VARIABLE
    from mlflow_slim.cli import main

    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    with open_store({"teacher": "x"}, tmp_path) as used:
        used.add(["a"], [Reply("b", 1, 1, False)])
        assert main(["cache", "gc", "--answers"]) == 0
        assert "0 removed" in capsys.readouterr().out
    assert main(["cache", "ls"]) == 0
    assert "answers of a teacher" in capsys.readouterr().out
    for options, removed in ((["--older-than", "1d", "--answers"], 0), ([], 0), (["--answers", "--dry-run"], 1)):
        assert main(["cache", "gc", *options]) == 0
        assert f"{removed} " in capsys.readouterr().out
        with open_store({"teacher": "x"}, tmp_path) as again:
            assert again.find("a") is not None
    assert main(["cache", "gc", "--answers"]) == 0
    with open_store({"teacher": "x"}, tmp_path) as again:
        assert again.find("a") is None


def test_a_damaged_shard_costs_its_answers_only(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(64)]
    ask(Scripted(), prompts, AnswerStore(tmp_path), Budget(), max_new_tokens=5, label="t")
    files = sorted(tmp_path.glob("*.parquet"))
    assert len(files) == 2
    files[0].write_bytes(b"PAR1 and nothing else")
    (tmp_path / ".new-left").write_bytes(b"half")
    again = Scripted()
    ask(again, prompts, AnswerStore(tmp_path), Budget(), max_new_tokens=5, label="t")
    assert sorted(again.asked) == sorted(prompts[:32])


def test_a_budget_ends_the_asking_near_its_limit(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(100)]
    teacher = Scripted()
    budget = Budget(100.0, 100.0, max_usd=0.03)  # 15 tokens an answer, 0.0015 USD: 20 answers
    found = ask(teacher, prompts, AnswerStore(tmp_path), budget, max_new_tokens=5, label="t")
    assert 20 <= len(teacher.asked) < 28
    assert sum(reply is None for reply in found.replies) == 100 - len(teacher.asked)


def test_filters_name_what_they_drop() -> None:
    long = "a b c d e f g h i j"
    texts = ["fine answer", "", long, "I'm sorry, but I can't help", "x y z x y z x y z", "fine answer", "Sorry state"]
    replies: list[Reply | None] = [Reply(text, 1, 1, False) for text in texts]
    replies += [Reply("half an", 1, 1, True), None]
    prompts = ["p0", "p1", "p2", "p3", "p4", "P0 ", "p6", "p7", "p8"]
    assert why_not(prompts, replies, Rules(max_words=9)) == [
        *("", "too short", "too long", "refusal", "repetitive", "duplicate", "", "cut off"),
        "not asked: the budget was spent",
    ]
    assert why_not(["p"], [Reply("I cannot say", 1, 1, True)], Rules(keep_cut=True, keep_refusals=True)) == [""]
    assert repeated_share("two words") == 0


def generate(source: Any, context: Context, **options: Any) -> Any:
    step: Any = load_technique("distill.generate")(epochs=1, batch_size=16, keep_cut=True, **options)
    return step.apply(source, context)


def test_a_student_learns_what_its_teacher_writes(lm: Inputs, tmp_path: Path) -> None:
    """Golden answers come back through the template; a test prompt in train never reaches the student."""
    assert lm.source is not None
    train = lm.data.train
    leaking = replace(train, inputs=[*train.inputs[:20], *((f" {p.upper()}", t) for p, t in lm.data.test.inputs)])
    data = replace(lm.data, train=leaking)
    context = replace(context_of(lm, tmp_path), data=data)
    found = generate(lm.source, context, mode="golden", max_repetition=1.0, sampling=1.0)
    notes = found.lineage[-1].notes
    assert notes["prompts"] == 20
    assert notes["prompts_taken_out_as_in_test_or_validation"] == len(lm.data.test)
    assert notes["answers_kept"] + sum(notes["answers_dropped"].values()) == 20
    assert found.lineage[-1].cost.teacher_tokens == notes["teacher_tokens_read"] + notes["teacher_tokens_written"] > 0
    assert notes["losses"]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_logs_are_learned_without_asking_anyone(lm: Inputs, train: str, tmp_path: Path) -> None:
    assert lm.source is not None
    found = generate(
        lm.source, context_of(lm, tmp_path), mode="logs", train=train, learning_rate=5e-3, rows=30, layers=1
    )
    notes = found.lineage[-1].notes
    assert (notes["prompts"], notes["answers_kept"]) == (30, 30)
    assert found.lineage[-1].cost is None
    assert found.model.config.num_hidden_layers == 1


def test_nothing_worth_learning_is_said(lm: Inputs, tmp_path: Path) -> None:
    assert lm.source is not None
    with pytest.raises(DataError, match=r"0 of 10 answers are worth learning \(10 too short\)"):
        generate(lm.source, context_of(lm, tmp_path), mode="logs", rows=10, min_words=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "https://host/v1"}, "go together"),
        ({"endpoint": "http://host/v1", "endpoint_model": "m"}, "unencrypted"),
        ({"endpoint": "https://user:secret@host/v1", "endpoint_model": "m"}, "key is read from the environment"),
        ({"endpoint": "file:///etc/passwd", "endpoint_model": "m"}, "no address"),
        ({"endpoint": "https://host/v1", "endpoint_model": "m", "teacher": "t"}, "Keep one"),
        ({"mode": "logs", "judge": True}, "nobody is asked"),
        ({"max_usd": 1.0}, "needs prices"),
        ({"usd_per_1m_read": 1.0}, "none is given"),
        ({"mode": "golden", "template": "{prompt}"}, "no {answer}"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load_technique("distill.generate")(**options)


def test_texts_alone_are_no_prompts(tmp_path: Path) -> None:
    inputs = load(tmp_path, label=None)
    assert inputs.source is not None
    with pytest.raises(ConfigError, match="texts alone"):
        load_technique("distill.generate")().check(inputs.source)  # type: ignore[attr-defined]


class Endpoint(BaseHTTPRequestHandler):
    """A server of chat completions that misbehaves as it is told."""

    plan: ClassVar[list[Any]] = []
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        status, answer = type(self).plan.pop(0) if type(self).plan else (200, None)
        text = body["messages"][0]["content"]
        good = {
            "choices": [{"message": {"role": "assistant", "content": f" re: {text}"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("Retry-After", "0")
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/steal")
        self.end_headers()
        self.wfile.write(json.dumps(good if answer is None else answer).encode())

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.plan, Endpoint.seen = [], []
    server: HTTPServer = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def remote(address: str, **options: Any) -> EndpointTeacher:
    plain = {"key_variable": "SLIM_TEST_KEY", "temperature": 0, "seed": 0, "concurrency": 3}
    return EndpointTeacher(address, "m", **{**plain, "requests_per_minute": None, "timeout_s": 10, **options})


def test_an_endpoint_answers_and_is_asked_again_when_busy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_TEST_KEY", "sk-secret")
    Endpoint.plan = [(429, {}), (503, {})]
    replies = remote(endpoint).answer(["a", "b", "c"], max_new_tokens=7)
    assert [reply.text for reply in replies] == ["re: a", "re: b", "re: c"]
    assert replies[0] == Reply("re: a", 3, 2, False)
    assert len(Endpoint.seen) == 5
    assert {(one["path"], one["key"], one["max_tokens"]) for one in Endpoint.seen} == {
        ("/v1/chat/completions", "Bearer sk-secret", 7)
    }


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((401, {}), "refuses the key .*SLIM_TEST_KEY isn't set"),
        ((404, {"error": "no such model"}), "HTTP 404.*no such model"),
        ((302, {}), "HTTP 302"),
        ((200, {"choices": []}), "something else than a chat completion"),
        ((200, [1]), "something else than a chat completion"),
    ],
)
def test_an_endpoint_that_refuses_is_quoted(endpoint: str, step: Any, message: str) -> None:
    Endpoint.plan = [step]
    with pytest.raises(ModelError, match=message):
        remote(endpoint, concurrency=1).answer(["a"], max_new_tokens=7)


def test_a_key_is_never_in_a_message(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_TEST_KEY", "sk-secret")
    Endpoint.plan = [(401, {})]
    with pytest.raises(ModelError) as caught:
        remote(endpoint).answer(["a"], max_new_tokens=7)
    assert "sk-secret" not in str(caught.value)


def test_an_endpoint_that_is_not_there_is_named() -> None:
    teacher = remote("http://127.0.0.1:9/v1")
    teacher._session.get_adapter("http://").max_retries.total = 0  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"127.0.0.1:9/v1 can't be asked: .*refused"):
        teacher.answer(["a"], max_new_tokens=7)


def test_distilling_from_an_endpoint_counts_tokens_and_money(lm: Inputs, endpoint: str, tmp_path: Path) -> None:
    assert lm.source is not None
    options = {"endpoint": endpoint, "endpoint_model": "m", "usd_per_1m_read": 1e6, "usd_per_1m_written": 2e6}
    found = generate(lm.source, context_of(lm, tmp_path), rows=12, **options)
    record = found.lineage[-1]
    assert (record.notes["answers_kept"], record.notes["teacher_usd"]) == (12, 12 * (3 + 4))
    assert record.cost.usd == 84
    assert "endpoint" in record.notes["caution"]


def test_an_endpoint_that_counts_no_tokens_can_have_no_limit_of_money(
    lm: Inputs, endpoint: str, tmp_path: Path
) -> None:
    assert lm.source is not None
    Endpoint.plan = [(200, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})] * 5
    options = {"endpoint": endpoint, "endpoint_model": "m", "usd_per_1m_read": 1, "usd_per_1m_written": 2}
    with pytest.raises(ModelError, match="doesn't say how many tokens it used"):
        generate(lm.source, context_of(lm, tmp_path), rows=20, max_usd=1.0, **options)


def test_a_judge_takes_out_what_it_finds_bad(lm: Inputs, endpoint: str, tmp_path: Path) -> None:
    assert lm.source is not None

    def verdict(text: str) -> Any:
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return (200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage})

    Endpoint.plan = [*[(200, None)] * 4, verdict("Yes."), verdict("no"), verdict("**Yes**"), verdict("maybe")]
    options = {"endpoint": endpoint, "endpoint_model": "m", "judge": True, "concurrency": 1}
    found = generate(lm.source, context_of(lm, tmp_path), rows=4, **options)
    assert found.lineage[-1].notes["answers_kept"] == 2
    assert found.lineage[-1].notes["answers_dropped"] == {"judged bad": 2}


def test_answers_far_from_the_right_one_are_not_learned(lm: Inputs, endpoint: str, tmp_path: Path) -> None:
    """The server repeats its prompt, in which the right answer stands: as far from it as the prompt is long."""
    assert lm.source is not None
    options = {"endpoint": endpoint, "endpoint_model": "m", "mode": "golden", "max_repetition": 1.0}
    near = generate(lm.source, context_of(lm, tmp_path / "a"), rows=6, **options)
    assert near.lineage[-1].notes["answers_kept"] == 6
    with pytest.raises(DataError, match="6 far from the right answer"):
        generate(lm.source, context_of(lm, tmp_path / "b"), rows=6, min_f1=0.99, **options)


@pytest.mark.slow
def test_a_real_server_gives_what_the_model_writes_here(tmp_path: Path) -> None:
    """`transformers serve`, the server that comes with transformers, on loopback."""
    pytest.importorskip("openai")
    inputs = load(tmp_path, model=make_language_model(tmp_path / "lm", seed=2))
    assert inputs.source is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        prompts = [f"what is river {i}" for i in range(6)]
        teacher = remote(f"http://127.0.0.1:{port}/v1", timeout_s=60)
        teacher._asked["model"] = str(tmp_path / "lm")
        there = teacher.answer(prompts, max_new_tokens=12)
        here = LocalTeacher(inputs.source, "here", device="cpu", temperature=0, seed=0).answer(
            prompts, max_new_tokens=12
        )
        assert [reply.text for reply in there] == [reply.text for reply in here]
        assert [reply.prompt_tokens for reply in there] == [reply.prompt_tokens for reply in here]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_rows_are_stacked_with_what_belongs_to_each_token() -> None:
    from mlflow_slim.training import pad_behind

    found = pad_behind([np.ones((2, 3)), np.ones((1, 3))], -100)
    assert found.shape == (2, 2, 3)
    assert (found[1, 1] == -100).all()
