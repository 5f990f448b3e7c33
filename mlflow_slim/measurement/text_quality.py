"""How near written texts come to right ones: exact match, token F1, ROUGE-L, chrF; and how much they repeat."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["normalized", "repetition", "text_scores", "token_f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """A text as SQuAD's metrics compare it: lower case, without punctuation and English articles, single blanks.

    >>> normalized("The  Cat, sat.")
    'cat sat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def text_scores(
    texts: Sequence[str], references: Sequence[str] | npt.NDArray[np.str_]
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of each written text against the right one, ``(rows,)`` each, 0 to 1.

    ``exact_match`` and ``token_f1`` are SQuAD's (Rajpurkar et al. 2016); ``rouge_l`` is ROUGE-L's F-measure (Lin 2004)
    of rouge-score without stemming, over any script's words; ``chrf`` is sacrebleu's chrF (Popovic 2015), a sentence
    at a time, divided by 100.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF

    class Words:
        """rouge-score's own tokenizer knows a to z and digits only."""

        def tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+", text.lower())

    rouge, chrf = RougeScorer(["rougeL"], tokenizer=Words()), CHRF()
    pairs = [(text, str(reference)) for text, reference in zip(texts, references, strict=True)]
    return {
        "exact_match": np.array([float(normalized(text) == normalized(right)) for text, right in pairs]),
        "token_f1": np.array([token_f1(text, right) for text, right in pairs]),
        "rouge_l": np.array([rouge.score(right, text)["rougeL"].fmeasure for text, right in pairs]),
        "chrf": np.array([chrf.sentence_score(text, [right]).score / 100 for text, right in pairs]),
    }


def token_f1(text: str, reference: str) -> float:
    """SQuAD's F1 of the words of two texts, 0 to 1.

    >>> token_f1("The cat sat.", "a cat sat down")
    0.8
    """
    found, right = normalized(text).split(), normalized(reference).split()
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))


def repetition(texts: Sequence[str], words: int = 4) -> float:
    """Share of runs of four words that stood in the same text before; 0 where no text is that long.

    >>> repetition(["a b c d a b c d"])
    0.2
    """
    total = repeated = 0
    for text in texts:
        parts = text.split()
        runs = [tuple(parts[i : i + words]) for i in range(len(parts) - words + 1)]
        total += len(runs)
        repeated += len(runs) - len(set(runs))
    return repeated / total if total else 0.0
