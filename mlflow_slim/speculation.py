"""Turning guessing on in exported language models, and seeing that it changes no token: what speculate.* share."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from . import bundle
from .artifact import OptimizedModel
from .errors import ExportError, ModelError
from .interfaces import Backend, Context
from .runtime import tasks

__all__ = ["Speculation", "speculate"]

_PROMPTS = 8
_SHOWN = 5
_STEPS = 16

Prepare = Callable[[Backend, Path], Mapping[str, Any]]
"""Puts into an exported folder what guessing needs; gives the engine options that turn it on."""


class Speculation(BaseModel):
    """What the techniques that guess ahead have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]
    generates: ClassVar[bool] = True
    works_on_builds: ClassVar[bool] = True
    """It changes how a model is run and not the model, so it may follow a step whose outcome is built for runtimes."""

    def check(self, source: OptimizedModel) -> None:
        """Raises ModelError when the model writes nothing."""
        if tasks.find(source.task).KIND != "generator":
            raise ModelError(f"{self.name} is for models that write texts, not for {source.task}. Leave it out.")
        if not int(source.spec["max_new_tokens"]):
            raise ModelError(f"{self.name} needs answers. Write generate.max_new_tokens of 1 or more.")


def speculate(
    source: OptimizedModel, context: Context, prepare: Prepare
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Folders of ``source`` for every runtime of the context that are run with guessing, and what it does in each.

    Raises:
        ExportError: With guessing, the model writes something else.
    """
    builds, notes = {}, {}
    for name, backend in context.backends.items():
        folder = context.workdir / name
        if source.builds:
            shutil.copytree(source.builds[name], folder)
        else:
            backend.export(source, folder, context.data.validation.inputs[: context.task.check_rows])
        plain: Any = backend.load(folder, threads=context.threads)
        bundle.set_engine(folder, prepare(backend, folder))
        notes[name] = _compare(backend, plain, folder, context)
        builds[name] = folder
    return builds, notes


def _compare(backend: Backend, plain: Any, folder: Path, context: Context) -> dict[str, Any]:
    """What guessing does to passes and time, having seen that it changes no token."""
    guessing: Any = backend.load(folder, threads=context.threads)
    guessed = right = passes = written = 0
    seconds = [0.0, 0.0]

    def count(asked: int, kept: int) -> None:
        nonlocal guessed, right, passes
        guessed, right, passes = guessed + asked, right + kept, passes + 1

    rows = context.data.validation.inputs[:_PROMPTS]
    texts = []
    for row in rows:
        ids = plain.encode([row])["input_ids"][0]
        tokens = []
        for place, (model, told) in enumerate(((plain, None), (guessing, count))):
            start = time.perf_counter()
            tokens.append(list(model.tokens(ids, count=told)))
            seconds[place] += time.perf_counter() - start
        if tokens[0] != tokens[1]:
            at = next(i for i, (one, other) in enumerate(zip(*tokens, strict=True)) if one != other)
            raise ExportError(
                f"With guessing, {backend.name} writes other tokens from place {at} on: "
                f"{tokens[1][at : at + _SHOWN]} and not {tokens[0][at : at + _SHOWN]}. Checking several tokens in "
                "one pass rounds otherwise than one by one, so the promise of the same text can't be kept."
            )
        written += len(tokens[0])
        texts.append((ids, tokens[0]))
    per_pass = written / max(passes, 1)
    dear = _seconds_of_a_guess(guessing.new_guess(), *texts[0]) / (seconds[0] / written)
    return {
        "guessed": guessed,
        "acceptance_rate": round(right / guessed, 4) if guessed else 0.0,
        "tokens_per_pass": round(per_pass, 3),
        "cost_of_a_guess": round(dear, 4),  # of a pass of the model
        # Leviathan et al. 2023, theorem 3.8, with counted means: a pass that checks costs as much as one of one token
        "speedup_predicted": round(per_pass / (1 + dear * guessed / max(passes, 1)), 3),
        "speedup_on_validation": round(seconds[0] / seconds[1], 3),
        "identical_prompts": len(rows),
    }


def _seconds_of_a_guess(guess: Any, ids: Any, tokens: list[int]) -> float:
    """Time of guessing one token along a prompt's answer."""
    history = [*(int(token) for token in ids if token >= 0), *map(int, tokens)]
    first = len(history) - len(tokens)
    guesses, start = 0, time.perf_counter()
    for length in range(first, min(len(history), first + _STEPS)):
        guesses += len(guess(history[:length], _STEPS))
    return (time.perf_counter() - start) / max(guesses, 1)
