"""Tests of differences: Student's own data, scipy's values, Holm's worked example."""

import math
import statistics

import numpy as np
import pytest

from runner.sweep.statistics import estimate, holm, paired, welch

# Extra hours of sleep of ten patients under two drugs: Cushny and Peebles 1905, in Student's paper, Biometrika 1908
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]

DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_difference_of_students_own_data():
    """R's t.test(paired = TRUE) on its data set `sleep`: t = -4.0621, df = 9, p-value = 0.002833, the 95 per cent
    interval -2.4598858 to -0.7001142."""
    found = paired(dict(enumerate(DRUG_1)), dict(enumerate(DRUG_2)))
    assert found.n == 10
    assert found.mean == pytest.approx(-1.58)
    assert found.mean / found.error == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert not found.holds(0)
    assert found.holds(-0.71)
    assert not found.holds(-0.70)


def test_welch_on_students_own_data():
    """R's t.test: df = 17.776, the 95 per cent interval of the difference -3.3654832 to 0.2054832."""
    half = welch(estimate(DRUG_1), statistics.stdev(DRUG_2) / math.sqrt(10), 10)
    assert statistics.fmean(DRUG_1) - statistics.fmean(DRUG_2) == pytest.approx(-1.58)
    assert half == pytest.approx((0.2054832 + 3.3654832) / 2, abs=1e-7)
    assert welch(estimate([1.0]), 0.1, 10) is None
    assert welch(estimate([1.0, 2.0]), 0.1, 1) is None
    assert welch(estimate([1.0, 1.0]), 0.0, 5) == 0


def test_statistics_agree_with_scipy_stats():
    from scipy import stats

    draw = np.random.default_rng(0)
    for n in (2, 3, 10):
        a, b = draw.normal(0.9, 0.1, n).tolist(), draw.normal(0.8, 0.2, n).tolist()
        found, expected = paired(dict(enumerate(a)), dict(enumerate(b))), stats.ttest_rel(a, b)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        interval = expected.confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(interval), rel=1e-9)
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        half = welch(estimate(a), statistics.stdev(b) / math.sqrt(n), n)
        assert half == pytest.approx((high - low) / 2, rel=1e-9)


def test_holm_on_a_worked_example():
    # p = 0.01, 0.04, 0.03, 0.005: sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]  # what is no test does not count
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03, 0.03, 0.03])


def test_too_few_and_equal_values_have_no_p():
    assert estimate([]) is None
    one = estimate([0.3])
    assert (one.mean, one.half, one.p, one.n, one.holds(0.3)) == (0.3, None, None, 1, None)
    equal = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6})  # 0.1 each, but for rounding
    assert (equal.half, equal.p, equal.n) == (0.0, None, 3)
    assert paired({0: 0.9, 1: 0.5}, {1: 0.25, 2: 0.1}).mean == 0.25
    assert paired({0: 0.9}, {1: 0.25}) is None
