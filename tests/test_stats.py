"""Intervals that cover as often as they say, and verdicts that err as rarely as they say."""

import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from mlflow_slim.errors import MeasurementError
from mlflow_slim.measurement import stats

# A busy machine must not fail a test by being slow.
calm = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

finite = st.floats(-1e6, 1e6, allow_nan=False)
costs = st.floats(1e-6, 1e3, allow_nan=False)


def coverage(draw, truth, runs=600, seed=0):
    """Share of intervals that hold the truth."""
    rng = np.random.default_rng(seed)
    intervals = [draw(rng) for _ in range(runs)]
    return float(np.mean([i.lo <= truth <= i.hi for i in intervals]))


def answers(rng, n, lost, won, right=0.8):
    """Correctness of two models on ``n`` rows with given shares of rows lost and won."""
    kind = rng.random(n)
    baseline = np.where(kind < lost, True, np.where(kind < lost + won, False, rng.random(n) < right))
    candidate = np.where(kind < lost, False, np.where(kind < lost + won, True, baseline))
    return baseline, candidate


def test_the_trimmed_interval_of_a_hand_computed_sample():
    x = [1.0, 2.0, 3.0, 4.0, 100.0]  # cut 1: mean of 2, 3, 4; winsorized 2, 2, 3, 4, 4: squares 4; t(2) = 4.3027
    interval = stats.trimmed_mean_interval(x)
    assert interval.value == pytest.approx(3.0)
    assert interval.hi - 3.0 == pytest.approx(4.302653 * math.sqrt(4 / (3 * 2)), rel=1e-6)
    assert interval.n == 5


@pytest.mark.parametrize("n", [10, 40, 120])
def test_the_trimmed_interval_misses_a_heavy_tailed_truth_about_one_time_in_twenty(n):
    misses = 1 - coverage(lambda rng: stats.trimmed_mean_interval(rng.standard_t(2, n)), 0.0)
    assert 0.02 < misses < 0.08


@calm
@given(st.lists(finite, min_size=2, max_size=60))
def test_the_trimmed_interval_holds_its_own_estimate(x):
    interval = stats.trimmed_mean_interval(x)
    assert interval.lo <= interval.value <= interval.hi


@calm
@given(st.lists(st.tuples(costs, costs), min_size=3, max_size=40))
def test_swapping_the_arms_inverts_the_ratio(pairs):
    a, b = np.array(pairs).T
    forth, back = stats.ratio_interval(a, b), stats.ratio_interval(b, a)
    assert forth.value == pytest.approx(1 / back.value)
    assert forth.lo == pytest.approx(1 / back.hi)


def test_a_candidate_twice_as_fast_under_common_drift_has_ratio_two():
    drift = np.exp(np.random.default_rng(0).normal(0, 1, 50))
    interval = stats.ratio_interval(2 * drift, drift)
    assert (interval.lo, interval.hi) == (pytest.approx(2.0), pytest.approx(2.0))


@pytest.mark.parametrize("bad", [[0.0, 1.0, 1.0], [1.0, math.nan, 1.0], [1.0], []])
def test_costs_that_make_no_ratio_are_refused(bad):
    with pytest.raises(MeasurementError):
        stats.ratio_interval(bad, [1.0, 1.0, 1.0][: len(bad)])
    with pytest.raises(MeasurementError, match="paired, got 3 and 2"):
        stats.ratio_interval([1, 1, 1], [1, 1])


@calm
@given(st.lists(finite, min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_interval_holds_its_estimate_and_ends_at_samples(x, q):
    interval = stats.quantile_interval(x, q)
    assert math.isnan(interval.lo) or (interval.lo <= interval.value + 1e-9 and interval.lo in x)
    assert math.isnan(interval.hi) or (interval.value <= interval.hi + 1e-9 and interval.hi in x)


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (200, 0.9), (1000, 0.99)])
def test_a_quantile_interval_covers_the_quantile(n, q):
    assert coverage(lambda rng: stats.quantile_interval(rng.exponential(size=n), q), -math.log(1 - q)) > 0.93


def test_the_median_interval_of_ten_samples_has_the_tabled_ranks():
    interval = stats.quantile_interval(range(1, 11), 0.5)
    assert (interval.lo, interval.hi) == (2, 9)  # coverage 97.9 %, every table of sign-test intervals


def test_too_few_samples_leave_the_end_open_instead_of_inventing_it():
    interval = stats.quantile_interval(np.arange(50), 0.99)
    assert math.isnan(interval.hi)
    assert interval.lo < 49
    assert interval.format(0).endswith(", ?]")
    one = stats.quantile_interval([3.0], 0.5)
    assert one.value == 3.0
    assert math.isnan(one.lo) and math.isnan(one.hi)


