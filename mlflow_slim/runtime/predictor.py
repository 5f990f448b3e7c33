"""Opens a bundle and answers with raw outputs, the same way for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from . import openvino_engine, tasks
from .bundle import Bundle, BundleError, read_bundle
from .decoders import Decoder, OnnxDecoder, OpenVinoDecoder, TorchDecoder
from .encoder import OFFSETS
from .generation import ASSISTANT, Drafting, Guess, TextGenerator, lookup, through_texts
from .inputs import open_encoder, texts_of
from .onnx_engine import MODEL, OnnxEngine
from .pooling import finish, pool
from .prompts import PromptFile
from .questions import ENDS, STARTS, WINDOWS, at_pieces
from .torch_engine import TorchEngine, load_model, to_int8, torch_encoder
from .words import at_words, first_tokens


class Engine(Protocol):
    """Computes on encoded batches."""

    settings: dict[str, Any]

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raw outputs, float32, ``(rows, ...)``."""
        ...


_FIRST_TOKENS = "first_tokens"
_TEXTS_A_ROW = "texts_a_row"
_AT_ONCE = 32
"""Windows of long contexts that are computed together."""


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Outputs ``(rows, ...)`` one after the other; those with fewer words are filled up with zeros."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    largest = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    padded = [
        np.pad(part, [(0, 0), *((0, full - size) for full, size in zip(largest, part.shape[1:], strict=True))])
        for part in parts
    ]
    return np.concatenate(padded)


def _size(text: Any) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


class Predictor:
    """A loaded model.

    Attributes:
        bundle: What its folder says.
        threads: Threads it computes with.
        settings: What was set in the engine, for the record.
    """

    def __init__(
        self, bundle: Bundle, encoder: Callable[[Sequence[Any]], dict[str, np.ndarray]], engine: Engine, threads: int
    ) -> None:
        self.bundle = bundle
        self.threads = threads
        self.settings = engine.settings
        self._encoder = encoder
        self._engine = engine

    def __repr__(self) -> str:
        return f"Predictor(task={self.bundle.task!r}, backend={self.bundle.backend!r}, threads={self.threads})"

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """``{name: (rows, tokens) int64}``: tokenized, truncated, padded to the longest of these inputs."""
        return self._encoder(inputs)

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raw outputs of one encoded batch, float32, ``(rows, ...)``."""
        return self._engine.forward(batch)

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """Raw outputs for all inputs, in their order, float32, ``(rows, ...)``.

        Batches hold inputs of like length (in characters, which needs no tokenizing ahead), so that little is
        computed on padding.

        Raises:
            ValueError: No inputs, or ``batch_size`` below 1.
        """
        if len(inputs) == 0:
            raise ValueError("There are no inputs: the list is empty. Send at least one.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        order = sorted(range(len(inputs)), key=lambda row: _size(inputs[row]))
        parts = [
            self.forward(self.encode([inputs[row] for row in order[start : start + batch_size]]))
            for start in range(0, len(order), batch_size)
        ]
        outputs = concatenate(parts)
        restored = np.empty_like(outputs)
        restored[order] = outputs
        return restored


class Tagger(Predictor):
    """A model that answers once for every word; words of an input are what stands between its spaces."""

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """As of every predictor, and which token is each word's first."""
        batch = super().encode(inputs)
        first = first_tokens(batch.pop(OFFSETS), inputs)
        return {**batch, _FIRST_TOKENS: first}

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """``(rows, words, classes)`` of one encoded batch; zeros after a text's last word, and for words cut off."""
        own = {name: array for name, array in batch.items() if name != _FIRST_TOKENS}
        return at_words(super().forward(own), batch[_FIRST_TOKENS])


class Answerer(Predictor):
    """A model that marks the part of a context that answers a question; an input is a pair of them."""

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """``(rows, 1 + pieces, 2)`` of one encoded batch, see `questions`; a few windows at a time."""
        own = {name: array for name, array in batch.items() if name not in (STARTS, ENDS, WINDOWS)}
        parts = range(0, len(batch[WINDOWS]), _AT_ONCE)
        said = [super(Answerer, self).forward({k: v[i : i + _AT_ONCE] for k, v in own.items()}) for i in parts]
        return at_pieces(np.concatenate(said), batch[STARTS], batch[ENDS], batch[WINDOWS])


