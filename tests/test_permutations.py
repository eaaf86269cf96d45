"""Permutations of clusters and partners: against enumeration, in repeated experiments, and over many blocks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference_statistics as slow
from scipy import stats

from graddiag.analyzers import BlockTests
from graddiag.permutations import (
    DRAWS,
    EXHAUSTIVE,
    Null,
    false_discovery_q,
    familywise_p,
    partner_permutations,
    permuted_partners,
    sign_flips,
    sign_flips_each,
    sign_flips_of_norm,
    smallest_p,
)
from graddiag.statistics import mean_difference


def sign_flip_p(sums: np.ndarray, *, seed: int = 0) -> float:
    return sign_flips(sums, seed=seed).p


def sign_flip_norm_p(gram: np.ndarray) -> float:
    return sign_flips_of_norm(gram).p


def partner_permutation_p(cosines: np.ndarray, partners: np.ndarray) -> float:
    return partner_permutations(cosines, partners).p


def _clustered(rng: np.random.Generator, n_clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values with mean zero whose rows of a cluster are alike: variance 1 between clusters, 1 within."""
    codes = np.repeat(np.arange(n_clusters), size)
    return rng.normal(size=n_clusters)[codes] + rng.normal(size=len(codes)), codes


def _within_monte_carlo(rate: float, expected: float, repeats: int) -> bool:
    """Whether an observed rate is within 4 standard errors of its expectation."""
    return abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / repeats)


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


@pytest.mark.parametrize("n_clusters", [6, 40])
def test_many_numbers_flipped_in_one_pass_are_each_flipped_alone(n_clusters: int) -> None:
    sums = np.random.default_rng(14).normal(size=(n_clusters, 5))
    sums[:, 2] = 0
    for column, null in zip(sums.T, sign_flips_each(sums), strict=True):
        assert null.values == pytest.approx(sign_flips(column).values, abs=1e-12)
        assert null.p == sign_flips(column).p


def test_the_familywise_p_is_that_of_the_largest_standardised_statistic_over_all_sign_patterns() -> None:
    d = np.random.default_rng(15).normal(size=(7, 4)) * [1, 10, 0.1, 1] + [0.5, 0, 0, 0]
    t = np.array([signs @ d for signs in itertools.product((1.0, -1.0), repeat=7)])
    z = np.abs(t) / np.sqrt((t**2).mean(axis=0))
    expected = [float(np.mean(z.max(axis=1) >= z[0, b] - 1e-9)) for b in range(4)]
    assert familywise_p(sign_flips_each(d)) == pytest.approx(expected)


def test_a_family_of_one_block_and_of_equal_blocks_costs_nothing() -> None:
    null = sign_flips(np.random.default_rng(16).normal(size=(20, 3)) + 0.3)
    for n in (1, 5):
        assert familywise_p([null] * n) == pytest.approx([null.p] * n)


def test_a_block_that_is_undefined_or_does_not_vary_changes_no_other() -> None:
    d = np.random.default_rng(17).normal(size=(8, 2)) + 0.4
    alone = familywise_p(sign_flips_each(d))
    nothing, constant = Null(np.zeros(0)), sign_flips(np.zeros(8))
    got = familywise_p([nothing, *sign_flips_each(d), constant])
    assert got[1:3] == pytest.approx(alone)
    assert math.isnan(got[0])
    assert got[3] == 1
    assert np.isnan(familywise_p([nothing])).all()
    assert familywise_p([constant]).tolist() == [1]


def test_partners_that_matter_in_one_block_only_survive_there_only() -> None:
    rng, partners = np.random.default_rng(18), permuted_partners(np.repeat(np.arange(5), 4))
    blocks = [0.1 * rng.normal(size=(20, 20)) + (0.5 * np.eye(20) if b == 3 else 0) for b in range(30)]
    got = familywise_p([partner_permutations(c, partners) for c in blocks])
    assert got[3] == 1 / (1 + DRAWS)
    assert np.delete(got, 3).min() > 0.05


def test_blocks_survive_by_their_familywise_p_and_undefined_ones_are_not_counted() -> None:
    clear, noise = sign_flips(np.arange(1.0, 9.0)), sign_flips(np.array([1.0, -1.0, 2.0, -2.0, 1.0, -1.5, 1.0, -0.5]))
    got = BlockTests.of({"clear": clear, "noise": noise, "none": Null(np.zeros(0))})
    assert got.survivors == ("clear",)
    assert got.surviving == 1
    assert got.keys("x", "none") == {"x/q": None, "x/p_fwe": None}
    assert BlockTests.of({"none": Null(np.zeros(0))}).surviving is None
