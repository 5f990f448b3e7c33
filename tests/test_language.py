"""Distributions against the formula, and misspelt prompts that stay what they are otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_slim.measurement.language import divergences, misspelt, misspelt_prompt


def test_divergences_are_those_of_the_formula_place_by_place() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7))
    p, q = (part - np.log(np.exp(part).sum(-1, keepdims=True)) for part in logits)
    found = divergences([p[:2].astype(np.float32), p[2:].astype(np.float32)], [q[:2], q[2:]])  # type: ignore[list-item]
    np.testing.assert_allclose(found, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4)
    wider = np.concatenate([p, np.full((5, 3), -1e9)], axis=1)
    assert divergences([p], [wider]) == pytest.approx(np.zeros(5))  # type: ignore[list-item]


@given(st.text(max_size=200), st.integers(0, 5))
def test_letters_are_swapped_and_none_is_lost(text: str, seed: int) -> None:
    found = misspelt(text, seed=seed)
    assert sorted(found) == sorted(text)
    assert found == misspelt(text, seed=seed)


def test_a_tenth_of_the_words_change() -> None:
    text = " ".join(f"word{chr(97 + i)}xyz" for i in range(20))
    same = [one == other for one, other in zip(text.split(), misspelt(text, seed=1).split(), strict=True)]
    assert 18 <= sum(same) <= 20


def test_of_a_chat_the_last_message_is_misspelt() -> None:
    chat = [{"role": "system", "content": "weather"}, {"role": "user", "content": "weather"}]
    found = misspelt_prompt(chat, seed=0)
    assert found[0] == chat[0]
    assert sorted(found[1]["content"]) == sorted("weather")
    assert misspelt_prompt("weather", seed=0) == found[1]["content"]