class Embedder(Predictor):
    """A model whose answer is a vector for each text; an input is a text, or a pair, which has two."""

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """As of every predictor, and how many texts a row has."""
        return {**super().encode(inputs), _TEXTS_A_ROW: np.array(len(texts_of(inputs)) // max(len(inputs), 1))}

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """``(rows, dimensions)`` of one encoded batch, or ``(rows, 2, dimensions)`` of pairs."""
        own = {name: array for name, array in batch.items() if name != _TEXTS_A_ROW}
        states = super().forward(own)
        mask = own.get("attention_mask", np.ones(states.shape[:2], dtype=np.int64))
        vectors = finish(pool(states, mask, str(self.bundle.spec["pooling"])), self.bundle.spec)
        return vectors if batch[_TEXTS_A_ROW] == 1 else vectors.reshape(-1, 2, vectors.shape[1])


def load(directory: str | Path, *, threads: int, device: str = "cpu", verify: bool = True) -> Predictor | TextGenerator:
    """A predictor over the bundle in ``directory``.

    Args:
        directory: The folder with ``slim.json``.
        threads: Threads to compute with, >= 1.
        device: ``cpu``, or ``cuda`` for a torch bundle.
        verify: False leaves out the comparison with the manifest, for a caller that has just done it.

    Raises:
        ValueError: ``threads`` is below 1.
        BundleError: The folder is not a sound bundle, or of a backend unknown here.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    bundle = read_bundle(directory, verify=verify)
    try:
        task = tasks.find(bundle.task)
        if bundle.backend in ("onnxruntime", "openvino") and device != "cpu":
            raise BundleError(f"An {bundle.backend} bundle runs on cpu, not on {device!r}.")
        found = _OPENERS[task.KIND](bundle, task, threads, device)
    except (BundleError, ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers and onnxruntime raise kinds of their own, some of them plain Exception
        raise BundleError(f"{bundle.directory} can't be opened: {error}") from error
    if found is None:
        raise BundleError(f"{bundle.directory} is for the backend {bundle.backend!r}, which can't run {bundle.task}.")
    return found


def _open_encoder(
    bundle: Bundle, task: ModuleType, threads: int, device: str, *, make: type[Predictor] = Predictor
) -> Predictor | None:
    """A model that answers in one pass."""
    offsets = make in (Tagger, Answerer)
    if bundle.backend in ("onnxruntime", "openvino"):
        encoder = open_encoder(bundle.directory, bundle.inputs, bundle.spec, offsets=offsets)
        if bundle.backend == "openvino":
            graph = bundle.directory / openvino_engine.MODEL
            opened = openvino_engine.OpenVinoEngine(graph, outputs=task.OUTPUTS, threads=threads)
            return make(bundle, encoder, opened, threads)
        return make(
            bundle, encoder, OnnxEngine(bundle.directory / MODEL, outputs=task.OUTPUTS, threads=threads), threads
        )
    if bundle.backend == "torch":
        model, compile_mode = _torch_model(bundle, task, device)
        engine = TorchEngine(model, outputs=task.OUTPUTS, threads=threads, compile_mode=compile_mode)
        encode = torch_encoder(bundle.directory, bundle.inputs, bundle.spec, offsets=offsets)
        return make(bundle, encode, engine, threads)
    return None


def _open_generator(bundle: Bundle, task: ModuleType, threads: int, device: str) -> TextGenerator | None:
    """A language model."""
    decoder = _decoder(bundle, task, threads, device)
    if decoder is None:
        return None
    prompts = _prompts(bundle)
    engine = bundle.content.get("engine", {})
    guessing: Callable[[], Guess] | None = None
    if "lookup" in engine:
        guessing = partial(lookup, **engine["lookup"])
    elif (options := engine.get("assistant")) is not None:
        other = read_bundle(bundle.directory / ASSISTANT, verify=False)  # the manifest of the whole covers it
        smaller = _decoder(other, task, threads, device)
        if smaller is None:
            return None
        if options["same_vocabulary"]:
            guessing = partial(Drafting, smaller, tokens=options["tokens"], size=prompts.size)
        else:
            theirs = _prompts(other)
            guessing = partial(through_texts, smaller, prompts, theirs, tokens=options["tokens"])
    return TextGenerator(bundle, prompts, decoder, threads, guessing=guessing)


def _prompts(bundle: Bundle) -> PromptFile:
    return PromptFile(bundle.directory / "tokenizer.json", bundle.inputs, chat=bool(bundle.spec.get("chat")))


def _decoder(bundle: Bundle, task: ModuleType, threads: int, device: str) -> Decoder | None:
    if bundle.backend == "onnxruntime":
        return OnnxDecoder(bundle.directory / MODEL, threads=threads)
    if bundle.backend == "openvino":
        return OpenVinoDecoder(bundle.directory / openvino_engine.MODEL, threads=threads)
    if bundle.backend == "torch":
        model, compile_mode = _torch_model(bundle, task, device)
        length = int(bundle.spec["max_length"])
        return TorchDecoder(model, threads=threads, compile_mode=compile_mode, length=length)
    return None


def _torch_model(bundle: Bundle, task: ModuleType, device: str) -> tuple[Any, str | None]:
    """The transformers model of a torch bundle, and the mode to compile it in."""
    model = load_model(bundle.directory, task.LIBRARY_CLASS).to(device).eval()
    options = bundle.content.get("engine", {})
    if "int8" in options:
        model = to_int8(model, **options["int8"])
    return model, options.get("compile")


_OPENERS: dict[str, Callable[[Bundle, ModuleType, int, str], Predictor | TextGenerator | None]] = {
    "encoder": _open_encoder,
    "tagger": partial(_open_encoder, make=Tagger),
    "answerer": partial(_open_encoder, make=Answerer),
    "embedder": partial(_open_encoder, make=Embedder),
    "generator": _open_generator,
}