def test_calls_that_are_alike_within_a_block_widen_the_interval():
    def draw(rng, clustered):
        x = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 25))
        return stats.quantile_interval(x if clustered else x.ravel(), 0.5)

    assert coverage(lambda rng: draw(rng, False), 0.0, runs=200) < 0.7  # what ignoring it would claim as 95 %
    assert coverage(lambda rng: draw(rng, True), 0.0, runs=200) > 0.9


def test_the_paired_difference_is_bonett_price():
    baseline = [True] * 10 + [False] * 4 + [True] * 86
    candidate = [False] * 10 + [True] * 4 + [True] * 86
    interval = stats.paired_difference(baseline, candidate)
    p_lost, p_won = 11 / 102, 5 / 102
    half = 1.959964 * math.sqrt((p_lost + p_won - (p_won - p_lost) ** 2) / 102)
    assert interval.value == pytest.approx(-0.06)
    assert interval.lo == pytest.approx(p_won - p_lost - half, rel=1e-5)
    assert interval.hi == pytest.approx(p_won - p_lost + half, rel=1e-5)


@calm
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_the_paired_difference_stays_within_its_range(rows):
    a, b = np.array(rows).T
    interval = stats.paired_difference(a, b)
    assert -1 <= interval.lo <= interval.value <= interval.hi <= 1


@pytest.mark.parametrize(("lost", "won"), [(0.06, 0.04), (0.04, 0.02), (0.025, 0.005)])
def test_a_candidate_worse_by_exactly_the_margin_rarely_passes(lost, won):
    rng = np.random.default_rng(1)
    intervals = [stats.paired_difference(*answers(rng, 1600, lost, won), confidence=0.90) for _ in range(1000)]
    verdicts = [stats.non_inferiority(i, 0.02) for i in intervals]
    assert verdicts.count("non-inferior") / 1000 < 0.075
    assert verdicts.count("worse") / 1000 < 0.075


def test_an_equal_candidate_passes_and_a_bad_one_fails():
    rng = np.random.default_rng(2)
    equal = [stats.paired_difference(*answers(rng, 1600, 0.025, 0.025), confidence=0.90) for _ in range(300)]
    bad = [stats.paired_difference(*answers(rng, 1600, 0.08, 0.01), confidence=0.90) for _ in range(300)]
    assert [stats.non_inferiority(i, 0.02) for i in equal].count("non-inferior") > 270
    assert [stats.non_inferiority(i, 0.02) for i in bad].count("worse") > 295


def test_a_small_test_set_says_not_enough_data_even_with_no_flip_at_all():
    same = np.ones(50, dtype=bool)
    assert stats.non_inferiority(stats.paired_difference(same, same, confidence=0.90), 0.01) == "not enough data"


def test_the_promised_margin_is_certified_as_often_as_promised():
    rng = np.random.default_rng(3)
    margin = stats.smallest_margin(1600, 0.05)
    passed = [
        stats.non_inferiority(stats.paired_difference(*answers(rng, 1600, 0.025, 0.025), confidence=0.90), margin)
        for _ in range(600)
    ]
    assert 0.74 < passed.count("non-inferior") / 600 < 0.86
    assert stats.smallest_margin(1600, 0.0) > 0.002  # no flips seen is not no flips possible


def test_a_margin_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"0\.01 for one point"):
        stats.non_inferiority(stats.Interval(0, 0, 0, 1, 0.9), 0.0)


def test_mcnemar_gives_binomial_tails():
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(5, 5) == 1.0
    assert stats.mcnemar_exact(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert stats.mcnemar_exact(8, 2) == stats.mcnemar_exact(2, 8)


@calm
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p):
    adjusted = stats.holm(p)
    assert all(x <= y <= 1 for x, y in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


labels = st.integers(0, 3)


@calm
@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=60))
def test_row_metrics_agree_with_scikit_learn(rows):
    p, r = np.array(rows).T
    present = np.unique(r)
    assert stats.ACCURACY(p, r) == pytest.approx((p == r).mean())
    assert stats.F1_MACRO(p, r) == pytest.approx(f1_score(r, p, labels=present, average="macro", zero_division=0))
    if len(present) > 1:
        assert stats.MCC(p, r) == pytest.approx(matthews_corrcoef(r, p), abs=1e-12)


def test_multi_label_row_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    p, r = rng.integers(0, 2, (2, 50, 5))
    assert stats.F1_MICRO(p, r) == pytest.approx(f1_score(r, p, average="micro"))
    assert stats.F1_MACRO(p, r) == pytest.approx(f1_score(r, p, average="macro"))
    assert stats.EXACT_MATCH(p, r) == pytest.approx((p == r).all(axis=1).mean())


