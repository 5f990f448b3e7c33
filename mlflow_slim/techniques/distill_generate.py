"""``distill.generate``: a student learns from what a teacher writes.

The teacher may be any model that writes, of any vocabulary: one on this machine or one behind an OpenAI-compatible
endpoint. Three ways, as hosted distillation services offer them: ``prompts`` (the teacher answers), ``golden`` (it
answers knowing the right answer), ``logs`` (the answers in the data are learned; nobody is asked). Kim and Rush 2016,
arXiv:1606.07947, call learning from a teacher's texts sequence-level distillation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..answer_filters import Rules, why_not
from ..answers import Asked, Budget, ask, open_store
from ..artifact import OptimizationCost, OptimizedModel, StepRecord
from ..cached_steps import model_digest
from ..depth import LayerMap
from ..errors import ConfigError, DataError
from ..interfaces import Context, Split
from ..learning import learn_labels
from ..lora import Adapters, learn_adapters
from ..measurement.text_quality import token_f1
from ..runtime.prompts import shown
from ..student import check_student, make_student
from ..teachers import EndpointTeacher, LocalTeacher, Prompt, Reply, Teacher, check_endpoint
from ..training import FitOptions

__all__ = ["DistillGenerate"]

_GOLDEN = "Question: {prompt}\nAnswer: {answer}\n\nWrite only the answer to the question."
_JUDGE = "Question: {prompt}\nAnswer: {answer}\n\nIs this a good answer to the question? Reply with yes or no."
_JUDGE_TOKENS = 4
_FEWEST = 2


class DistillGenerate(BaseModel):
    """Asks a teacher the training prompts, sorts out bad answers and trains the student on the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "distill.generate"
    generates: ClassVar[bool] = True

    mode: Literal["prompts", "golden", "logs"] = Field(
        "prompts",
        description="prompts: the teacher answers; golden: it is shown the right answer and puts it in its own words; "
        "logs: the answers in the data are a teacher's already, and nobody is asked.",
    )
    teacher: str | None = Field(
        None, description="A model on this machine (folder, hub id, URI); default: the model that comes into the step."
    )
    endpoint: str | None = Field(
        None, description="Address of an OpenAI-compatible API instead, such as https://host/v1."
    )
    endpoint_model: str | None = Field(None, description="What the endpoint calls the model.")
    key_variable: str = Field(
        "OPENAI_API_KEY", pattern=r"^\w+$", description="Environment variable that holds the endpoint's key."
    )
    concurrency: int = Field(4, ge=1, le=256, description="Requests to the endpoint at a time.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most requests to the endpoint in a minute.")
    timeout_s: float = Field(120.0, gt=0, le=3600, description="Longest wait for the endpoint's answer, seconds.")
    usd_per_1m_read: float | None = Field(None, ge=0, description="Price of a million tokens of prompts, USD.")
    usd_per_1m_written: float | None = Field(None, ge=0, description="Price of a million tokens of answers, USD.")
    max_usd: float | None = Field(None, gt=0, description="Ask no further once so much is spent, USD.")
    template: str | None = Field(
        None, description="What the teacher is sent, with {prompt} and, in mode golden, {answer} in it."
    )
    rows: int | None = Field(
        None, ge=_FEWEST, description="Training rows to use, at most, at even steps; default: all."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=100_000, description="Most tokens of the teacher's answer; default: generate.max_new_tokens."
    )
    sampling: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Temperature of the teacher: 0 takes the likeliest token, above tokens are drawn.",
    )
    min_words: int = Field(1, ge=1, description="Fewest words of an answer worth learning.")
    max_words: int | None = Field(None, ge=1, description="Most words of an answer worth learning.")
    keep_cut: bool = Field(False, description="Keep answers that the limit of tokens ended.")
    keep_refusals: bool = Field(False, description="Keep answers that begin as refusals do (in English).")
    max_repetition: float = Field(
        0.3, ge=0, le=1, description="Largest share of an answer's three-word runs that stood in it before."
    )
    min_f1: float = Field(
        0.0, ge=0, le=1, description="Least token F1 of an answer against the right one; mode golden only."
    )
    judge: bool = Field(False, description="Ask the teacher whether each answer is good, and keep those that are.")
    student: str | None = Field(
        None, description="Another model as the student (folder, hub id, URI); default: the model of the step."
    )
    layers: int | tuple[int, ...] | None = Field(
        None, description="How many layers of the step's model the student keeps, or which; default: all."
    )
    layer_map: LayerMap = Field("spread", description="Which layers when a number is given.")
    train: Literal["full", "lora"] = Field("full", description="Train all weights, or adapters that are then merged.")
    rank: int = Field(8, ge=1, le=1024, description="Rank of each adapter; lora only.")
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the answers.")
    learning_rate: float = Field(
        5e-5, gt=0, lt=1, description="Peak learning rate of AdamW; adapters take a higher one."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Rows per training step.")
    weight_decay: float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                return check_endpoint(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> DistillGenerate:
        if self.endpoint is not None and self.teacher is not None:
            raise ValueError("teacher and endpoint are both given. Keep one of them.")
        if (self.endpoint is None) != (self.endpoint_model is None):
            raise ValueError("endpoint and endpoint_model go together: write both, or neither.")
        if self.mode == "logs" and (self.endpoint or self.teacher or self.judge):
            raise ValueError("mode is logs, in which nobody is asked. Leave teacher, endpoint and judge out.")
        prices = (self.usd_per_1m_read, self.usd_per_1m_written)
        if self.max_usd is not None and None in prices:
            raise ValueError("max_usd needs prices. Write usd_per_1m_read and usd_per_1m_written.")
        if any(price is not None for price in prices) and self.endpoint is None:
            raise ValueError("Prices are of an endpoint, and none is given. Leave them out, or write endpoint.")
        wanted = ["{prompt}", *(["{answer}"] if self.mode == "golden" else [])]
        if self.template is not None and (lacking := [part for part in wanted if part not in self.template]):
            raise ValueError(f"template has no {' and no '.join(lacking)} in it.")
        return self

    def check(self, source: OptimizedModel) -> None:
        """Raises when the rows aren't prompts with answers, or a student can't be made from ``source``."""
        if not source.spec["prompted"]:
            raise ConfigError(
                "distill.generate needs prompts and right answers (to measure by), and the rows are texts alone. "
                "Write label=<column>."
            )
        if not int(self.max_new_tokens or source.spec["max_new_tokens"]):
            raise ConfigError("distill.generate needs answers. Write generate.max_new_tokens of 1 or more.")
        if self.layers is not None:
            check_student(source, student=self.student, layers=self.layers, layer_map=self.layer_map)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The student, trained on the answers.

        Raises:
            ConfigError: The rows aren't prompts with answers.
            DataError: Too few answers are worth learning.
            ModelError: The endpoint can't be asked, or the student can't be made or loaded.
            TrainingDiverged: The loss became NaN or infinite.
        """
        self.check(source)
        prompts, golden, leaked = self._rows(context)
        answers, reasons, spent, notes = self._answers(prompts, golden, source, context)
        kept = [row for row, reason in enumerate(reasons) if not reason]
        counts = Counter(reason for reason in reasons if reason)
        if len(kept) < _FEWEST:
            raise DataError(
                f"{len(kept)} of {len(prompts)} answers are worth learning ({_in_words(counts)}). Ask a better "
                "teacher, raise max_new_tokens, or loosen the rules."
            )
        student, made = self._student(source, context)
        pairs = [(prompts[row], answers[row]) for row in kept]
        taught = replace(context, data=replace(context.data, train=_split(pairs, context.data.train)))
        options = FitOptions(self.epochs, self.learning_rate, self.batch_size, self.weight_decay)
        if self.train == "lora":
            model, learned = learn_adapters(
                student, taught, options, Adapters(rank=self.rank, alpha=2 * self.rank), label=self.name
            )
        else:
            learned = learn_labels(student, taught, options, label=self.name).notes()
            model = student.model
        notes |= {
            "prompts": len(prompts),
            "answers_kept": len(kept),
            "answers_dropped": dict(counts),
            "prompts_taken_out_as_in_test_or_validation": leaked,
        }
        cost = OptimizationCost(0.0, usd=spent.usd, teacher_tokens=spent.read + spent.written) if spent else None
        record = StepRecord(self.name, self.model_dump(mode="json"), {**notes, **made, **learned}, cost)
        return source.after(record, model, processor=student.processor, spec=student.spec)

    def _rows(self, context: Context) -> tuple[list[Prompt], list[str], int]:
        """Prompts and right answers to use, and how many prompts were left out as ones that are measured with."""
        data = context.data
        measured = {_plain(prompt) for split in (data.validation, data.test) for prompt, _ in split.inputs}
        rows = [(prompt, text) for prompt, text in data.train.inputs if _plain(prompt) not in measured]
        leaked = len(data.train) - len(rows)
        if self.rows is not None and len(rows) > self.rows:
            rows = [rows[at * len(rows) // self.rows] for at in range(self.rows)]
        if len(rows) < _FEWEST:
            raise DataError("Every training prompt is also in validation or test, so nothing is left to learn from.")
        return [prompt for prompt, _ in rows], [text for _, text in rows], leaked

    def _answers(
        self, prompts: Sequence[Prompt], golden: Sequence[str], source: OptimizedModel, context: Context
    ) -> tuple[list[str], list[str], Asked | None, dict[str, Any]]:
        """Answers, for each why it isn't worth learning, what they cost, and what to note."""
        rules = Rules(self.min_words, self.max_words, self.keep_cut, self.keep_refusals, self.max_repetition)
        if self.mode == "logs":
            logged = [Reply(text, -1, -1, False) for text in golden]
            return list(golden), why_not(prompts, logged, rules), None, {"teacher": "as logged in the data"}
        teacher, settings = self._teacher(source, context)
        budget = Budget(self.usd_per_1m_read or 0.0, self.usd_per_1m_written or 0.0, self.max_usd)
        longest = int(self.max_new_tokens or source.spec["max_new_tokens"])
        template = self.template or (_GOLDEN if self.mode == "golden" else "{prompt}")
        asked = [_fill(template, prompt, answer) for prompt, answer in zip(prompts, golden, strict=True)]
        with open_store({**settings, "max_new_tokens": longest}, context.workdir) as store:
            found = ask(teacher, asked, store, budget, max_new_tokens=longest, label=self.name)
        reasons = why_not(prompts, found.replies, rules)
        answers = [reply.text if reply is not None else "" for reply in found.replies]
        if self.mode == "golden":
            for row, reason in enumerate(reasons):
                if not reason and token_f1(answers[row], golden[row]) < self.min_f1:
                    reasons[row] = "far from the right answer"
        if self.judge:
            rows = [row for row, reason in enumerate(reasons) if not reason]
            questions = [_fill(_JUDGE, prompts[row], answers[row]) for row in rows]
            left = None if budget.max_usd is None else max(0.0, budget.max_usd - found.usd)
            with open_store({**settings, "max_new_tokens": _JUDGE_TOKENS}, context.workdir) as store:
                verdicts = ask(
                    teacher,
                    questions,
                    store,
                    replace(budget, max_usd=left),
                    max_new_tokens=_JUDGE_TOKENS,
                    label=f"{self.name} (judging)",
                )
            for row, verdict in zip(rows, verdicts.replies, strict=True):
                if verdict is None or not verdict.text.lower().lstrip("*\"' ").startswith("yes"):
                    reasons[row] = "judged bad"
            found = replace(
                found,
                reused=found.reused + verdicts.reused,
                read=found.read + verdicts.read,
                written=found.written + verdicts.written,
                usd=found.usd + verdicts.usd,
            )
        notes: dict[str, Any] = {
            "teacher": teacher.name,
            "teacher_tokens_read": found.read,
            "teacher_tokens_written": found.written,
            "teacher_usd": round(found.usd, 6),
            "answers_from_disk": found.reused,
        }
        cautions = []
        if self.endpoint is not None:
            cautions.append("what the endpoint's machines used isn't in the energy of this step")
        elif found.reused:
            cautions.append(f"{found.reused} answers were written before, and their energy isn't in that of this step")
        if cautions:
            notes["caution"] = f"distill.generate: {' and '.join(cautions)}."
        return answers, reasons, found, notes

    def _teacher(self, source: OptimizedModel, context: Context) -> tuple[Teacher, dict[str, object]]:
        """The teacher, and what its answers depend on beside prompt and length."""
        drawn: dict[str, object] = {"temperature": self.sampling, "seed": context.seed}
        if self.endpoint is not None:
            assert self.endpoint_model is not None, "the two go together"
            remote = EndpointTeacher(
                self.endpoint,
                self.endpoint_model,
                key_variable=self.key_variable,
                temperature=self.sampling,
                seed=context.seed,
                concurrency=self.concurrency,
                requests_per_minute=self.requests_per_minute,
                timeout_s=self.timeout_s,
            )
            return remote, {**drawn, "teacher": remote.name}
        model = source if self.teacher is None else context.load_model(self.teacher)
        local = LocalTeacher(
            model,
            self.teacher or "the model itself",
            device=context.device,
            temperature=self.sampling,
            seed=context.seed,
        )
        return local, {**drawn, "teacher": model_digest(model)}

    def _student(self, source: OptimizedModel, context: Context) -> tuple[OptimizedModel, dict[str, Any]]:
        import copy

        if self.student is None and self.layers is None:
            return replace(source, model=copy.deepcopy(source.model)), {}
        student, made = make_student(
            source, context, student=self.student, layers=self.layers, layer_map=self.layer_map
        )
        return student, dict(made)


def _fill(template: str, prompt: Prompt, answer: str) -> Prompt:
    """Both put in at once: a prompt may have ``{answer}`` in it. A chat stays one where nothing is put around it."""
    if template == "{prompt}":
        return prompt
    parts = template.split("{prompt}")
    return shown(prompt).join(part.replace("{answer}", answer) for part in parts)


def _plain(prompt: Prompt) -> str:
    return " ".join(shown(prompt).lower().split())


def _split(pairs: Sequence[tuple[Prompt, str]], old: Split) -> Split:
    """Training rows with the teacher's answers; the frame is that of the rows as they were given."""
    import hashlib

    digest = hashlib.sha256(repr(list(pairs)).encode()).hexdigest()
    return Split(old.name, list(pairs), np.array([text for _, text in pairs]), old.frame, digest)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "all were asked"
