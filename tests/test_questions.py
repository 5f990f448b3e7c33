"""Pieces of a context, the tokens they are, windows over long contexts, and best spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer
from tokenizers import Tokenizer

from mlflow_slim.runtime.questions import (
    ENDS,
    STARTS,
    WINDOWS,
    WindowEncoder,
    at_pieces,
    best_spans,
    least_length,
    likelihoods,
    pieces_in,
    places_of,
    usual_stride,
)

CONTEXT = "The plot, in 1990s film: $5.50 (big red animal) was good-ish; naïve 東京 café!"
SETTINGS = {
    "names": ["input_ids", "attention_mask", "token_type_ids"],
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
}
ALWAYS = {"max_answer_length": 30, "unanswerable": False}
MAYBE = {"max_answer_length": 30, "unanswerable": True}


def tokenizer_of(kind: str) -> Tokenizer:
    """Tokenizers that cut texts in other places: pieces of words, bytes with the space before, sentencepiece's."""
    from tokenizers import models, pre_tokenizers, processors, trainers

    if kind == "wordpiece":
        return make_tokenizer().backend_tokenizer
    made = Tokenizer(models.BPE() if kind != "unigram" else models.Unigram())
    special = ["<s>", "</s>", "[PAD]", "<unk>"]
    texts = [CONTEXT, "who was it?", "what did the film cost in 1990?"] * 4
    if kind == "unigram":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    pair = [("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))]
    made.post_processor = (
        processors.RobertaProcessing(pair[1], pair[0], trim_offsets=kind == "bytes")
        if kind != "unigram"
        else processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=pair)
    )
    return made


KINDS = ("wordpiece", "bytes", "bytes with their space", "unigram")


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_is_the_tokens_that_spell_it_whatever_the_tokenizer(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    pieces = pieces_in(CONTEXT)
    offsets = np.array(tokenizer.encode(CONTEXT, add_special_tokens=False).offsets)
    starts, ends = places_of(offsets, pieces)
    for (first, last), start, end in zip(pieces, starts, ends, strict=True):
        if start >= 0:
            assert CONTEXT[offsets[start, 0] : first].strip() == "" and offsets[start, 1] > first
        if end >= 0:
            assert offsets[end, 1] == last
    both = (starts >= 0) & (ends >= 0)
    assert both.mean() > 0.8
    assert (starts[both] <= ends[both]).all()
    # every token that doesn't begin within a piece is one's beginning
    begun = {CONTEXT[max(a, pieces[pieces[:, 1] > a][0, 0]) : b] for a, b in offsets[np.unique(starts[starts >= 0])]}
    assert {"The", "T"} & {text[:3] for text in begun} | {"T"} & {text[:1] for text in begun}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "stride"), [(64, 16), (40, 4), (30, 0)])
def test_windows_cover_every_piece_of_a_long_context(kind: str, length: int, stride: int) -> None:
    tokenizer = tokenizer_of(kind)
    long = " ".join([CONTEXT] * 4)
    encode = WindowEncoder(tokenizer, SETTINGS, max_length=length, stride=stride, whole=True)
    found = encode([("who was it?", long), ("what?", "red"), ("who was it? " * 40, long)])
    assert found["input_ids"].shape[1] <= length
    assert (np.diff(found[WINDOWS][:, 0]) >= 0).all() and set(found[WINDOWS][:, 0]) == {0, 1, 2}
    counts = np.bincount(found[WINDOWS][:, 0])
    assert counts[0] > 2 and counts[1] == 1, "a short context is one window"
    alone = places_of(np.array(tokenizer.encode(long, add_special_tokens=False).offsets), pieces_in(long))
    for row in (0, 2):
        own = found[WINDOWS][:, 0] == row
        for name, wanted in zip((STARTS, ENDS), alone, strict=True):
            seen = np.zeros(len(wanted), dtype=bool)
            for (_, first, none), places in zip(found[WINDOWS][own], found[name][own], strict=True):
                seen[first + np.flatnonzero(places >= 0)] = True
                assert none == 0, "the first token stands for no answer"
            assert (seen >= (wanted >= 0)).all(), f"{name}: {np.flatnonzero(~seen & (wanted >= 0))}"
    assert (found[STARTS][found[WINDOWS][:, 0] == 1, 1:] == -1).all(), "after the last piece"
    assert found[STARTS].shape[1] < length, "no more than a window holds"
    plain = WindowEncoder(tokenizer, SETTINGS, max_length=length, stride=stride)([("what?", "red")])
    assert set(plain) == set(SETTINGS["names"])


