"""``speculate.lookup``: tokens ahead are guessed from what stands in the prompt, and checked by the model itself.

Where an answer repeats parts of its prompt (summaries, edits, quotes) several tokens come out of one pass. What is
written is what the model would have written anyway. Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023,
arXiv:2211.17192, for the checking.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from .. import bundle
from ..artifact import OptimizedModel, StepRecord
from ..errors import ExportError, ModelError
from ..interfaces import Backend, Context
from ..runtime import tasks

__all__ = ["SpeculateLookup"]

_PROMPTS = 8
_SHOWN = 5


class SpeculateLookup(BaseModel):
    """Guesses the next tokens by looking up the last ones in the text so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "speculate.lookup"
    generates: ClassVar[bool] = True
    works_on_builds: ClassVar[bool] = True
    """It changes how a model is run and not the model, so it may follow a step whose outcome is built for runtimes."""

    tokens: int = Field(8, ge=1, le=64, description="Tokens guessed at a time, at most.")
    ngram: int = Field(
        3, ge=1, le=16, description="Last tokens that must stand in the text before; fewer are tried too."
    )

    def check(self, source: OptimizedModel) -> None:
        """Raises when the model writes nothing."""
        if tasks.find(source.task).KIND != "generator":
            raise ModelError(f"speculate.lookup is for models that write texts, not for {source.task}. Leave it out.")
        if not int(source.spec["max_new_tokens"]):
            raise ModelError("speculate.lookup needs answers. Write generate.max_new_tokens of 1 or more.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` as it is, in folders that are run with guessing.

        Raises:
            ModelError: It isn't a language model.
            ExportError: With guessing, the model writes something else.
        """
        self.check(source)
        builds: dict[str, Path] = {}
        notes: dict[str, Any] = {}
        for name, backend in context.backends.items():
            folder = context.workdir / name
            if source.builds:
                shutil.copytree(source.builds[name], folder)
            else:
                backend.export(source, folder, context.data.validation.inputs[: context.task.check_rows])
            notes[name] = self._compare(backend, folder, context)
            builds[name] = folder
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), source.model, builds=builds)

    def _compare(self, backend: Backend, folder: Path, context: Context) -> dict[str, Any]:
        """Turns guessing on in ``folder``, having seen that it changes no token; what it did to passes and time."""
        plain: Any = backend.load(folder, threads=context.threads)
        bundle.set_engine(folder, {"lookup": {"tokens": self.tokens, "ngram": self.ngram}})
        guessing: Any = backend.load(folder, threads=context.threads)
        guessed = right = passes = written = 0
        seconds = [0.0, 0.0]

        def count(asked: int, kept: int) -> None:
            nonlocal guessed, right, passes
            guessed, right, passes = guessed + asked, right + kept, passes + 1

        for row in context.data.validation.inputs[:_PROMPTS]:
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
        return {
            "guessed": guessed,
            "acceptance_rate": round(right / guessed, 4) if guessed else 0.0,
            "tokens_per_pass": round(written / max(passes, 1), 3),
            "speedup_on_validation": round(seconds[0] / seconds[1], 3),
            "identical_prompts": len(context.data.validation.inputs[:_PROMPTS]),
        }
