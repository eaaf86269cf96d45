"""Cosines, intervals and p-values: against loops, against each other, and in repeated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_statistics as slow
from scipy import stats

from graddiag.statistics import (
    COSINE,
    Estimate,
    cluster_mean,
    cluster_sums,
    cosine,
    difference_of_means,
    jackknife,
    mean,
    mean_difference,
    optional,
    share_negative,
)


def _clustered(rng: np.random.Generator, n_clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values with mean zero whose rows of a cluster are alike: variance 1 between clusters, 1 within."""
    codes = np.repeat(np.arange(n_clusters), size)
    return rng.normal(size=n_clusters)[codes] + rng.normal(size=len(codes)), codes


def _within_monte_carlo(rate: float, expected: float, repeats: int) -> bool:
    """Whether an observed rate is within 4 standard errors of its expectation."""
    return abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / repeats)


def test_the_cosine_with_a_zero_vector_is_undefined_not_zero() -> None:
    value = cosine(np.array([0.0, 0.0, 2.0]), np.array([0.0, 1.0, 1.0]), np.array([3.0, 1.0, 4.0]))
    assert math.isnan(value[0])
    assert value[1:].tolist() == [0.0, 0.5]


def test_rounding_does_not_lift_a_cosine_above_one() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 7))
    inner, norms = np.einsum("nk,nk->n", rows, rows), np.linalg.norm(rows, axis=1)
    assert (inner / norms / norms).max() > 1
    assert cosine(inner, norms, norms).max() == 1


def test_a_cosine_of_very_short_vectors_is_as_good_as_of_long_ones() -> None:
    assert cosine(np.array([1e-310]), np.array([1e-160]), np.array([2e-150])) == pytest.approx(0.5)


def test_undefined_values_are_left_out_of_means_and_shares() -> None:
    values = np.array([-1.0, np.nan, 3.0, 4.0])
    assert mean(values) == 2
    assert share_negative(values) == pytest.approx(1 / 3)
    assert math.isnan(mean(values[1:2]))
    assert math.isnan(share_negative(values[:0]))


def test_cluster_sums_add_the_rows_of_each_cluster_and_zero_where_there_are_none() -> None:
    rows = np.arange(10.0).reshape(5, 2)
    sums = cluster_sums(rows, np.array([3, 0, 3, 0, 1]), 5)
    assert sums.tolist() == [[8, 10], [8, 9], [0, 0], [4, 6], [0, 0]]
    assert cluster_sums(rows[:0], np.zeros(0, dtype=np.int64), 3).tolist() == [[0, 0]] * 3


def test_the_interval_of_a_mean_of_independent_rows_is_students() -> None:
    values = np.random.default_rng(1).normal(size=9)
    got = cluster_mean(values, np.arange(9))
    low, high = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    assert (got.value, got.low, got.high) == pytest.approx((values.mean(), low, high), rel=1e-12)


def test_the_interval_of_a_mean_is_that_of_really_deleting_each_cluster() -> None:
    rng = np.random.default_rng(2)
    values, names = rng.normal(size=17), rng.choice(list("abcde"), size=17)
    got = cluster_mean(values, np.unique(names, return_inverse=True)[1])
    expected = slow.mean_with_interval(values.tolist(), names.tolist())
    assert (got.value, got.low, got.high) == pytest.approx(expected, rel=1e-12)


def test_copies_of_rows_inside_a_cluster_add_no_certainty() -> None:
    values, codes = _clustered(np.random.default_rng(3), 6, 2)
    once, often = mean_difference(values, codes), mean_difference(np.repeat(values, 7), np.repeat(codes, 7))
    assert (often.low, often.high, often.p) == pytest.approx((once.low, once.high, once.p), rel=1e-9)


def test_one_cluster_has_a_mean_but_neither_interval_nor_p() -> None:
    got = mean_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3, dtype=np.int64))
    assert got.value == 3
    assert all(math.isnan(x) for x in (got.low, got.high, got.p))


def test_undefined_rows_and_their_clusters_are_left_out_of_a_mean() -> None:
    values, codes = np.array([1.0, 2.0, np.nan, 5.0, np.nan]), np.array([0, 0, 1, 2, 2])
    assert mean_difference(values, codes) == mean_difference(np.array([1.0, 2.0, 5.0]), np.array([0, 0, 1]))


def test_no_rows_give_an_undefined_mean() -> None:
    got = mean_difference(np.zeros(0), np.zeros(0, dtype=np.int64))
    assert all(math.isnan(x) for x in (got.value, got.low, got.high, got.p))


def test_intervals_of_cosines_end_at_one() -> None:
    got = jackknife(0.9, np.array([0.7, 0.95, 1.0]), bounds=COSINE)
    assert got.high == 1
    assert -1 < got.low < 0.9
    assert jackknife(1.3, np.array([1.2, 1.4]), bounds=COSINE).value == 1


def test_a_statistic_that_is_undefined_without_some_cluster_has_no_interval() -> None:
    got = jackknife(0.5, np.array([0.4, np.nan, 0.6]))
    assert got == Estimate(0.5, got.low, got.high)
    assert math.isnan(got.low)
    assert math.isnan(got.high)


@pytest.mark.parametrize("n_clusters", [3, 10])
def test_intervals_cover_the_truth_as_often_as_they_say_only_if_clusters_are_named(n_clusters: int) -> None:
    rng, repeats, hits, naive = np.random.default_rng(4), 1_500, 0, 0
    for _ in range(repeats):
        values, codes = _clustered(rng, n_clusters, 6)
        by_cluster, by_row = cluster_mean(values, codes), cluster_mean(values, np.arange(len(values)))
        hits += by_cluster.low <= 0 <= by_cluster.high
        naive += by_row.low <= 0 <= by_row.high
    assert _within_monte_carlo(hits / repeats, 0.95, repeats)
    assert naive / repeats < 0.85


def test_only_finite_numbers_reach_json() -> None:
    assert [optional(x) for x in (math.nan, math.inf, -math.inf, 0.0)] == [None, None, None, 0.0]


def test_the_difference_of_two_samples_of_single_rows_is_welchs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, 2.0, 11), rng.normal(size=7)
    got = difference_of_means(first, np.arange(11), second, np.arange(7))
    expected = stats.ttest_ind(first, second, equal_var=False)
    ends = expected.confidence_interval()
    assert (got.value, got.low, got.high) == pytest.approx((first.mean() - second.mean(), ends.low, ends.high))
    assert got.p == pytest.approx(expected.pvalue)
