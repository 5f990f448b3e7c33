"""Quality figures against hand-made numbers and scikit-learn, odd class names, and what is undefined."""

import math
import os
import re
import socket

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlflow_slim.errors import MeasurementError
from mlflow_slim.measurement import quality, stats

# A busy machine must not fail a test by being slow.
calm = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def score(logits, references, labels=None, multi_label=False):
    labels = labels or [f"class {i}" for i in range(np.shape(logits)[1])]
    return quality.classification_quality(logits, references, labels=labels, multi_label=multi_label)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 4, 300)
    return rng.normal(size=(300, 4)) + 2 * np.eye(4)[references], references


def test_every_single_label_metric_is_there_with_a_direction(rows):
    figures = score(*rows, labels=["a", "b", "c", "d"])
    singles = {"accuracy", "f1_macro", "mcc", "expected_calibration_error", "log_loss", "brier"}
    assert set(figures) == singles | {"f1/a", "f1/b", "f1/c", "f1/d"}
    assert quality.higher_is_better("f1/a") and not quality.higher_is_better("log_loss")
    assert {k for k, up in quality.HIGHER_IS_BETTER.items() if not up} == {
        "log_loss",
        "brier",
        "hamming_loss",
        "expected_calibration_error",
        "perplexity",
        "bits_per_byte",
        "repetition",
    }
    with pytest.raises(MeasurementError, match=r"no quality metric 'acuracy'\. Known: accuracy"):
        quality.higher_is_better("acuracy")


def test_figures_agree_with_scikit_learn(rows):
    logits, references = rows
    figures, predicted = score(*rows), logits.argmax(axis=1)
    p = quality.probabilities(logits, multi_label=False)
    assert figures["accuracy"] == pytest.approx((predicted == references).mean())
    assert figures["f1_macro"] == pytest.approx(sk.f1_score(references, predicted, average="macro"))
    assert figures["mcc"] == pytest.approx(sk.matthews_corrcoef(references, predicted))
    assert figures["log_loss"] == pytest.approx(-np.log(p[np.arange(300), references]).mean())
    assert figures["f1/class 2"] == pytest.approx(sk.f1_score(references, predicted, average=None)[2])
    for name in ("accuracy", "f1_macro", "mcc"):  # what the bootstrap resamples is what is reported
        assert stats.LABEL_METRICS[name](predicted, references) == pytest.approx(figures[name])


def test_brier_and_log_loss_of_two_rows_by_hand():
    logits = np.log([[0.8, 0.2], [0.4, 0.6]])
    figures = score(logits, [0, 0])
    assert figures["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert figures["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy():
    confident = np.tile(np.log([0.9, 0.1]), (100, 1))
    right = np.zeros(100, dtype=int)
    assert score(confident, right)["expected_calibration_error"] == pytest.approx(0.1)
    right[:10] = 1
    assert score(confident, right)["expected_calibration_error"] == pytest.approx(0.0, abs=1e-12)
    two = np.concatenate([np.tile(np.log([0.9, 0.1]), (50, 1)), np.tile(np.log([0.6, 0.4]), (50, 1))])
    wrong = np.repeat([1, 0], 50)  # 90 % sure and never right; 60 % sure and always right
    assert score(two, wrong)["expected_calibration_error"] == pytest.approx((0.9 + 0.4) / 2)


@calm
@given(st.integers(1, 60), st.integers(0, 1000))
def test_calibration_error_does_not_depend_on_the_order_of_rows(n, seed):
    rng = np.random.default_rng(seed)
    p = np.round(rng.dirichlet([1, 1, 1], n), 1)
    r, order = rng.integers(0, 3, n), rng.permutation(n)
    ece = quality._expected_calibration_error
    assert ece(p, r) == pytest.approx(ece(p[order], r[order]))
    assert 0 <= ece(p, r) <= 1


def test_probabilities_stay_finite_for_extreme_logits():
    extreme = np.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], dtype=np.float32)
    assert quality.probabilities(extreme, multi_label=False).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert quality.probabilities(extreme, multi_label=True).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert math.isfinite(score(extreme, [1, 0, 0])["log_loss"])  # sure and wrong


def test_a_class_absent_from_the_references_has_no_f1_and_no_weight(rows):
    logits, references = rows
    kept = references != 3
    figures = score(logits[kept], references[kept], labels=["a", "b", "c", "d"])
    assert "f1/d" not in figures
    assert (logits[kept].argmax(axis=1) == 3).any()  # it is predicted though
    assert figures["f1_macro"] == pytest.approx(np.mean([figures[f"f1/{c}"] for c in "abc"]))


def test_references_of_one_class_have_no_mcc():
    figures = score(np.eye(3), [1, 1, 1])
    assert "mcc" not in figures
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert "f1/class 0" not in figures


