"""Question answering: a question and a context in, the part of the context that answers out.

Right answers of a row are JSON: its context, their texts, and the pieces of the context (`runtime.questions`) that they
begin and end with. A model is asked, and one model teaches another, piece by piece, whatever their tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import OptimizedModel
from ..encoder_loading import check_offsets, load_encoder
from ..errors import DataError, MeasurementError, ModelError
from ..interfaces import Changes, Split, TaskData
from ..runtime.questions import (
    ENDS,
    STARTS,
    WINDOWS,
    WindowEncoder,
    at_pieces,
    best_spans,
    least_length,
    likelihoods,
    pieces_in,
    usual_stride,
)
from ..runtime.tasks.question_answering import characters_of
from ..task_defaults import TaskDefaults

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..data import Tables
    from ..data.tables import InputKind, LabelKind
    from ..measurement.stats import Interval

__all__ = ["TASK", "QuestionAnswering"]

_NEVER = -1e4
"""A logit of what can't be; float16 has it, too."""
_SLICE_ROWS = 50
"""Smaller parts of the rows show chance."""
_SHOWN = 300
"""Characters of a text in a table."""


class QuestionAnswering(TaskDefaults):
    """The task ``question-answering``: extractive, as SQuAD has it."""

    name = "question-answering"
    library_class = "AutoModelForQuestionAnswering"
    labels: LabelKind = "answers"
    inputs: InputKind = "texts"
    check_rows = 16

    def make_data(
        self,
        tables: Tables,
        *,
        config: Mapping[str, Any] | None = None,  # noqa: ARG002 - as of every task
        spec: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TaskData:
        """Rows as splits of ``(question, context)`` with their right answers.

        Args:
            tables: What `mlflow_slim.data.read_tables` gave.
            config: Not looked at.
            spec: Of a model that is exported already: how it reads and answers stays as it is.
            options: The recipe's section ``answer``.

        Raises:
            DataError: No row to train on has an answer.
        """
        asked = (options or {}).get("answer") or {}
        frames = {"train": tables.train, "validation": tables.validation, "test": tables.test}
        lacking = {name: sum(not label["text"] for label in frame["label"]) for name, frame in frames.items()}
        if lacking["train"] == len(tables.train):
            raise DataError("No training row has an answer, so there is nothing to learn. Check label=<column>.")
        may_lack = asked.get("unanswerable")
        own = {
            "stride": asked.get("stride"),
            "max_answer_length": asked.get("max_answer_length") or 30,
            "unanswerable": any(lacking.values()) if may_lack is None else bool(may_lack),
            "pair": True,
        }
        if spec is not None:
            own |= {key: spec[key] for key in ("stride", "max_answer_length", "unanswerable") if key in spec}
        splits = {name: _split(name, frame) for name, frame in frames.items()}
        report = {**tables.report, "questions_without_an_answer": lacking}
        return TaskData(tables.name, tables.source, spec=own, report=report, **splits)

    def load_model(self, directory: Path, data: TaskData, *, max_length: int | None, seed: int) -> OptimizedModel:
        """The model in a local folder with a head that marks spans, see `encoder_loading.load_encoder`.

        Raises:
            ModelError: It can't be loaded, or its tokenizer doesn't say which characters a token stands for, or windows
                of ``max_length`` tokens have no room to move on by ``stride``.
        """
        loaded = load_encoder(
            directory, self, data.spec, max_length=max_length, seed=seed, settings={}, special_tokens_of_pairs=True
        )
        tokenizer = loaded.processor
        check_offsets(tokenizer, "answers")
        tokenizer.padding_side = "right"  # as windows are padded
        length = int(loaded.spec["max_length"])
        stride = usual_stride(length) if data.spec["stride"] is None else int(data.spec["stride"])
        least = least_length(stride, tokenizer.num_special_tokens_to_add(pair=True))
        if length < least:
            raise ModelError(
                f"max_length is {length}, and windows that share {stride} tokens need {least} at least. Raise it, or "
                "lower answer.stride."
            )
        return replace(loaded, spec={**loaded.spec, "stride": stride})

    def encode(self, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Windows one after the other, truncated and not padded; ``row`` is the number of the input that each is of."""
        from ..bundle import padding_inputs

        names = list(processor.model_input_names)
        settings = {**padding_inputs(processor), "names": names}
        windows = WindowEncoder.of(processor.backend_tokenizer, settings, spec, whole=True)
        found = []
        for number, row in enumerate(inputs):
            arrays = windows([row])
            real = arrays["attention_mask"].sum(axis=1) if "attention_mask" in arrays else [len(arrays["input_ids"][0])]
            for i, length in enumerate(real):
                own = {name: arrays[name][i, :length].tolist() for name in names}
                window = (number, *arrays[WINDOWS][i, 1:])
                found.append({**own, STARTS: arrays[STARTS][i], ENDS: arrays[ENDS][i], WINDOWS: window, "row": number})
        return found

    def align(self, row: Mapping[str, Any], values: Any) -> np.ndarray:
        """Of right answers ``(2,)`` the tokens that the first begins and ends with; of raw outputs ``(2, tokens)``.

        A window that doesn't hold the answer has none, which its first token stands for. Raw outputs are -inf at tokens
        that begin or end no piece: nobody asks what a model says of them.
        """
        import numpy as np

        places, (_, first, none) = np.stack([row[STARTS], row[ENDS]]), row[WINDOWS]
        if isinstance(values, bytes):
            spans = json.loads(values)["spans"]
            tokens = _tokens_of(places, np.array(spans[0]) - first) if spans else None
            return np.full(2, none) if tokens is None else tokens
        span = best_spans(values[None], {"max_answer_length": len(values), "unanswerable": False})[0]
        placed = np.full((2, len(row["input_ids"])), -np.inf, dtype=np.float32)
        if _tokens_of(places, span - first) is None:
            for own, at in zip(placed, places, strict=True):
                own[at[at >= 0]] = _NEVER
            placed[:, none] = 0.0
            return placed
        placed[:, none] = values[0]
        said = values[1 + first : 1 + first + places.shape[1]].T
        for own, at, logits in zip(placed, places[:, : said.shape[1]], said, strict=True):
            there = (at >= 0) & (logits != 0)
            own[at[there]] = logits[there]
        return placed

    def answer(self, outputs: Any, inputs: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """``(batch, 2, tokens)``: which token the answer begins with, and which it ends with."""
        import torch

        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        mask = inputs.get("attention_mask")
        return logits if mask is None else logits.masked_fill(mask[:, None] == 0, _NEVER)

    def loss(self, outputs: Any, references: Any, spec: Mapping[str, Any]) -> Any:  # noqa: ARG002 - as of every task
        """Mean cross entropy of both ends; ``(batch, 2, tokens)`` logits, ``(batch, 2)`` tokens."""
        import torch.nn.functional as functional

        return functional.cross_entropy(outputs.flatten(0, 1), references.flatten())

    def outputs(self, model: Any, processor: Any, inputs: Sequence[Any], spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows, 1 + pieces, 2)`` logits of a model in memory, see `runtime.questions`."""
        import numpy as np

        from ..scoring import outputs_of
        from ..training import pad_behind

        rows = self.encode(processor, inputs, spec)

        def of_tokens(found: Any, batch: Mapping[str, Any], _: Any) -> np.ndarray:
            said: np.ndarray = self.answer(found, batch, spec).float().cpu().numpy()
            return np.moveaxis(said, 1, 2)

        said = outputs_of(model, processor, rows, of_tokens)
        starts, ends = (pad_behind([row[name] for row in rows], -1) for name in (STARTS, ENDS))
        return at_pieces(said, starts, ends, np.array([row[WINDOWS] for row in rows]))

    def quality(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, float]:
        """``exact_match`` and ``token_f1``, both SQuAD's, 0 to 1.

        Where some questions have no answer, also of those with one and of those without: ``token_f1/answerable`` and
        ``token_f1/unanswerable``.

        Raises:
            MeasurementError: An output is not finite.
        """
        import numpy as np

        if not np.isfinite(outputs).all():
            raise MeasurementError(
                "The model gave outputs that are not finite. Look at its training loss and its number format."
            )
        scores = self._scores(outputs, references, spec)
        found = {name: float(values.mean()) for name, values in scores.items()}
        there = np.array([bool(json.loads(key)["texts"]) for key in references])
        for name, rows in (("answerable", there), ("unanswerable", ~there)):
            if 0 < rows.sum() < len(rows):
                found[f"token_f1/{name}"] = float(scores["token_f1"][rows].mean())
        return found

    def headline(self, references: np.ndarray, spec: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG002
        """The metric to judge by, and the sentence that says why."""
        return "token_f1", "an answer that is nearly the right part of the text is nearly right"

    def judged_by(self, spec: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        """Metrics that can be the headline."""
        return ("token_f1", "exact_match")

    def judge(self, metric: str, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> float:
        """One of the metrics of `judged_by`."""
        return float(self._scores(outputs, references, spec)[metric].mean())

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
        """Candidate less baseline with a 90 % interval over rows."""
        import numpy as np

        from ..measurement.stats import least_half_width, ratio_difference

        was, now = (self._scores(outputs, references, spec)[metric] for outputs in (baseline, candidate))
        found = ratio_difference(was, now, np.ones(len(was)), confidence=0.90)
        return found.no_narrower(least_half_width(was == 1, now == 1, confidence=0.90))

    def changes(self, baseline: np.ndarray, candidate: np.ndarray, split: Split, spec: Mapping[str, Any]) -> Changes:
        """How much of the answers is the same, flips, divergence, the worst part of the rows, and what lost most."""
        import numpy as np

        from ..measurement.fidelity import ratio_slices, row_slices, shortened, worst_of
        from ..runtime.predictor import concatenate

        both = concatenate([baseline, candidate])
        baseline, candidate = both[: len(baseline)], both[len(baseline) :]
        texts = [self._texts(outputs, split.references, spec) for outputs in (baseline, candidate)]
        before, after = (_scores_of(found, split.references) for found in texts)
        was, now = (scores["exact_match"] == 1 for scores in (before, after))
        shares = [np.maximum(likelihoods(outputs, spec), 1e-12) for outputs in (baseline, candidate)]
        metrics = {
            "agreement": self.agreement(baseline, candidate, spec),
            "negative_flips": float((was & ~now).mean()),
            "positive_flips": float((~was & now).mean()),
            "mean_kl": float((shares[0] * np.log(shares[0] / shares[1])).sum(axis=2).mean()),
        }
        lost = before["token_f1"] - after["token_f1"]
        table = [
            {
                "row": int(row),
                "question": shortened(split.inputs[int(row)][0], _SHOWN),
                "right": "; ".join(dict.fromkeys(json.loads(split.references[row])["texts"])),
                "baseline_answer": texts[0][row],
                "candidate_answer": texts[1][row],
                "context": shortened(split.inputs[int(row)][1], _SHOWN),
            }
            for row in np.argsort(-lost, kind="stable")[:200]
            if lost[row] > 0
        ]
        slices = ratio_slices(
            row_slices([context for _, context in split.inputs], split.frame, {"text", "text_pair", "label"}),
            before["token_f1"],
            after["token_f1"],
            np.ones(len(lost)),
            figure="token_f1",
            min_rows=_SLICE_ROWS,
        )
        worst_metric, worst_tag = worst_of(slices)
        return Changes(metrics | worst_metric, worst_tag, {"broken_rows": table, "slices": slices})

    def agreement(self, baseline: np.ndarray, candidate: np.ndarray, spec: Mapping[str, Any]) -> float:
        """How much of the answers is the same: twice the pieces in both by the pieces in either, mean over rows."""
        import numpy as np

        (starts, ends), (others, others_ends) = (self.decide(outputs, spec).T for outputs in (baseline, candidate))
        lengths = [np.where(a >= 0, b - a + 1, 0) for a, b in ((starts, ends), (others, others_ends))]
        shared = np.maximum(np.minimum(ends, others_ends) - np.maximum(starts, others) + 1, 0)
        shared = np.where((starts >= 0) & (others >= 0), shared, 0)
        whole = sum(lengths)
        return float(np.where(whole > 0, 2 * shared / np.maximum(whole, 1), 1.0).mean())

    def correct(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows,)`` bool: the answer is one of the right ones."""
        right: np.ndarray = self._scores(outputs, references, spec)["exact_match"] == 1
        return right

    def decide(self, outputs: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows, 2)`` the first and the last piece of each answer; -1 where there is none."""
        return best_spans(outputs, spec)

    def _texts(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> list[str]:
        contexts = [json.loads(key)["context"] for key in references]
        places = characters_of(contexts, self.decide(outputs, spec))
        return [context[start:end] for context, (start, end) in zip(contexts, places, strict=True)]

    def _scores(self, outputs: np.ndarray, references: np.ndarray, spec: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return _scores_of(self._texts(outputs, references, spec), references)


def _scores_of(texts: Sequence[str], references: np.ndarray) -> dict[str, np.ndarray]:
    """``(rows,)`` of every metric: against the right answer that comes nearest."""
    import numpy as np

    from ..measurement.text_quality import normalized, token_f1

    right = [json.loads(key)["texts"] or [""] for key in references]
    pairs = list(zip(texts, right, strict=True))
    return {
        "exact_match": np.array([float(normalized(text) in map(normalized, all_)) for text, all_ in pairs]),
        "token_f1": np.array([max(token_f1(text, one) for one in all_) for text, all_ in pairs]),
    }


def _tokens_of(places: np.ndarray, span: np.ndarray) -> np.ndarray | None:
    """``(2,)`` the tokens of a span of pieces in a window; None where it isn't whole in there.

    A piece that no token begins, or ends, with is part of a longer token, which is taken.
    """
    import numpy as np

    starts, ends = places
    begun, ended = np.flatnonzero(starts >= 0), np.flatnonzero(ends >= 0)
    if not len(begun) or not len(ended) or span[0] < begun[0] or span[1] > ended[-1]:
        return None
    return np.array([starts[begun[begun <= span[0]][-1]], ends[ended[ended >= span[1]][0]]])


def _split(name: str, frame: pd.DataFrame) -> Split:
    import numpy as np

    from ..data import digest_rows

    inputs = list(zip(frame["text"].tolist(), frame["text_pair"].tolist(), strict=True))
    keys = [_key(context, label) for (_, context), label in zip(inputs, frame["label"], strict=True)]
    return Split(name, inputs, np.array(keys, dtype=np.bytes_), frame, digest_rows(frame))


def _key(context: str, label: Mapping[str, Any]) -> bytes:
    import numpy as np

    pieces = pieces_in(context)
    spans = [
        (
            int(np.searchsorted(pieces[:, 1], start, side="right")),
            int(np.searchsorted(pieces[:, 0], start + len(text), side="left")) - 1,
        )
        for text, start in zip(label["text"], label["answer_start"], strict=True)
    ]
    content = {"context": context, "texts": label["text"], "spans": spans}
    return json.dumps(content, ensure_ascii=False).encode()


TASK = QuestionAnswering()
"""One file per task; `catalog` finds them by name."""
