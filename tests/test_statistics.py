"""Cosines, intervals and p-values: against loops, against each other, and in repeated experiments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference_statistics as slow
from scipy import stats

from graddiag.statistics import (
    COSINE,
    DRAWS,
    EXHAUSTIVE,
    Estimate,
    cluster_mean,
    cluster_sums,
    cosine,
    false_discovery_q,
    jackknife,
    mean,
    mean_difference,
    optional,
    partner_permutation_p,
    permuted_partners,
    share_negative,
    sign_flip_norm_p,
    sign_flip_p,
    smallest_p,
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


@pytest.mark.parametrize("n_clusters", [6, 16])
def test_sign_flips_reject_a_true_null_as_often_as_they_say_only_if_clusters_are_flipped(n_clusters: int) -> None:
    rng, repeats = np.random.default_rng(5), 400
    drawn = [_clustered(rng, n_clusters, 4) for _ in range(repeats)]
    right = np.mean([mean_difference(v, c).p <= 0.05 for v, c in drawn])
    wrong = np.mean([mean_difference(v, np.arange(len(v))).p <= 0.05 for v, _ in drawn])
    possible = math.floor(0.05 / smallest_p(n_clusters)) * smallest_p(n_clusters)
    assert _within_monte_carlo(float(right), possible, repeats)
    assert wrong > 0.12


@pytest.mark.parametrize("n_clusters", [2, 5, 8])
@pytest.mark.parametrize("size", [1, 3])
def test_sign_flips_of_few_clusters_try_every_pattern(n_clusters: int, size: int) -> None:
    sums = np.random.default_rng([n_clusters, size]).normal(size=(n_clusters, size)) + 0.3
    expected = slow.sign_flip_p(list(sums))
    assert sign_flip_p(sums) == expected
    assert sign_flip_norm_p(sums @ sums.T) == expected
    if size == 1:
        assert sign_flip_p(sums[:, 0]) == expected


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("shift", [0.0, 0.12])
def test_random_sign_flips_agree_with_all_of_them(size: int, shift: float) -> None:
    n = EXHAUSTIVE + 2
    sums = np.random.default_rng(6).normal(size=(n, size)) + shift
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    lengths = np.linalg.norm(signs @ sums, axis=1)
    expected = float(np.mean(lengths >= lengths[-1] - 1e-9))
    assert 0.001 < expected < 0.999
    for got in (sign_flip_p(sums), sign_flip_norm_p(sums @ sums.T)):
        assert _within_monte_carlo(got, expected, DRAWS)


def test_a_p_of_random_signs_is_never_zero() -> None:
    for sums in (np.ones((40, 1)), np.ones((40, 3)), 0.1 * np.ones((40, 70))):
        assert sign_flip_p(sums) == sign_flip_norm_p(sums @ sums.T) == smallest_p(40) == 1 / (1 + DRAWS)


def test_sums_that_are_all_orthogonal_have_no_direction_in_common() -> None:
    for n in (5, 20):
        assert sign_flip_p(3 * np.eye(n)) == sign_flip_norm_p(9 * np.eye(n)) == 1


@pytest.mark.parametrize("n_clusters", [2, 6, 14])
def test_the_smallest_p_is_reached_by_clusters_that_agree(n_clusters: int) -> None:
    assert sign_flip_p(np.arange(1.0, n_clusters + 1)) == smallest_p(n_clusters) == 2.0 ** (1 - n_clusters)


def test_sums_that_differ_by_rounding_only_are_ties() -> None:
    # The patterns +++ and --+ both give 0.5, up to the rounding of 0.1 + 0.2; +-+ gives 1.1, -++ gives 0.1.
    sums = np.array([0.1 + 0.2, -0.3, 0.5])
    assert abs(-sums[0] - sums[1] + sums[2]) < abs(sums.sum())
    assert sign_flip_p(sums) == 0.75


@pytest.mark.parametrize("n_clusters", [7, 20])
def test_sign_flips_see_neither_the_sign_nor_the_scale_of_the_differences(n_clusters: int) -> None:
    sums = np.random.default_rng(7).normal(size=(n_clusters, 4))
    for other in (-sums, 1e-20 * sums, 1e20 * sums):
        assert sign_flip_p(other) == sign_flip_p(sums)
        assert sign_flip_norm_p(other @ other.T) == sign_flip_norm_p(sums @ sums.T)


def test_differences_that_are_all_zero_give_p_one_and_a_single_cluster_none() -> None:
    assert sign_flip_p(np.zeros(5)) == sign_flip_norm_p(np.zeros((5, 5))) == sign_flip_p(np.zeros((30, 4))) == 1
    assert math.isnan(sign_flip_p(np.ones(1)))
    assert math.isnan(sign_flip_norm_p(np.ones((1, 1))))
    assert math.isnan(sign_flip_p(np.zeros(0)))
    assert math.isnan(smallest_p(1))


def test_partners_are_permuted_inside_their_cluster_only() -> None:
    clusters = np.array([0, 1, 0, 2, 1, 0])
    partners = permuted_partners(clusters)
    assert partners[:, 0].tolist() == list(range(6))
    assert (np.sort(partners, axis=0) == np.arange(6)[:, None]).all()
    assert (clusters[partners] == clusters[:, None]).all()
    orders, counts = np.unique(partners[[0, 2, 5], 1:], axis=1, return_counts=True)
    assert orders.shape[1] == math.factorial(3)
    assert all(_within_monte_carlo(c / DRAWS, 1 / 6, DRAWS) for c in counts)


@pytest.mark.parametrize("shift", [0.0, 0.8, -0.8])
def test_the_p_of_pairing_agrees_with_all_pairings(shift: float) -> None:
    names = list("aaabbbbcd")
    cosines = np.tanh(np.random.default_rng(8).normal(size=(9, 9)) + shift * np.eye(9))
    got = partner_permutation_p(cosines, permuted_partners(np.unique(names, return_inverse=True)[1]))
    expected = slow.partner_p(cosines, names)
    assert _within_monte_carlo(got, expected, DRAWS)


def test_undefined_cosines_are_left_out_of_every_pairing() -> None:
    cosines = np.random.default_rng(9).normal(size=(6, 6)) * 0.2 + np.diag([0.3] * 6)
    cosines[2], cosines[:, 4] = np.nan, np.nan
    got = partner_permutation_p(cosines, permuted_partners(np.zeros(6, dtype=np.int64)))
    assert _within_monte_carlo(got, slow.partner_p(cosines, ["a"] * 6), DRAWS)


@pytest.mark.parametrize("sign", [1, -1])
def test_partners_that_are_unlike_the_others_are_found_on_both_sides(sign: int) -> None:
    cosines = 0.01 * np.random.default_rng(10).normal(size=(12, 12)) + sign * 0.5 * np.eye(12)
    assert partner_permutation_p(cosines, permuted_partners(np.zeros(12, dtype=np.int64))) == 1 / (1 + DRAWS)


def test_cosines_that_depend_on_one_member_only_make_all_pairings_alike_up_to_rounding() -> None:
    rng, partners = np.random.default_rng(13), permuted_partners(np.repeat([0, 1, 2], 3))
    for _ in range(20):
        assert partner_permutation_p(rng.normal(size=(9, 1)) + rng.normal(size=(1, 9)), partners) == 1


def test_a_pairing_like_all_others_has_p_one_and_one_that_cannot_be_permuted_none() -> None:
    same = np.full((4, 4), 0.1)
    assert partner_permutation_p(same, permuted_partners(np.zeros(4, dtype=np.int64))) == 1
    assert math.isnan(partner_permutation_p(same, permuted_partners(np.arange(4))))
    assert math.isnan(partner_permutation_p(same[:0, :0], permuted_partners(np.zeros(0, dtype=np.int64))))
    assert math.isnan(partner_permutation_p(same * np.nan, permuted_partners(np.zeros(4, dtype=np.int64))))


def test_the_p_of_pairing_rejects_a_true_null_as_often_as_it_says_only_if_clusters_are_kept() -> None:
    rng, repeats, clusters = np.random.default_rng(11), 300, np.repeat(np.arange(5), 4)
    inside, anywhere = permuted_partners(clusters), permuted_partners(np.zeros(20, dtype=np.int64))
    alike = 0.3 * (clusters[:, None] == clusters[None, :])
    drawn = [alike + 0.2 * rng.normal(size=(20, 20)) for _ in range(repeats)]
    rejected = float(np.mean([partner_permutation_p(c, inside) <= 0.05 for c in drawn]))
    assert _within_monte_carlo(rejected, 0.05, repeats)
    assert np.mean([partner_permutation_p(c, anywhere) <= 0.05 for c in drawn]) > 0.9


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg_without_undefined_ones() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.9, 0.01, np.nan])
    got = false_discovery_q(p)
    assert np.isnan(got[[1, 6]]).all()
    assert got[[0, 2, 3, 4, 5]] == pytest.approx(stats.false_discovery_control(p[~np.isnan(p)]))
    assert len(false_discovery_q(p[:0])) == 0


def test_the_seed_decides_random_p_values_and_nothing_else_is_touched() -> None:
    sums, clusters = np.random.default_rng(12).normal(size=25), np.zeros(25, dtype=np.int64)
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    assert sign_flip_p(sums, seed=1) == sign_flip_p(sums, seed=1)
    assert len({sign_flip_p(sums, seed=s) for s in range(8)}) > 4
    assert (permuted_partners(clusters, seed=1) == permuted_partners(clusters, seed=1)).all()
    assert (permuted_partners(clusters, seed=1) != permuted_partners(clusters, seed=2)).any()
    assert np.random.random() == expected


def test_only_finite_numbers_reach_json() -> None:
    assert [optional(x) for x in (math.nan, math.inf, -math.inf, 0.0)] == [None, None, None, 0.0]