def test_windows_are_those_of_transformers() -> None:
    wrapped = make_tokenizer()
    rows = [("who was it ?", " ".join([CONTEXT] * 3)), ("what ?", CONTEXT)]
    ours = WindowEncoder(wrapped.backend_tokenizer, SETTINGS, max_length=48, stride=12, whole=True)(rows)
    theirs = wrapped(
        [q for q, _ in rows],
        [c for _, c in rows],
        truncation="only_second",
        max_length=48,
        stride=12,
        return_overflowing_tokens=True,
        padding="longest",
        return_tensors="np",
    )
    for name in SETTINGS["names"]:
        assert (ours[name] == theirs[name]).all()
    assert (ours[WINDOWS][:, 0] == theirs["overflow_to_sample_mapping"]).all()


def test_a_piece_has_the_best_of_what_windows_say_and_a_row_no_answer_if_none_has() -> None:
    starts = np.array([[3, 4], [3, 4], [5, -1]])
    ends = np.array([[3, 5], [3, 5], [5, -1]])
    windows = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    logits = np.arange(3 * 6 * 2, dtype=np.float32).reshape(3, 6, 2) + 1
    logits[1, 0] = -50
    found = at_pieces(logits, starts, ends, windows)
    assert found.shape == (2, 4, 2)
    assert found[0, 0].tolist() == [-50, -50], "the window that is surest that there is an answer"
    assert found[0, 1].tolist() == logits[0, 3].tolist()
    assert found[0, 2].tolist() == [max(logits[0, 4, 0], logits[1, 3, 0]), max(logits[0, 5, 1], logits[1, 3, 1])]
    assert found[0, 3].tolist() == [logits[1, 4, 0], logits[1, 5, 1]]
    assert found[1, 1].tolist() == logits[2, 5].tolist()
    assert not found[1, 2:].any()


def test_best_spans_are_those_of_trying_all() -> None:
    draw = np.random.default_rng(0)
    outputs = draw.normal(size=(40, 13, 2)).astype(np.float32)
    outputs[:, 1:][draw.random((40, 12, 2)) < 0.2] = 0
    outputs[7, 1:] = 0
    for longest in (1, 3, 30):
        for spec in ({**ALWAYS, "max_answer_length": longest}, {**MAYBE, "max_answer_length": longest}):
            found = best_spans(outputs, spec)
            for row, said in enumerate(outputs):
                sums = {
                    (i, j): said[i + 1, 0] + said[j + 1, 1]
                    for i in range(12)
                    for j in range(i, min(12, i + longest))
                    if said[i + 1, 0] and said[j + 1, 1]
                }
                best = max(sums.values(), default=-np.inf)
                none = not sums or (spec["unanswerable"] and said[0].sum() > best)
                if none:
                    assert found[row].tolist() == [-1, -1]
                else:
                    assert sums[tuple(found[row].tolist())] == pytest.approx(best)  # type: ignore[index]


def test_likelihoods_add_up_to_one_over_what_can_be() -> None:
    outputs = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    outputs[:, 5:] = 0
    for spec, first in ((ALWAYS, 0.0), (MAYBE, None)):
        found = likelihoods(outputs, spec)
        assert found.shape == (5, 2, 7)
        np.testing.assert_allclose(found.sum(axis=2), 1)
        assert (found[:, :, 5:] == 0).all()
        assert (found[:, :, 0] == 0).all() == (first == 0.0)


def test_lengths_that_leave_no_room_are_told_apart() -> None:
    assert usual_stride(512) == 128 and usual_stride(64) == 16
    assert least_length(16, 3) == 43
    tokenizer = tokenizer_of("wordpiece")
    least = least_length(8, 3)
    encode = WindowEncoder(tokenizer, SETTINGS, max_length=least, stride=8, whole=True)
    found = encode([("w " * 300, "r " * 100)])
    assert found["input_ids"].shape[1] == least and found[WINDOWS][:, 0].max() == 0
