"""Text generation: a decoder model that writes on from a prompt, judged by how likely the right text is to it.

A row is a prompt and the text that should follow, or a text alone. The headline is the log-likelihood of the right
texts in nats a token: a drop of 0.01 is a perplexity 1 % higher. What the models write themselves is compared with
the right texts, too, and with what the original writes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import OptimizedModel
from ..chat import prompt_file
from ..errors import DataError, MissingDependency, ModelError, first_line
from ..interfaces import Changes, Split, TaskData
from ..runtime.prompts import shown
from ..task_defaults import TaskDefaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..data import Tables
    from ..data.tables import InputKind, LabelKind
    from ..measurement.stats import Interval
    from ..runtime.generation import Answers

__all__ = ["TASK", "TextGeneration"]

_MAX_LENGTH = 512
"""Tokens of prompt and text where the user says nothing: far below what most models take, and what CPUs can do."""
_PLACEHOLDER = "{text}"
_SLICE_ROWS = 15
"""Smaller parts of the rows show chance."""
_TEXT_METRICS = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}


class TextGeneration(TaskDefaults):
    """The task ``text-generation``: prompts and right texts, or texts alone."""

    name = "text-generation"
    library_class = "AutoModelForCausalLM"
    labels: LabelKind = "texts"
    inputs: InputKind = "texts"
    check_rows = 4

    def make_data(
        self,
        tables: Tables,
        *,
        config: Mapping[str, Any] | None = None,  # noqa: ARG002 - as of every task
        spec: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TaskData:
        """Rows as splits of ``(prompt, text)``; the prompt is empty where there is no column of right texts.

        Args:
            tables: What `mlflow_slim.data.read_tables` gave.
            config: Not looked at.
            spec: Of a model that is exported already: how it is asked stays as it is.
            options: The recipe's section ``generate``.

        Raises:
            DataError: The template of prompts has no place for the text.
            MissingDependency: What scores written texts isn't installed.
        """
        asked = {"max_new_tokens": 32, **(options or {})}
        chats = bool(tables.report.get("chats"))
        template, prompted = asked.get("prompt"), chats or "label" in tables.report["columns"]
        if chats and template is not None:
            raise DataError("generate.prompt is for texts, and the rows are chats. Leave it out.")
        if template is not None and _PLACEHOLDER not in template:
            raise DataError(f"generate.prompt has no {_PLACEHOLDER} in it: {template!r:.80}. Say where the text goes.")
        if prompted and asked["max_new_tokens"]:
            _check_text_metrics()
        rows = {"train": asked.get("train_rows")}
        splits = {
            name: _split(
                name, _thin(frame, rows.get(name, asked.get("eval_rows"))), template, prompted=prompted, chats=chats
            )
            for name, frame in (("train", tables.train), ("validation", tables.validation), ("test", tables.test))
        }
        own = {
            "pair": True,
            "prompted": prompted,
            "chat": asked.get("chat"),
            "max_new_tokens": asked["max_new_tokens"],
            "serve_as": asked.get("serve_as", "text"),
        }
        if not prompted:
            own["chat"] = False  # a text alone is nobody's message
        if spec is not None:
            own |= {key: spec[key] for key in ("chat", "max_new_tokens", "serve_as") if key in spec}
        return TaskData(tables.name, tables.source, spec=own, report=tables.report, **splits)

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:  # noqa: ARG002
        """The language model in a local folder, as float32, from safetensors only, without code of its own.

        Raises:
            ModelError: transformers can't load it, weights are missing, or it can't take ``max_length`` tokens.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ..runtime.torch_engine import quiet_transformers

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(
                    str(directory), local_files_only=True, trust_remote_code=False, use_fast=True
                )
                auto: Any = AutoModelForCausalLM  # its types are of another call
                model, info = auto.from_pretrained(
                    str(directory),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"transformers can't load {str(directory)!r} for {self.name}: {first_line(error)} "
                "Give a folder or hub id of a decoder model (Llama, Qwen, GPT-2 and the like) saved by transformers."
            ) from error
        if lacking := sorted(map(str, info["missing_keys"])):
            raise ModelError(
                f"{len(lacking)} weights of the model in {str(directory)!r} are missing, {lacking[0]} first. They "
                "would be random. It may be no language model, or was copied in part: give another, or fetch it again."
            )
        if not _keeps_tokens(model):
            raise ModelError(
                f"{type(model).__name__} keeps a running state in place of keys and values of each token, from which "
                "tokens can't be taken out again. Give a model with attention in all layers."
            )
        limit = getattr(model.config, "max_position_embeddings", None)
        if max_length is not None and limit is not None and max_length > limit:
            raise ModelError(
                f"max_length is {max_length}, but this model takes {limit} tokens at most. Lower it, or leave it out."
            )
        length = max_length or min(limit or _MAX_LENGTH, _MAX_LENGTH)
        new = int(data.spec["max_new_tokens"])
        if new >= length:
            raise ModelError(
                f"generate.max_new_tokens is {new} and max_length {length}: no room is left for a prompt. "
                "Raise max_length, or write fewer tokens."
            )
        chat = data.spec["chat"]
        if chat and not tokenizer.chat_template:
            raise ModelError("generate.chat is true, and the model has no chat template. Leave it out.")
        if data.spec["serve_as"] == "llm/v1/chat" and not tokenizer.chat_template:
            raise ModelError(
                "generate.serve_as is llm/v1/chat, and the model has no chat template. Write llm/v1/completions."
            )
        spec = {
            **data.spec,
            "chat": bool(tokenizer.chat_template) if chat is None else bool(chat),
            "max_length": length,
        }
        tokenizer.padding_side = "right"  # as labels are padded
        if tokenizer.pad_token_id is None:  # rows of several lengths are padded with it and never look at it
            tokenizer.pad_token = tokenizer.eos_token
        return OptimizedModel(model.eval(), tokenizer, self.name, spec, source=str(directory))

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Tokens of prompt, text and end, with ``labels`` that are -100 where nothing is to be learned: the prompt."""
        prompts = prompt_file(processor, spec)
        rows = []
        for prompt, text in inputs:
            before = prompts.prompt(prompt)
            after = [*prompts.continuation(text)[0], processor.eos_token_id]
            after = [token for token in after if token is not None][: spec["max_length"] - bool(before)]
            room = spec["max_length"] - len(after)
            before = before[-room:] if room else []
            ids = [*before, *after]
            rows.append(
                {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(before) + list(after)}
            )
        return rows

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:  # noqa: ARG002 - as of every task
        """Mean cross entropy of the next token where there is one to learn; ``(batch, tokens, vocabulary)`` logits."""
        import torch.nn.functional as functional

        logits, labels = outputs[:, :-1], references[:, 1:]
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> np.ndarray:
        """Packed `Answers` of a model in memory that scores and writes nothing."""
        import torch

        from ..runtime.bundle import Bundle
        from ..runtime.decoders import TorchDecoder
        from ..runtime.generation import TextGenerator

        bundle = Bundle(Path(), "torch", self.name, spec, {}, {})
        decoder = TorchDecoder(model, threads=torch.get_num_threads())
        scorer = TextGenerator(bundle, prompt_file(processor, spec), decoder, torch.get_num_threads())
        return scorer.scores(inputs)

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """Every quality metric by name; those of written texts only where there are right ones and any were written.

        Of the right texts: ``log_likelihood`` (nats a token, higher is better), ``perplexity`` (its exponential, a
        token), ``bits_per_byte`` (whatever the tokenizer), ``token_accuracy`` (tokens that were the likeliest). Of
        the written ones: ``exact_match``, ``token_f1``, ``rouge_l``, ``chrf``, each 0 to 1, and ``repetition``.

        Raises:
            DataError: No row has a text of which a token can be scored.
        """
        from ..measurement.text_quality import repetition, text_scores

        found = _answers(outputs, spec)
        tokens, size = int(found.tokens.sum()), int(found.bytes.sum())
        if not tokens:
            raise DataError("No row has a text with a token to score. Give longer texts.")
        mean = float(found.log_likelihood.sum()) / tokens
        scores = {
            "log_likelihood": mean,
            "perplexity": math.exp(min(-mean, 700.0)),
            "bits_per_byte": -float(found.log_likelihood.sum()) / math.log(2) / size,
            "token_accuracy": float(found.right.sum()) / tokens,
        }
        if _writes(spec):
            scores |= {name: float(values.mean()) for name, values in text_scores(found.texts, references).items()}
            scores["repetition"] = repetition(found.texts)
        return scores

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG002
        """The metric to judge by, and why."""
        return "log_likelihood", "a language model is judged by how likely the right texts are to it"

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that can be the headline."""
        of_texts = ("exact_match", "token_f1", "rouge_l", "chrf") if _writes(spec) else ()
        return ("log_likelihood", "token_accuracy", *of_texts)

    def training_metric(self, metric: str) -> str:
        """Of written texts the log-likelihood of the right ones: writing takes many times longer than scoring."""
        return metric if metric == "token_accuracy" else "log_likelihood"

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of them."""
        values, weights = self._per_row(metric, _answers(outputs, spec), references)
        return float(values.sum() / weights.sum())

    def difference(
        self,
        metric: str,
        baseline: np.ndarray,
        candidate: np.ndarray,
        references: np.ndarray,
        spec: Mapping[str, Any],
        *,
        seed: int,  # noqa: ARG002 - nothing is drawn
    ) -> Interval:
        """Candidate less baseline with a 90 % interval; rows are what was sampled, not tokens.

        With another tokenizer the candidate's log-likelihood of the same texts is shared out over the baseline's
        tokens, so that both are per the same unit.
        """
        from ..measurement.stats import ratio_difference

        before, weights = self._per_row(metric, _answers(baseline, spec), references)
        after, _ = self._per_row(metric, _answers(candidate, spec), references)
        return ratio_difference(before, after, weights, confidence=0.90)

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:
        """Share of scored places at which both hold the same token for the likeliest."""
        before, after = _answers(baseline, spec), _answers(candidate, spec)
        both = (before.top >= 0) & (after.top >= 0)
        return float((before.top[both] == after.top[both]).mean()) if both.any() else 1.0

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """Agreement and flips token by token, texts that came out otherwise, and the rows that lost most."""
        import numpy as np

        from ..measurement.fidelity import ratio_slices, row_slices, worst_of

        before, after = _answers(baseline, spec), _answers(candidate, spec)
        tags: dict[str, str] = {}
        metrics: dict[str, float] = {}
        places = max(1, int(before.tokens.sum()))
        if (before.tokens == after.tokens).all():
            metrics = {
                "agreement": self.agreement(baseline, candidate, spec),
                "negative_flips": float((before.right & ~after.right).sum()) / places,
                "positive_flips": float((~before.right & after.right).sum()) / places,
            }
        else:
            why = "the models have different tokenizers"
            tags.update({f"slim.absent.quality/{n}": why for n in ("agreement", "negative_flips", "positive_flips")})
        asked = [bool(prompt) for prompt, _ in split.inputs]
        if _writes(spec) and any(asked):
            same = [one == other for one, other, counts in zip(before.texts, after.texts, asked, strict=True) if counts]
            metrics["same_text"] = float(np.mean(same))
            lengths = [sum(map(len, texts)) for texts in (before.texts, after.texts)]
            if lengths[0]:
                metrics["length_ratio"] = lengths[1] / lengths[0]
        lost = (after.log_likelihood - before.log_likelihood) / np.maximum(before.tokens, 1)
        worst = [int(row) for row in np.argsort(lost)[:20] if lost[row] < 0]
        table = [
            {
                "row": row,
                "prompt": _short(split.inputs[row][0]),
                "text": _short(split.inputs[row][1]),
                "log_likelihood_delta": float(lost[row]),
                "baseline_wrote": _short(before.texts[row]),
                "candidate_wrote": _short(after.texts[row]),
            }
            for row in worst
        ]
        keys = [shown(prompt) or text for prompt, text in split.inputs]
        slices = ratio_slices(
            row_slices(keys, split.frame, {"text", "label"}),
            before.log_likelihood,
            after.log_likelihood,
            before.tokens,
            figure="log_likelihood",
            min_rows=_SLICE_ROWS,
        )
        worst_metric, worst_tag = worst_of(slices)
        return Changes(metrics | worst_metric, tags | worst_tag, {"broken_rows": table, "slices": slices})

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:  # noqa: ARG002
        """``(rows,)`` bool: every token of the right text was the likeliest."""
        found = _answers(outputs, spec)
        right: np.ndarray = found.right.sum(axis=1) == found.tokens
        return right

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """The likeliest token at each scored place, ``(rows, max_length)``, -1 after."""
        return _answers(outputs, spec).top

    def _per_row(self, metric: str, found: Answers, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to add up over rows, and what to divide the sum by."""
        import numpy as np

        from ..measurement.text_quality import text_scores

        if metric == "log_likelihood":
            return found.log_likelihood, found.tokens
        if metric == "token_accuracy":
            return found.right.sum(axis=1).astype(float), found.tokens
        return text_scores(found.texts, references)[metric], np.ones(len(references))


