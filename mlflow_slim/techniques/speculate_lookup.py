"""``speculate.lookup``: tokens ahead are guessed from what stands in the prompt, and checked by the model itself.

Where an answer repeats parts of its prompt (summaries, edits, quotes) several tokens come out of one pass. What is
written is what the model would have written anyway. Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023,
arXiv:2211.17192, for the checking.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ..artifact import OptimizedModel, StepRecord
from ..interfaces import Context
from ..speculation import Speculation, speculate

__all__ = ["SpeculateLookup"]


class SpeculateLookup(Speculation):
    """Guesses the next tokens by looking up the last ones in the text so far."""

    name: ClassVar[str] = "speculate.lookup"

    tokens: int = Field(8, ge=1, le=64, description="Tokens guessed at a time, at most.")
    ngram: int = Field(
        3, ge=1, le=16, description="Last tokens that must stand in the text before; fewer are tried too."
    )

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` as it is, in folders that are run with guessing.

        Raises:
            ModelError: It isn't a language model.
            ExportError: With guessing, the model writes something else.
        """
        self.check(source)
        engine = {"lookup": {"tokens": self.tokens, "ngram": self.ngram}}
        builds, notes = speculate(source, context, lambda _, __: engine)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), source.model, builds=builds)