def test_multi_label_figures_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    references = rng.integers(0, 2, (200, 3))
    references[:5] = 0
    logits = rng.normal(size=(200, 3)) + 2 * (references - 0.5)
    logits[:5] = -1
    figures = score(logits, references, labels=["x", "y", "z"], multi_label=True)
    predicted, p = (logits >= 0).astype(int), 1 / (1 + np.exp(-logits))
    names = {"exact_match", "f1_macro", "f1_micro", "f1_samples", "hamming_loss", "log_loss", "f1/x", "f1/y", "f1/z"}
    assert set(figures) == names
    assert figures["exact_match"] == pytest.approx((predicted == references).all(axis=1).mean())
    assert figures["hamming_loss"] == pytest.approx((predicted != references).mean())
    assert figures["f1_micro"] == pytest.approx(sk.f1_score(references, predicted, average="micro"))
    expected = -np.where(references == 1, np.log(p), np.log(1 - p)).mean()
    assert figures["log_loss"] == pytest.approx(expected)
    assert figures["f1_samples"] == pytest.approx(  # rows without labels, rightly given none, count as right
        sk.f1_score(references, predicted, average="samples", zero_division=1.0)
    )


def test_a_single_column_of_labels_is_scored():
    figures = score([[2.0], [-1.0], [1.0]], [[1], [0], [0]], multi_label=True)
    assert figures["exact_match"] == pytest.approx(2 / 3)
    assert figures["hamming_loss"] == pytest.approx(1 / 3)
    assert figures["f1/class 0"] == figures["f1_micro"] == figures["f1_macro"] == pytest.approx(2 / 3)
    assert figures["f1_samples"] == pytest.approx(2 / 3)  # right, rightly none, wrong


def test_outputs_that_are_not_finite_are_counted_and_refused():
    logits = np.zeros((5, 2))
    logits[2, 0], logits[4, 1] = math.nan, math.inf
    with pytest.raises(MeasurementError, match="not finite for 2 of 5 rows, first in row 2"):
        score(logits, [0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("logits", "references", "message"),
    [
        (np.zeros((0, 2)), [], "at least one row"),
        (np.zeros((2, 2)), [0], r"got \(2, 2\) and \(1,\)"),
        (np.zeros((2, 2)), [0, 2], "from 0 to 1, got 2 in row 1"),
        (np.zeros((2, 2)), [-1, 0], "from 0 to 1, got -1 in row 0"),
        (np.zeros((2, 1)), [0, 0], "2 labels"),
    ],
)
def test_rows_that_can_not_be_scored_are_refused(logits, references, message):
    with pytest.raises(MeasurementError, match=message):
        score(logits, references)


def test_metrics_touch_neither_network_nor_disk(rows, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric opened a connection or made a folder")

    quality.make_metric("accuracy")  # the import of evaluate itself makes cache folders
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    assert score(*rows)["accuracy"] > 0.5


def test_metrics_are_evaluate_metrics_and_can_be_combined():
    import evaluate

    pair = evaluate.combine([quality.make_metric("accuracy"), quality.make_metric("f1_macro")])
    assert pair.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == pytest.approx(
        {"accuracy": 2 / 3, "f1_macro": 2 / 3}
    )
    assert quality.make_metric("f1_macro").name == "f1_macro"
    assert isinstance(quality.make_metric("mcc"), evaluate.Metric)


@calm
@given(st.lists(st.text(max_size=300), max_size=12))
def test_class_keys_are_accepted_by_mlflow_and_all_different(labels):
    keys = quality.class_keys(labels)
    assert len({k.casefold() for k in keys}) == len(labels)
    for key in keys:
        full = f"quality/f1/{key}"
        assert re.fullmatch(r"[/\w.\- :]*", full)
        assert len(full) < 250
        assert os.path.normpath(full) == full


def test_class_keys_keep_letters_of_any_script():
    assert quality.class_keys(["日本語", "naïve", "..", ""]) == ["日本語", "naïve", "__", "unnamed"]


@pytest.mark.parametrize(
    ("counts", "metric"),
    [
        ([800, 800], "accuracy"),
        ([600, 400], "accuracy"),
        ([900, 100], "f1_macro"),
        ([100] * 16, "accuracy"),
        ([100] * 15 + [10], "f1_macro"),
        ([300] + [100] * 10, "f1_macro"),
        ([3, 1], "accuracy"),  # four rows show nothing
        ([50], "accuracy"),
    ],
)
def test_the_headline_metric_follows_the_class_sizes(counts, metric):
    name, reason = quality.headline_metric(np.repeat(np.arange(len(counts)), counts), multi_label=False)
    assert name == metric
    assert reason.startswith(metric)


def test_a_small_sample_of_many_equal_classes_is_rarely_called_lopsided():
    rng = np.random.default_rng(0)
    names = [quality.headline_metric(rng.integers(0, 50, 300), multi_label=False)[0] for _ in range(200)]
    assert names.count("f1_macro") <= 6


def test_the_headline_of_multi_label_data_is_micro_or_macro_f1():
    even, rare = np.tile([[1, 0], [0, 1]], (100, 1)), np.tile([[1, 0]], (200, 1))
    rare[:9, 1] = 1
    assert quality.headline_metric(even, multi_label=True)[0] == "f1_micro"
    assert quality.headline_metric(rare, multi_label=True)[0] == "f1_macro"
