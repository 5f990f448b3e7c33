"""Flips, divergence, the rows that broke and the slices that lost, against hand-made rows."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_slim.errors import MeasurementError
from mlflow_slim.measurement import fidelity

# A busy machine must not fail a test by being slow.
calm = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LABELS = ["cat", "dog", "sci/fi"]


def logits_for(answers, sure=3.0):
    return sure * np.eye(len(LABELS))[np.asarray(answers)]


def test_flips_are_counted_in_both_directions():
    baseline, candidate = np.array([1, 1, 1, 0, 0, 1, 1, 0, 1, 1]), np.array([1, 0, 0, 1, 0, 1, 1, 0, 1, 1])
    assert fidelity.negative_flips(baseline, candidate) == pytest.approx(0.2)
    assert fidelity.positive_flips(baseline, candidate) == pytest.approx(0.1)


@calm
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_flips_explain_the_difference_of_accuracy(rows):
    a, b = np.array(rows).T
    assert fidelity.positive_flips(a, b) - fidelity.negative_flips(a, b) == pytest.approx(b.mean() - a.mean())


def test_agreement_is_about_answers_and_needs_all_labels():
    assert fidelity.agreement([0, 1, 2, 2], [0, 1, 2, 0]) == 0.75
    assert fidelity.agreement([[0, 1], [1, 1]], [[0, 1], [1, 0]]) == 0.5
    with pytest.raises(MeasurementError, match=r"same rows.*\(2,\).*\(3,\)"):
        fidelity.agreement([0, 1], [0, 1, 2])
    with pytest.raises(MeasurementError, match="one or more"):
        fidelity.agreement([], [])


def test_divergence_by_hand():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert fidelity.mean_kl(np.log(p), np.log(q), multi_label=False) == pytest.approx(expected)
    odds = np.log(p / (1 - p)), np.log(q / (1 - q))
    assert fidelity.mean_kl(*odds, multi_label=True) == pytest.approx(2 * expected)


@calm
@given(st.integers(0, 10_000), st.floats(-50, 50), st.booleans())
def test_divergence_is_positive_zero_for_itself_and_blind_to_a_shift(seed, shift, multi_label):
    a, b = np.random.default_rng(seed).normal(0, 30, (2, 5, 4))
    assert fidelity.mean_kl(a, a, multi_label=multi_label) == 0
    kl = fidelity.mean_kl(a, b, multi_label=multi_label)
    assert kl > 0
    if not multi_label:
        assert fidelity.mean_kl(a, b + shift, multi_label=False) == pytest.approx(kl)


def test_divergence_stays_finite_for_sure_models_and_refuses_nan():
    assert math.isfinite(fidelity.mean_kl([[2000.0, 0]], [[0, 2000.0]], multi_label=False))
    assert math.isfinite(fidelity.mean_kl([[2000.0, 0]], [[0, 2000.0]], multi_label=True))
    with pytest.raises(MeasurementError, match="candidate's outputs are not finite for 1 of 2 rows"):
        fidelity.mean_kl([[0.0, 1.0]] * 2, [[0.0, math.nan], [0.0, 1.0]], multi_label=False)


def test_broken_rows_are_those_right_before_and_wrong_now_the_surest_first():
    references = [0, 1, 2, 0, 1]
    baseline = logits_for([0, 1, 2, 1, 1]) * np.array([[1], [2], [3], [1], [1]])
    candidate = logits_for([0, 2, 0, 0, 1])
    rows = fidelity.broken_rows("abcde", references, baseline, candidate, labels=LABELS, multi_label=False)
    assert [row["row"] for row in rows] == [2, 1]
    first = rows[0]
    assert (first["text"], first["reference"], first["baseline"], first["candidate"]) == (
        "c",
        "sci/fi",
        "sci/fi",
        "cat",
    )
    assert first["baseline_score"] == pytest.approx(math.exp(9) / (math.exp(9) + 2))
    assert first["candidate_score"] == pytest.approx(math.exp(3) / (math.exp(3) + 2))
    assert json.loads(json.dumps(rows)) == rows
    assert (
        len(fidelity.broken_rows("abcde", references, baseline, candidate, labels=LABELS, multi_label=False, k=1)) == 1
    )


def test_broken_rows_show_pairs_and_label_sets_and_shorten_texts():
    baseline, candidate = np.array([[2.0, 2, -2]]), np.array([[-2.0, -2, -2]])
    (row,) = fidelity.broken_rows(
        [("one", "x" * 5000)], [[1, 1, 0]], baseline, candidate, labels=LABELS, multi_label=True
    )
    assert (row["text"], len(row["text_pair"])) == ("one", 1000)
    assert (row["reference"], row["baseline"], row["candidate"]) == ("cat, dog", "cat, dog", "(none)")


def data(n=800, seed=0):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 3, n)
    inputs = ["x" * k for k in rng.integers(1, 100, n)]
    baseline = rng.normal(size=(n, 3)) + 3 * np.eye(3)[references]
    return inputs, references, baseline


def test_slices_cover_length_label_confidence_and_small_columns():
    inputs, references, baseline = data()
    frame = pd.DataFrame(
        {
            "text": inputs,
            "source": np.where(np.arange(800) % 4 == 0, None, np.where(np.arange(800) % 2, "web", "mail")),
            "id": np.arange(800),
            "constant": 1,
            "tags": [["a"]] * 800,
            "label": references,
        }
    )
    slices = fidelity.make_slices(
        inputs, references, baseline, labels=LABELS, multi_label=False, frame=frame, exclude={"text", "label"}
    )
    lengths = [m for name, m in slices.items() if name.startswith("length")]
    assert len(lengths) == 4
    assert (np.sum(lengths, axis=0) == 1).all()
    assert all(150 < m.sum() < 250 for m in lengths)
    assert slices["label: sci/fi"].tolist() == (references == 2).tolist()
    assert slices["confidence: less sure half of the baseline"].sum() == 400
    columns = {name: int(m.sum()) for name, m in slices.items() if name.startswith("column")}
    assert columns == {"column source: (missing)": 200, "column source: web": 400, "column source: mail": 200}


def test_texts_of_one_length_make_one_slice():
    slices = fidelity.make_slices(["ab"] * 60, [0] * 60, np.zeros((60, 3)), labels=LABELS, multi_label=False)
    assert [name for name in slices if name.startswith("length")] == ["length: 2 to 2 characters"]


def test_the_slice_that_lost_is_found_and_small_ones_are_left_out():
    inputs, references, baseline = data()
    right = np.ones(800, dtype=bool)
    candidate = right.copy()
    candidate[np.flatnonzero(references == 1)[::4]] = False
    slices = fidelity.make_slices(inputs, references, baseline, labels=LABELS, multi_label=False)
    slices["tiny"] = np.arange(800) < 49
    measured = fidelity.measure_slices(slices, right, candidate)
    assert "tiny" not in {s.name for s in measured}
    worst = fidelity.worst_slice(measured)
    assert worst is not None
    assert worst.name == "label: dog"
    assert worst.delta == pytest.approx(-0.25, abs=0.01)
    assert worst.delta == pytest.approx(worst.candidate_accuracy - worst.baseline_accuracy)
    assert worst.p_value < worst.p_adjusted < 1e-6
    assert fidelity.worst_slice([]) is None


def test_equal_models_rarely_have_a_slice_that_is_significant():
    alarms = 0
    for seed in range(100):
        inputs, references, baseline = data(n=400, seed=seed)
        kind = np.random.default_rng(1000 + seed).random(400)
        slices = fidelity.make_slices(inputs, references, baseline, labels=LABELS, multi_label=False)
        measured = fidelity.measure_slices(slices, kind < 0.9, (kind < 0.8) | (kind > 0.9))
        alarms += any(s.p_adjusted < 0.05 for s in measured)
    assert alarms <= 9


def test_slices_of_other_rows_are_refused():
    with pytest.raises(MeasurementError, match="2 inputs, 3 references"):
        fidelity.make_slices(["a", "b"], [0, 1, 2], np.zeros((3, 3)), labels=LABELS, multi_label=False)
    with pytest.raises(MeasurementError, match="slice 'x' has 2 rows, the answers 3"):
        fidelity.measure_slices({"x": [True, False]}, [1, 1, 1], [1, 1, 0])


def test_multi_label_rows_are_right_only_with_all_labels():
    logits = np.array([[2.0, -1, -1], [2, 2, -1]])
    references = np.array([[1, 0, 0], [1, 0, 0]])
    assert fidelity.correct_rows(logits, references, multi_label=True).tolist() == [True, False]
    slices = fidelity.make_slices(["a", "bb"], references, logits, labels=LABELS, multi_label=True)
    assert slices["label: cat"].sum() == 2
    assert slices["label: dog"].sum() == 0
