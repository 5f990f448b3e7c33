"""Secrets are taken out; what only looks a little like one stays."""

from __future__ import annotations

import pytest

from mlflow_slim.tracking import scrub
from mlflow_slim.tracking.scrub import one_line, scrub_value

A = "aZ3" * 12

# Built from parts, so that no scanner takes this file for a leak.
SECRETS = [
    ("postgresql://me:hunter2@db/x", "hunter2"),
    ("https://me:p@ss@host/x", "p@ss"),
    ("https://" + A + "@github.example/o/r.git", A),
    ("s3://bucket/x?X-Amz-Signature=" + A + "&b=1", A),
    ("https://h/x?api_key=" + A, A),
    ("hf_" + A, A),
    ("ghp_" + A, A),
    ("github_pat_" + A, A),
    ("AKIA" + "Q" * 16, "Q" * 16),
    ("Authorization: Bearer " + A, A),
    ("authorization: basic " + A, A),
    ("password='hunter2'", "hunter2"),
    ('{"secret": "hunter2"}', "hunter2"),
    ("--api-key=hunter2", "hunter2"),
    ("eyJ" + A + "." + A + "." + A, A),
    ("-----BEGIN RSA PRIVATE KEY-----\n" + A + "\n-----END RSA PRIVATE KEY-----", A),
    ("-----BEGIN PRIVATE KEY-----\n" + A, A),
]

HARMLESS = [
    "models:/reviews@champion",
    "sqlite:////home/me/mlflow.db",
    "https://host:5000/#/experiments/1/runs?viewStateShareKey=slim-tradeoffs",
    "distill.logits+quantize.dynamic@onnxruntime",
    "HF_HUB_OFFLINE=1 hf_hub_download",
    "see me@example.org",
    "num_tokens: 128, max_tokens=4, tokenizer: fast",
    "the bearer of news",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_masked(text: str, secret: str) -> None:
    clean = scrub(f"before {text} after", environ={})
    assert secret not in clean and "***" in clean and clean.startswith("before ")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert scrub(text, environ={}) == text


def test_scrubbing_twice_changes_nothing() -> None:
    once = scrub(" ".join(text for text, _ in SECRETS), environ={})
    assert scrub(once, environ={}) == once


def test_values_of_telling_variables_are_masked_in_every_form() -> None:
    environ = {"X_TOKEN": 'a"b/c d', "DB_PASSWORD": "hunter22", "AWS_SECRET_ACCESS_KEY": "abcdefgh"}
    text = 'a"b/c d a%22b%2Fc%20d a\\"b/c d hunter22 abcdefgh'
    assert scrub(text, environ=environ) == "*** *** *** *** ***"


def test_harmless_variables_and_short_values_are_no_secrets() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "false-ish", "SOME_KEY": "1", "PATH": "/usr/bin/x"}
    assert scrub("false-ish 1 /usr/bin/x", environ=environ) == "false-ish 1 /usr/bin/x"


def test_a_secret_is_never_cut_in_half() -> None:
    assert A[:5] not in one_line("x" * 490 + " hf_" + A, limit=500)


def test_nested_values_are_scrubbed() -> None:
    assert scrub_value({"a": [{"b": "ftp://u:p@h"}, 1, None]}) == {"a": [{"b": "ftp://***@h"}, 1, None]}
