"""``speculate.assistant``: a smaller model guesses tokens ahead, and the model itself checks them in one pass.

What is written is what the model would have written anyway. The smaller one pays where it is much faster and often
right: a distilled or pruned form of the model, or a smaller one of its family. With another vocabulary, texts are
passed between the two instead of tokens. Source: Leviathan et al. 2023, arXiv:2211.17192, and for other vocabularies
Timor et al. 2025, arXiv:2502.05202, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ConfigError
from ..interfaces import Backend, Context
from ..runtime.generation import ASSISTANT
from ..speculation import Speculation, speculate

__all__ = ["SpeculateAssistant"]


class SpeculateAssistant(Speculation):
    """Guesses the next tokens with a smaller model."""

    name: ClassVar[str] = "speculate.assistant"

    assistant: str | None = Field(None, description="The smaller model (folder, hub id, URI). There is no default.")
    tokens: int = Field(4, ge=1, le=64, description="Tokens guessed at a time, at most.")

    def check(self, source: OptimizedModel) -> None:
        """Raises when no assistant is named or the model writes nothing."""
        if self.assistant is None:
            raise ConfigError(
                "speculate.assistant needs a smaller model. Write steps.speculate.assistant=<folder, hub id or URI>, "
                "or use speculate.lookup, which needs none."
            )
        super().check(source)

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """``source`` as it is, in folders with the assistant in them.

        Raises:
            ConfigError: No assistant is named.
            ModelError: It isn't a language model, or the assistant can't be loaded.
            ExportError: With guessing, the model writes something else.
        """
        self.check(source)
        assert self.assistant is not None, "checked"
        helper = context.load_model(self.assistant)
        same = helper.processor.get_vocab() == source.processor.get_vocab()

        def prepare(backend: Backend, folder: Path) -> Mapping[str, Any]:
            backend.export(helper, folder / ASSISTANT, context.data.validation.inputs[: context.task.check_rows])
            return {"assistant": {"tokens": self.tokens, "same_vocabulary": same}}

        builds, notes = speculate(source, context, prepare)
        found: dict[str, Any] = {**notes, "same_vocabulary": same}
        found["assistant_parameters_m"] = round(sum(weight.numel() for weight in helper.model.parameters()) / 1e6, 3)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), found), source.model, builds=builds)
