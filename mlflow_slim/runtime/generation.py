"""Language models: how likely a text is, token by token, and what is written on from a prompt.

One loop drives every runtime, so that what differs between two measured models is the model and its runtime, and
nothing around them. A row is a prompt, or a prompt and the text that should follow it; with an empty prompt the text
stands alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bundle import Bundle
from .decoders import Decoder
from .prompts import PromptFile

ASSISTANT = "assistant"
"""Folder inside a bundle with the smaller model that guesses for it."""
TEXT_BYTES = 8
"""Bytes kept of a written text for each token it may have."""
_PROMPT_TOKENS = 64
"""A text that stands alone is written on from its first half, at most so many tokens of it."""
_SAMPLES = 3  # of the first columns below


@dataclass(frozen=True)
class Answers:
    """Raw outputs of a language model by name; packed they are one float32 array, as those of any other model.

    Attributes:
        log_likelihood: ``(rows,)`` of all scored tokens of a row together, natural logarithm, <= 0.
        tokens: ``(rows,)`` tokens scored; 0 where a row has no text to score.
        bytes: ``(rows,)`` UTF-8 bytes of the scored tokens.
        top: ``(rows, max_length)`` the token that the model holds for the likeliest at each scored place; -1 after.
        right: ``(rows, max_length)`` whether that is the text's own.
        texts: What was written from each prompt; empty where nothing was asked for.
    """

    log_likelihood: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    top: np.ndarray
    right: np.ndarray
    texts: tuple[str, ...]

    def pack(self, spec: Mapping[str, Any]) -> np.ndarray:
        """``(rows, columns)`` float32. A token and whether it is right are one number, twice the token plus one."""
        width = TEXT_BYTES * int(spec["max_new_tokens"])
        written = np.full((len(self.texts), width), -1.0, dtype=np.float32)
        for row, text in enumerate(self.texts):
            raw = text.encode("utf-8")[:width]
            written[row, : len(raw)] = np.frombuffer(raw, dtype=np.uint8)
        top = np.where(self.top >= 0, 2 * self.top + self.right, -1)
        sums = np.stack([self.log_likelihood, self.tokens, self.bytes], axis=1)
        return np.concatenate([sums, written, top], axis=1).astype(np.float32)


def unpack(outputs: np.ndarray, spec: Mapping[str, Any]) -> Answers:
    """The answers that `Answers.pack` made an array of."""
    width = TEXT_BYTES * int(spec["max_new_tokens"])
    sums, written, top = np.split(np.asarray(outputs), [_SAMPLES, _SAMPLES + width], axis=1)
    places = top.astype(np.int64)
    texts = tuple(row[row >= 0].astype(np.uint8).tobytes().decode("utf-8", errors="ignore") for row in written)
    return Answers(
        log_likelihood=sums[:, 0].astype(np.float64),
        tokens=sums[:, 1].astype(np.int64),
        bytes=sums[:, 2].astype(np.int64),
        top=np.where(places >= 0, places // 2, -1),
        right=np.where(places >= 0, places % 2, 0).astype(bool),
        texts=texts,
    )


@dataclass(frozen=True)
class Writing:
    """How to write on.

    Attributes:
        max_new_tokens: Most tokens to write, >= 1.
        temperature: 0 takes the likeliest token; above, tokens are drawn, the more evenly the higher.
        top_p: Draws among the likeliest tokens that together have this probability, 0 to 1.
        seed: Of the draws; None draws anew each time.
        stop: Texts that end the writing; they are not part of the answer.
        ignore_end: Go on after the model's own end token, to write exactly ``max_new_tokens``; for timing.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must be from 0 to 100, got {self.temperature:g}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p:g}.")

    def chooser(self) -> Callable[[np.ndarray], int]:
        """Gives the next token for logits ``(vocabulary,)``."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        draw = np.random.default_rng(self.seed)

        def choose(logits: np.ndarray) -> int:
            scaled = logits.astype(np.float64) / self.temperature
            weights = np.exp(scaled - scaled.max())
            weights /= weights.sum()
            if self.top_p < 1:
                order = np.argsort(-weights, kind="stable")
                kept = order[: int(np.searchsorted(np.cumsum(weights[order]), self.top_p)) + 1]
                return int(draw.choice(kept, p=weights[kept] / weights[kept].sum()))
            return int(draw.choice(len(weights), p=weights))

        return choose


Guess = Callable[[Sequence[int], int], Sequence[int]]
"""Guesses the tokens that follow those so far, at most so many; a wrong guess costs time and changes nothing."""


def lookup(*, tokens: int, ngram: int) -> Guess:
    """Guesses what followed the last tokens where they stood before, the latest place first.

    Args:
        tokens: Most tokens to guess at a time.
        ngram: Last tokens to look for; where they stand nowhere, fewer are looked for, down to two (or one, if asked).
    """

    def guess(history: Sequence[int], room: int) -> Sequence[int]:
        length = len(history)
        for size in range(min(ngram, length - 1), min(ngram, 2) - 1, -1):
            wanted = list(history[-size:])
            for start in range(length - size - 1, -1, -1):
                if history[start] == wanted[0] and list(history[start : start + size]) == wanted:
                    return history[start + size : start + size + min(tokens, room)]
        return ()

    return guess


class Drafting:
    """Guesses what a smaller model writes; it keeps what that model has read of the text at hand.

    Args:
        decoder: The smaller model.
        tokens: Most tokens to guess at a time.
        size: Tokens there are; likelier ones beyond are none of the checking model's.
    """

    def __init__(self, decoder: Decoder, *, tokens: int, size: int | None = None) -> None:
        self._decoder, self._tokens, self._size = decoder, tokens, size
        self._cache: Any = None
        self._held: list[int] = []

    def __call__(self, history: Sequence[int], room: int) -> Sequence[int]:
        same = 0
        limit = min(len(self._held), len(history) - 1)  # the last token is read anew: its successor is wanted
        while same < limit and self._held[same] == history[same]:
            same += 1
        if same == 0 or self._cache is None:
            self._cache, same = self._decoder.begin(len(history) + room + 1), 0
        self._decoder.crop(self._cache, same)
        pending, guessed = list(history[same:]), list[int]()
        for _ in range(min(self._tokens, room)):
            logits = self._decoder.step(np.array(pending, dtype=np.int64), self._cache, keep=1)
            guessed.append(int(logits[0, : self._size].argmax()))
            pending = guessed[-1:]
        self._held = [*history, *guessed[:-1]]
        return guessed


def through_texts(decoder: Decoder, ours: PromptFile, theirs: PromptFile, *, tokens: int) -> Guess:
    """Guesses of a model with another vocabulary: texts go to it and come back.

    Args:
        decoder: The smaller model.
        ours: Tokens of the model that checks.
        theirs: Tokens of the one that guesses.
        tokens: Most tokens to guess at a time.
    """
    draft = Drafting(decoder, tokens=tokens, size=theirs.size)

    def guess(history: Sequence[int], room: int) -> Sequence[int]:
        text = ours.exact_text(history)
        read = theirs.continuation(text)[0]
        if not read:
            return ()
        more = theirs.exact_text([*read, *draft(read, tokens)])
        if not more.startswith(text) or len(more) == len(text):
            return ()
        # Tokens at the seam depend on both sides of it, so that the text is encoded as a whole where that holds.
        whole = ours.continuation(more)[0]
        if whole[: len(history)] == list(history):
            return whole[len(history) :][: min(tokens, room)]
        return ours.continuation(more[len(text) :])[0][: min(tokens, room)]

    return guess


def write_on(
    decoder: Decoder,
    ids: Sequence[int],
    writing: Writing,
    end_ids: frozenset[int] = frozenset(),
    *,
    guess: Guess | None = None,
    count: Callable[[int, int], None] | None = None,
) -> Iterator[int]:
    """Tokens that follow ``ids``, one by one.

    Guessed tokens are run through the model together, and kept as far as they are those that it chooses itself: what
    is written with temperature 0 is the same with and without them.

    Args:
        decoder: The model.
        ids: The prompt, at least one token.
        writing: How.
        end_ids: Tokens after which nothing follows.
        guess: Guesses tokens ahead; None writes one at a time.
        count: Told after every pass of the model how many tokens were guessed and how many of them were right.
    """
    choose = writing.chooser()
    cache = decoder.begin(len(ids) + writing.max_new_tokens)
    history, pending, held, written = list(ids), list(ids), 0, 0
    while True:
        room = writing.max_new_tokens - written - 1
        guessed = list(guess(history, room))[:room] if guess is not None and room > 0 else []
        logits = decoder.step(np.array([*pending, *guessed], dtype=np.int64), cache, keep=len(guessed) + 1)
        held += len(pending)
        right = 0
        for place in range(len(guessed) + 1):
            token = choose(logits[place])
            history.append(token)
            written += 1
            yield token
            if written == writing.max_new_tokens or (token in end_ids and not writing.ignore_end):
                return
            if place == len(guessed) or token != guessed[place]:
                break
            right += 1
        if count is not None:
            count(len(guessed), right)
        held += right
        decoder.crop(cache, held)
        pending = history[-1:]


def write_rows(decoder: Decoder, ids: np.ndarray, count: int) -> np.ndarray:
    """The likeliest ``count`` tokens after each of several prompts of one length, written together.

    Args:
        decoder: The model.
        ids: The prompts, ``(rows, tokens)``.
        count: Tokens to write, >= 1; end tokens are gone on after.

    Returns:
        ``(rows, count)`` int64.
    """
    cache = decoder.begin(ids.shape[1] + count, rows=len(ids))
    written: list[np.ndarray] = []
    pending = ids
    while len(written) < count:
        written.append(decoder.step(pending, cache, keep=1)[:, -1].argmax(axis=-1))
        pending = written[-1][:, None]
    return np.stack(written, axis=1)


def score(decoder: Decoder, ids: Sequence[int], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of each token from ``start`` on given all before it, and the likeliest token there.

    Args:
        decoder: The model.
        ids: Tokens of a text, and of what comes before it.
        start: First token to score, >= 1: nothing is known about a token that nothing comes before.

    Returns:
        ``(tokens,)`` float64 and ``(tokens,)`` int64.
    """
    wanted = np.array(ids[start:], dtype=np.int64)
    if not len(wanted):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    logits = decoder.step(np.array(ids[:-1], dtype=np.int64), decoder.begin(len(ids)), keep=len(wanted))
    return logits[np.arange(len(wanted)), wanted] - _totals(logits), logits.argmax(axis=1)


