"""Words and tokens: each word's first is found whatever the tokenizer, and words of a text keep their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer

from mlflow_slim.runtime.words import at_words, first_tokens, joined, words_in

TEXTS = [
    "the movie was un ##good , and very-very long",
    "a",
    "Straße naïve 東京 \u00a0 x² -- ... 'tis",
    "zebra the " * 20,
]


def byte_level() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    upstream: Any = PreTrainedTokenizerFast
    return upstream(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", add_prefix_space=True)


def unigram() -> Any:
    """As of sentencepiece models: a word begins with a mark, which may be a token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), ("\u2581the", -2.0), ("\u2581movie", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyzS-.,'#"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    upstream: Any = PreTrainedTokenizerFast
    return upstream(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize("make", [make_tokenizer, byte_level, unigram])
def test_a_words_first_token_is_the_one_that_transformers_finds(make: Any) -> None:
    tokenizer = make()
    encoded = tokenizer(TEXTS, return_offsets_mapping=True, padding=True, return_tensors="np")
    found = first_tokens(encoded["offset_mapping"], TEXTS)
    for row, text in enumerate(TEXTS):
        words = text.split(" ")
        apart = tokenizer(words, is_split_into_words=True)
        ids = apart.word_ids()
        wanted = [ids.index(word) if word in ids else -1 for word in range(len(words))]
        ours = found[row, : len(words)]
        # what a tokenizer drops (a word of no-break space) has no token either way
        tokens = np.array(encoded["input_ids"][row])
        theirs = np.array(apart["input_ids"])
        assert [tokens[o] if o >= 0 else -1 for o in ours] == [theirs[w] if w >= 0 else -1 for w in wanted]
    assert (found[1, 1:] == -1).all(), "after the last word there is none"


def test_words_that_are_cut_off_have_no_token_on_either_side() -> None:
    tokenizer = make_tokenizer()
    text = "the movie was good and bad"
    for side, wanted in (("right", [1, 2, -1, -1, -1, -1]), ("left", [-1, -1, -1, -1, 1, 2])):
        tokenizer.truncation_side = side
        encoded = tokenizer([text], return_offsets_mapping=True, truncation=True, max_length=4, return_tensors="np")
        assert first_tokens(encoded["offset_mapping"], [text]).tolist() == [wanted]


def test_outputs_of_words_are_those_of_their_tokens_and_zeros_where_there_is_none() -> None:
    outputs = np.arange(12, dtype=np.float32).reshape(1, 4, 3) + 1
    assert at_words(outputs, np.array([[2, -1, 0]])).tolist() == [[[7, 8, 9], [0, 0, 0], [1, 2, 3]]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("John lives in New York.", ["John", "lives", "in", "New", "York", "."]),
        ("(U.S. dollars: $5.20!)", ["(", "U.S", ".", "dollars", ":", "$", "5.20", "!", ")"]),
        ("e-mail O'Neil's", ["e-mail", "O'Neil's"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京へ go", ["東", "京", "へ", "go"]),
        ("  \n ", []),
        ("...", [".", ".", "."]),
    ],
)
def test_a_text_comes_apart_into_words_and_punctuation(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in words_in(text)] == words


def test_joined_words_can_be_had_back_one_for_one() -> None:
    words = ["New York", "", "a\tb", "x"]
    assert len(joined(words).split(" ")) == len(words)
    assert joined(["a", "b"]) == "a b"