def _keeps_tokens(model: Any) -> bool:
    """Whether every layer keeps keys and values of each token."""
    from transformers import DynamicCache

    return all(hasattr(layer, "keys") for layer in DynamicCache(config=model.config).layers)


def _check_text_metrics() -> None:
    missing = [name for module, name in _TEXT_METRICS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependency(
            f"Scoring written texts needs {' and '.join(missing)}. Install with: pip install 'mlflow_slim[llm]'; "
            "or write generate.max_new_tokens=0, and only right texts are scored."
        )


def _writes(spec: Mapping[str, Any]) -> bool:
    return bool(spec["prompted"]) and int(spec["max_new_tokens"]) > 0


def _answers(outputs: np.ndarray, spec: Mapping[str, Any]) -> Answers:
    from ..runtime.generation import unpack

    return unpack(outputs, spec)


def _thin(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    """At most so many rows, at even steps."""
    if rows is None or len(frame) <= rows:
        return frame
    return frame.iloc[[i * len(frame) // rows for i in range(rows)]].reset_index(drop=True)


def _split(name: str, frame: pd.DataFrame, template: str | None, *, prompted: bool, chats: bool) -> Split:
    import numpy as np

    from ..data import digest_rows

    texts = frame["text"].tolist()
    inputs: list[tuple[Any, str]]
    if chats:
        inputs = [
            _chat(name, text, frame["label"].iloc[row] if "label" in frame else None) for row, text in enumerate(texts)
        ]
    elif not prompted:
        inputs = [("", text) for text in texts]
    else:
        prompts = [template.replace(_PLACEHOLDER, text) for text in texts] if template else texts
        inputs = list(zip(prompts, frame["label"].tolist(), strict=True))
    digest = digest_rows(frame if "label" in frame else frame.assign(label=""))
    return Split(name, inputs, np.array([text for _, text in inputs]), frame, digest)


def _chat(split: str, text: str, answer: str | None) -> tuple[list[dict[str, str]], str]:
    """Messages and the answer to them; without a column of answers, the last message is the answer."""
    from ..data.chats import messages_of

    messages = messages_of(text)
    if answer is not None:
        return messages, answer
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(
            f"A chat in {split} doesn't end with the assistant's answer: {text!r:.120}. Drop it, or name a column with "
            "the right answers: label=<column>."
        )
    return messages[:-1], messages[-1]["content"]


def _short(prompt: Any) -> str:
    text = shown(prompt)
    return text if len(text) <= 300 else text[:297] + "..."


TASK = TextGeneration()
"""One file per task; `catalog` finds them by name."""
