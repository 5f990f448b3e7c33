"""Smaller vocabularies: a ``tokenizer.json`` that knows only some of its tokens, renumbered.

What is kept always: special tokens, and every token that is a single character or byte, so that no text becomes
unknown that was not before. Texts made of kept tokens are cut exactly as before: longest-match (WordPiece) and
most-likely (Unigram) choices stay the choice when others are gone, and for merges (BPE) those inside kept tokens stay.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import ModelError

__all__ = ["trim"]


def trim(tokenizer: Mapping[str, Any], wanted: Collection[int]) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer that knows only the tokens ``wanted`` and those it can't do without.

    Args:
        tokenizer: The content of ``tokenizer.json``; left as it is.
        wanted: Ids of tokens to keep.

    Returns:
        The content of the smaller one, and the old ids in the order of the new ones, ascending.

    Raises:
        ModelError: Its model is none of WordPiece, Unigram and BPE.
    """
    content = copy.deepcopy(dict(tokenizer))
    model = content["model"]
    kind = model.get("type")
    if kind in ("WordPiece", "BPE"):
        tokens: dict[int, str] = {number: token for token, number in model["vocab"].items()}
    elif kind == "Unigram":
        tokens = {number: entry[0] for number, entry in enumerate(model["vocab"])}
    else:
        raise ModelError(f"Can't trim a vocabulary of the kind {kind!r}. Known: WordPiece, Unigram, BPE.")
    specials = {entry["id"]: entry["content"] for entry in content.get("added_tokens") or []}
    prefix = model.get("continuing_subword_prefix") or ""
    letters = {n for n, token in tokens.items() if len(token.removeprefix(prefix)) == 1 or _is_byte(token)}
    unknown = {n for n, token in tokens.items() if token == model.get("unk_token")}
    if kind == "Unigram" and model.get("unk_id") is not None:
        unknown.add(model["unk_id"])
    kept = set(wanted) | specials.keys() | letters | unknown
    if kind == "BPE":
        numbers = {token: number for number, token in tokens.items()}
        merges = [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]]
        ranks = {merge: rank for rank, merge in enumerate(merges)}
        parts = {part for number in kept & tokens.keys() for part in _parts(tokens[number], ranks)}
        kept |= {numbers[part] for part in parts if part in numbers}
        names = {tokens[number] for number in kept & tokens.keys()}
        model["merges"] = [list(merge) for merge in merges if {*merge, "".join(merge)} <= names]
    order = sorted(kept & (tokens.keys() | specials.keys()))
    new = {old: number for number, old in enumerate(order)}
    if kind == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {tokens[old]: number for old, number in new.items() if old in tokens}
    for entry in content.get("added_tokens") or []:
        entry["id"] = new[entry["id"]]
    if content.get("padding"):
        content["padding"]["pad_id"] = new[content["padding"]["pad_id"]]
    if content.get("post_processor"):
        _renumber(content["post_processor"], new)
    return content, order


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _parts(token: str, ranks: Mapping[tuple[str, ...], int]) -> set[str]:
    """The token and everything that is merged on the way to it."""
    symbols = list(token)
    seen = set(symbols)
    while len(symbols) > 1:
        pairs = [(ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.add(symbols[at])
    return seen | {token}


def _renumber(part: Any, new: Mapping[int, int]) -> None:
    """Writes new ids of special tokens into a post-processor, whatever it is made of."""
    if isinstance(part, list):
        for item in part:
            _renumber(item, new)
        return
    if not isinstance(part, dict):
        return
    for name in ("sep", "cls"):  # ["</s>", 2]
        if isinstance(part.get(name), list) and len(part[name]) == 2:
            part[name][1] = new[part[name][1]]
    specials: Any = part.get("special_tokens")
    if isinstance(specials, dict):
        for entry in specials.values():
            entry["ids"] = [new[number] for number in _ids(entry)]
        return
    for value in part.values():
        _renumber(value, new)


def _ids(entry: Mapping[str, Any]) -> Sequence[int]:
    return list(entry["ids"])
