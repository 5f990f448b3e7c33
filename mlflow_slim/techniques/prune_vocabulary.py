"""``prune.vocabulary``: tokens that the training rows don't use go, and with them their rows of the embeddings.

Half of a small encoder is embeddings of words that a task never sees (Abdaoui et al. 2020, arXiv:2010.05609, do so
for languages). Texts made of known words are answered exactly as before; other words are cut into smaller pieces and
letters, so quality can fall on texts unlike the training rows. Nothing is computed faster: the gain is size and memory.
"""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..artifact import OptimizedModel, StepRecord
from ..errors import ModelError
from ..interfaces import Context
from ..vocabulary import trim

__all__ = ["PruneVocabulary"]

logger = logging.getLogger(__name__)
_CHECKED_ROWS = 64


class PruneVocabulary(BaseModel):
    """Keeps the tokens that training rows use, special tokens and single characters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = "prune.vocabulary"

    min_count: int = Field(1, ge=1, description="Training rows that must hold a token for it to stay.")
    keep_first: int = Field(
        0, ge=0, description="Tokens to keep from the start of the vocabulary too; BERT's are ordered by frequency."
    )

    def check(self, source: OptimizedModel) -> None:
        """Raises ModelError when there are no tokens."""
        if not hasattr(source.processor, "get_vocab"):
            raise ModelError(f"prune.vocabulary is for texts, and {source.task} has no tokens. Leave it out.")

    def apply(self, source: OptimizedModel, context: Context) -> OptimizedModel:
        """The model with a smaller vocabulary; ``source`` is left as it is.

        Raises:
            ModelError: The tokenizer or the model can't be trimmed.
        """
        import torch

        self.check(source)
        tokenizer, before = source.processor, int(source.model.get_input_embeddings().num_embeddings)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json, so its vocabulary can't be trimmed.")
        rows = context.task.encode(tokenizer, context.data.train.inputs, source.spec)
        counts = Counter(token for row in rows for token in set(row["input_ids"]))
        wanted = {token for token, count in counts.items() if count >= self.min_count}
        wanted |= set(range(min(self.keep_first, before)))
        content, kept = trim(json.loads(tokenizer.backend_tokenizer.to_str()), wanted)
        kept = [old for old in kept if old < before]
        smaller = _rebuilt(tokenizer, content, context.workdir)
        model = copy.deepcopy(source.model)
        embeddings = model.get_input_embeddings()
        table = torch.nn.Embedding(
            len(kept), embeddings.embedding_dim, padding_idx=_new_id(kept, embeddings.padding_idx)
        )
        table.weight = torch.nn.Parameter(embeddings.weight.detach()[torch.tensor(kept)].clone())
        model.set_input_embeddings(table.to(dtype=embeddings.weight.dtype))
        model.config.vocab_size = len(kept)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
            if isinstance(getattr(model.config, name, None), int):
                setattr(model.config, name, _new_id(kept, getattr(model.config, name)))
        pruned = replace(source, model=model.eval(), processor=smaller)
        self._check_same(source, pruned, context, counts)
        notes = {"tokens_kept": len(kept), "tokens_before": before}
        logger.info("prune.vocabulary: %d of %d tokens kept", len(kept), before)
        return source.after(StepRecord(self.name, self.model_dump(mode="json"), notes), pruned.model, processor=smaller)

    def _check_same(self, source: OptimizedModel, pruned: OptimizedModel, context: Context, counts: Any) -> None:
        """Rows whose tokens were all kept must be answered as before, bit for bit but for the order of sums."""
        import numpy as np

        encode = context.task.encode
        inputs = context.data.train.inputs
        rows = encode(source.processor, inputs, source.spec)
        same = [i for i, row in enumerate(rows) if all(counts[token] >= self.min_count for token in row["input_ids"])]
        chosen = [inputs[i] for i in same[:_CHECKED_ROWS]]
        if not chosen:
            return
        wanted, found = (
            context.task.outputs(model.model, model.processor, chosen, source.spec) for model in (source, pruned)
        )
        if not np.allclose(wanted, found, rtol=1e-3, atol=1e-4):
            raise ModelError(
                f"With a smaller vocabulary, {type(source.model).__name__} answers rows differently whose tokens "
                f"were all kept (by {np.abs(wanted - found).max():.2g}). Its tokenizer or positions depend on token "
                "numbers; leave prune.vocabulary out."
            )


def _new_id(kept: list[int], old: int | None) -> int | None:
    return kept.index(old) if old is not None and old in kept else None


def _rebuilt(tokenizer: Any, content: dict[str, Any], folder: Path) -> Any:
    """The tokenizer with another ``tokenizer.json``, by the way that any tool loads it."""
    from transformers import AutoTokenizer

    from ..runtime.torch_engine import quiet_transformers

    place = folder / "tokenizer"
    with quiet_transformers():
        tokenizer.save_pretrained(str(place))
        for path in place.iterdir():  # vocab.txt and the like still hold all tokens
            if path.name not in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                path.unlink()
        configuration = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
        configuration.pop("added_tokens_decoder", None)  # numbers them as before
        (place / "tokenizer_config.json").write_text(json.dumps(configuration), encoding="utf-8")
        (place / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