def models(rng, n=400, classes=4, agree=0.9, right=0.8):
    r = rng.integers(0, classes, n)
    a = np.where(rng.random(n) < right, r, rng.integers(0, classes, n))
    b = np.where(rng.random(n) < agree, a, rng.integers(0, classes, n))
    return a, b, r


def test_the_fast_bootstrap_and_the_plain_one_agree():
    a, b, r = models(np.random.default_rng(0))
    fast = stats.paired_bootstrap(stats.F1_MACRO, a, b, r, seed=0)
    plain = stats.paired_bootstrap(lambda p, t: stats.F1_MACRO(p, t), a, b, r, seed=1)
    assert fast.value == pytest.approx(plain.value)
    assert fast.lo == pytest.approx(plain.lo, abs=0.004)
    assert fast.hi == pytest.approx(plain.hi, abs=0.004)
    multi = [np.eye(4, dtype=int)[x] for x in (a, b, r)]
    assert stats.paired_bootstrap(stats.F1_MACRO, *multi, seed=0).value == pytest.approx(fast.value)


def test_the_bootstrap_of_accuracy_agrees_with_bonett_price():
    a, b, r = models(np.random.default_rng(5), n=1600)
    boot = stats.paired_bootstrap(stats.ACCURACY, a, b, r, seed=0)
    exact = stats.paired_difference(a == r, b == r)
    assert boot.value == pytest.approx(exact.value)
    assert boot.lo == pytest.approx(exact.lo, abs=0.002)
    assert boot.hi == pytest.approx(exact.hi, abs=0.002)


def test_the_bootstrap_of_macro_f1_covers_an_equal_pair():
    def draw(rng):
        r = rng.integers(0, 4, 300)
        a, b = (np.where(rng.random(300) < 0.8, r, rng.integers(0, 4, 300)) for _ in range(2))
        return stats.paired_bootstrap(stats.F1_MACRO, a, b, r, seed=0, resamples=200)

    assert 0.90 < coverage(draw, 0.0, runs=200) < 0.99


def test_rows_of_one_document_are_resampled_together():
    a, b, r = models(np.random.default_rng(0), n=100)
    single = stats.paired_bootstrap(stats.ACCURACY, a, b, r, seed=0)
    copies = [np.repeat(x, 9) for x in (a, b, r)]
    grouped = stats.paired_bootstrap(stats.ACCURACY, *copies, seed=0, groups=np.repeat(np.arange(100), 9).tolist())
    naive = stats.paired_bootstrap(stats.ACCURACY, *copies, seed=0)
    assert grouped.hi - grouped.lo == pytest.approx(single.hi - single.lo, rel=0.1)
    assert naive.hi - naive.lo < 0.5 * (single.hi - single.lo)


def test_equal_seeds_give_equal_bootstraps_and_a_model_against_itself_differs_by_nothing():
    a, b, r = models(np.random.default_rng(0))
    first, again = (stats.paired_bootstrap(stats.MCC, a, b, r, seed=7, resamples=100) for _ in range(2))
    assert first == again
    itself = stats.paired_bootstrap(stats.MCC, a, a, r, seed=7, resamples=100)
    assert (itself.value, itself.lo, itself.hi) == (0, 0, 0)
    ratio = stats.paired_bootstrap(stats.MCC, a, a, r, seed=7, resamples=100, relative=True)
    assert (ratio.value, ratio.lo, ratio.hi) == (1, 1, 1)


def test_a_metric_that_is_undefined_on_many_resamples_is_refused():
    a, b, r = models(np.random.default_rng(0))
    with pytest.raises(MeasurementError, match="undefined on 10 of 10"):
        stats.paired_bootstrap(lambda p, t: math.nan, a, b, r, seed=0, resamples=10)


def test_the_bootstrap_of_the_demo_size_costs_seconds_of_cpu_at_most():
    a, b, r = models(np.random.default_rng(0), n=1600, classes=16)
    start = time.process_time()
    stats.paired_bootstrap(stats.F1_MACRO, a, b, r, seed=0)
    assert time.process_time() - start < 10  # CPU, not wall; 0.1 s when written


def test_the_certifiable_loss_of_an_accuracy_is_that_of_its_flips():
    rng = np.random.default_rng(5)
    before, after = answers(rng, 1600, 0.025, 0.025)
    flips = float((before != after).mean())
    loss = stats.certifiable_loss(stats.paired_difference(before, after, confidence=0.90))
    assert loss == pytest.approx(stats.smallest_margin(1600, flips), rel=0.01)