def _totals(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of the exponentials of each row, float64."""
    highest = logits.max(axis=1)
    totals: np.ndarray = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64))
    return totals


@dataclass(frozen=True)
class Reply:
    """An answer with its tokens.

    Attributes:
        text: What was written, without the end token and any stop text.
        prompt_tokens: Tokens that were read.
        new_tokens: Tokens that were written, the end token included.
        cut: True when the limit of tokens ended it.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    cut: bool


class TextGenerator:
    """A loaded language model; what `mlflow_slim.runtime.predictor.Predictor` is for other models.

    Attributes:
        bundle: What its folder says.
        threads: Threads it computes with.
        settings: What was set in the engine, for the record.

    Texts may be written in several threads at once: each has a cache and guesses of its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        prompts: PromptFile,
        decoder: Decoder,
        threads: int,
        *,
        guessing: Callable[[], Guess] | None = None,
    ) -> None:
        self.bundle, self.threads, self.settings = bundle, threads, decoder.settings
        self._prompts, self._decoder, self._guessing = prompts, decoder, guessing
        spec = bundle.spec
        self._max_length, self._new_tokens = int(spec["max_length"]), int(spec["max_new_tokens"])
        self._timed = Writing(self._new_tokens or 32, ignore_end=True)

    def __repr__(self) -> str:
        return f"TextGenerator(backend={self.bundle.backend!r}, threads={self.threads})"

    def plainly(self) -> TextGenerator:
        """The same model, sent texts as they are, whether or not it has a chat template."""
        prompts = self._prompts.without_chat()
        return TextGenerator(self.bundle, prompts, self._decoder, self.threads, guessing=self._guessing)

    def new_guess(self) -> Guess | None:
        """Guesses for one text, since it may keep what it has read of it; None where guessing is off."""
        return self._guessing() if self._guessing is not None else None

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Tokens of the prompts, ``input_ids`` ``(rows, tokens)``, padded behind with -1."""
        prompts = [self._start(row, self._timed.max_new_tokens) for row in inputs]
        padded = np.full((len(prompts), max(map(len, prompts))), -1, dtype=np.int64)
        for row, ids in enumerate(prompts):
            padded[row, : len(ids)] = ids
        return {"input_ids": padded}

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Exactly as many tokens for each encoded prompt as the model's answers have at most; ``(rows, tokens)``.

        One prompt after the other: this is what a caller waits for and what is timed.
        """
        return np.array([list(self.tokens(row)) for row in batch["input_ids"]], dtype=np.float32)

    def tokens(self, row: np.ndarray, *, count: Callable[[int, int], None] | None = None) -> Iterator[int]:
        """Exactly so many tokens for one encoded prompt, one by one; ``count`` as in `write_on`."""
        ids = [int(token) for token in row if token >= 0]
        return write_on(self._decoder, ids, self._timed, guess=self.new_guess(), count=count)

    def forward_together(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """As many tokens for each of several encoded prompts of one length, in one batch; ``(rows, tokens)``.

        Nothing is guessed: guesses of several texts are right at different places.

        Raises:
            ValueError: The prompts differ in length.
        """
        ids = batch["input_ids"]
        if (ids < 0).any():
            raise ValueError("Prompts of one batch must have the same number of tokens.")
        return write_rows(self._decoder, ids, self._timed.max_new_tokens).astype(np.float32)

    def stamps(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Seconds from the start until each token of the first prompt's answer was there, ``(tokens,)``."""
        start = time.perf_counter()
        return np.array([time.perf_counter() - start for _ in self.tokens(batch["input_ids"][0])])

    def distributions(self, inputs: Sequence[Any], *, places: int) -> list[np.ndarray]:
        """Log-probabilities of all tokens at the scored places of each row, ``(places, vocabulary)`` float32.

        Args:
            inputs: Rows with a text each.
            places: Most places of a row, its first ones.
        """
        found = []
        for prompt, text in inputs:
            ids, start, _ = self._whole(prompt, text)
            count = min(places, len(ids) - start)
            if count < 1:
                continue
            logits = self._decoder.step(
                np.array(ids[: start + count - 1], dtype=np.int64), self._decoder.begin(len(ids)), keep=count
            )
            found.append((logits - _totals(logits)[:, None]).astype(np.float32))
        return found

    def seam(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a prompt, sent as it is, and of the text after it; see `PromptFile.seam`."""
        return self._prompts.seam(prompt, text)

    def likelihood(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of tokens after others, and whether the model would have written them itself, greedily.

        Too many lose their beginning. A first token that nothing comes before isn't scored.
        """
        ids = [*before, *after][-self._max_length :]
        start = max(1, len(ids) - len(after))
        found, likeliest = score(self._decoder, ids, start)
        return float(found.sum()), bool((likeliest == np.array(ids[start:], dtype=np.int64)).all())

    def scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """As `predict`, and nothing is written."""
        return self._packed(inputs, write=False)

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 1) -> np.ndarray:  # noqa: ARG002 - one at a time
        """Packed `Answers` to all inputs, in their order, ``(rows, columns)`` float32.

        A row with a text is scored; a row with a prompt is answered, where the model's answers have any tokens.

        Raises:
            ValueError: No inputs.
        """
        if len(inputs) == 0:
            raise ValueError("There are no inputs: the list is empty. Send at least one.")
        return self._packed(inputs, write=self._new_tokens > 0)

    def _packed(self, inputs: Sequence[Any], *, write: bool) -> np.ndarray:
        sums = np.zeros((len(inputs), _SAMPLES))
        top = np.full((len(inputs), self._max_length), -1, dtype=np.int64)
        right = np.zeros((len(inputs), self._max_length), dtype=bool)
        texts = []
        for number, row in enumerate(inputs):
            prompt, text = (row, "") if isinstance(row, str) else row
            ids, start, size = self._whole(prompt, text)
            found, likeliest = score(self._decoder, ids, start)
            sums[number] = found.sum(), len(found), size
            top[number, : len(found)] = likeliest
            right[number, : len(found)] = likeliest == np.array(ids[start:], dtype=np.int64)
            texts.append(self.answer(prompt, Writing(self._new_tokens)) if prompt and write else "")
        answers = Answers(sums[:, 0], sums[:, 1], sums[:, 2], top, right, tuple(texts))
        return answers.pack(self.bundle.spec)

    def answer(self, prompt: Any, writing: Writing, *, count: Callable[[int, int], None] | None = None) -> str:
        """The text that follows a prompt, or the answer to a chat's messages.

        Raises:
            ValueError: Messages, and the model has no chat template.
        """
        return "".join(self.stream(prompt, writing, count=count))

    def complete(self, prompt: Any, **how: Any) -> str:
        """The same, with the fields of `Writing` by name."""
        return self.answer(prompt, Writing(**how))

    def reply(self, prompt: Any, writing: Writing) -> Reply:
        """The same text with the tokens that were read and written."""
        counted: list[int] = []
        text = "".join(self.stream(prompt, writing, written=counted))
        read = len(self._start((prompt, ""), writing.max_new_tokens))
        ended = bool(counted) and counted[-1] in self._prompts.end_ids
        stopped = any(stop in self._prompts.text(counted) for stop in writing.stop)
        return Reply(text, read, len(counted), cut=not ended and not stopped)

    def stream(
        self,
        prompt: Any,
        writing: Writing,
        *,
        count: Callable[[int, int], None] | None = None,
        written: list[int] | None = None,
    ) -> Iterator[str]:
        """The same text in pieces, each as soon as it is sure; a stop text is never part of one.

        Args:
            prompt: A text or messages.
            writing: How.
            count: As in `write_on`.
            written: Every token is put into it as it comes, an end token too.
        """
        ids = self._start((prompt, ""), writing.max_new_tokens)
        new: list[int] = []
        sent = ""
        longest = max(map(len, writing.stop), default=0)
        tokens = write_on(self._decoder, ids, writing, self._prompts.end_ids, guess=self.new_guess(), count=count)
        for token in tokens:
            if written is not None:
                written.append(token)
            if token in self._prompts.end_ids and not writing.ignore_end:
                break
            new.append(token)
            text = self._prompts.text(new)
            if (at := min((text.find(stop) for stop in writing.stop if stop in text), default=-1)) >= 0:
                yield text[len(sent) : at]
                return
            # A character of several tokens is the replacement character until its last one; a stop text may begin.
            ready = text.rstrip("\ufffd")[: len(text) - max(longest - 1, 0)] if longest else text.rstrip("\ufffd")
            if len(ready) > len(sent):
                yield ready[len(sent) :]
                sent = ready
        text = self._prompts.text(new)
        if len(text) > len(sent):
            yield text[len(sent) :]

    def _start(self, row: Any, new_tokens: int) -> list[int]:
        """Tokens to write on from: the end of a prompt where it is too long, the first half of a lone text."""
        prompt, text = (row, "") if isinstance(row, str) else row
        ids = self._prompts.prompt(prompt)
        if not ids:
            ids = self._prompts.continuation(text)[0]
            ids = ids[: max(1, min(len(ids) // 2, _PROMPT_TOKENS))]
        if not ids:
            raise ValueError("The prompt is empty. Send a text to write on from.")
        return ids[-max(1, self._max_length - new_tokens) :]

    def _whole(self, prompt: Any, text: str) -> tuple[list[int], int, int]:
        """Tokens of prompt and text, the first to score, and the bytes of those scored.

        Too long a text loses its end, and too long a prompt its beginning.
        """
        if not text:
            return [], 0, 0
        before = self._prompts.prompt(prompt)
        ids, ends = self._prompts.continuation(text)
        first = 0 if before else 1  # nothing comes before the first token of a lone text
        ids = ids[: self._max_length - (0 if first else 1)]
        room = self._max_length - len(ids)
        before = before[-room:] if room else []
        size = ends[len(ids) - 1] - (ends[0] if first else 0)
        return [*before, *ids], len(before) + first, size
