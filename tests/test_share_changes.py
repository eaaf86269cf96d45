"""Changes of a share between two models on the same prompts: exact p, and intervals that hold what they promise."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy import stats

from graddiag.share_changes import apart, difference_of_changes, share_change


def change(lost, gained, n):
    """So many prompts with -1, so many with 1, of n in all, each a cluster of its own."""
    return np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained]), np.arange(n)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(8, 0, 20), (5, 2, 30), (3, 3, 6), (1, 0, 4), (40, 15, 90), (0, 0, 9)]
)
def test_the_p_of_prompts_that_are_no_clusters_is_mcnemars_exact_one(lost, gained, n):
    found = share_change(*change(lost, gained, n))
    assert found.value == pytest.approx((gained - lost) / n)
    discordant = lost + gained
    wanted = stats.binomtest(gained, discordant, 0.5).pvalue if discordant else 1.0
    assert found.p == pytest.approx(wanted, rel=1e-9)


def test_the_p_of_clusters_turns_the_signs_of_whole_clusters():
    rows = np.array([-1, -1, -1, 1, 0, -1, -1, 0, 0, 1, -1.0])
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    sums = np.array([rows[clusters == c].sum() for c in range(5)])
    flipped = [abs(np.dot(s, sums)) for s in itertools.product((-1, 1), repeat=5)]
    assert share_change(rows, clusters).p == pytest.approx(np.mean(np.array(flipped) >= abs(sums.sum())))


def test_prompts_that_are_copies_of_each_other_count_once():
    rows, clusters = change(9, 1, 20)
    one, copied = share_change(rows, clusters), share_change(np.repeat(rows, 5), np.repeat(clusters, 5))
    assert (copied.value, copied.low, copied.high, copied.p) == pytest.approx((one.value, one.low, one.high, one.p))


@pytest.mark.parametrize("discordant", [0, 20])
def test_no_interval_is_a_point_and_each_holds_its_estimate(discordant):
    for lost in (0, discordant):
        e = share_change(*change(lost, discordant - lost, 20))
        assert -1 <= e.low <= e.value <= e.high <= 1
        assert e.high - e.low > 0.1


def test_one_cluster_or_no_prompt_says_nothing():
    assert np.isnan(share_change(np.array([-1.0, -1.0]), np.array([3, 3])).p)
    assert np.isnan(share_change(np.zeros(0), np.zeros(0, int)).value)
    some, none = change(3, 0, 9), (np.zeros(0), np.zeros(0, int))
    assert np.isnan(difference_of_changes(some, none).value)


@pytest.mark.parametrize(("n", "least"), [(10, 0.885), (20, 0.925), (40, 0.93)])
def test_the_interval_covers_whatever_the_shares_are(n, least):
    """Exactly: every table of n prompts, weighed by its probability, over a grid of true shares lost and gained."""
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    ends = np.array([(e.low, e.high) for t in tables if (e := share_change(*change(*t, n)))])
    grid = [(a, b) for a in np.linspace(0, 1, 11) for b in np.linspace(0, 1, 11) if a + b <= 1 + 1e-9]
    covered = []
    for a, b in grid:
        weights = stats.multinomial.pmf([(x, y, n - x - y) for x, y in tables], n, [a, b, max(0.0, 1 - a - b)])
        covered.append(weights @ ((ends[:, 0] <= b - a + 1e-9) & (ends[:, 1] >= b - a - 1e-9)))
    assert min(covered) > least
    assert np.mean(covered) > 0.95


def test_the_interval_of_a_difference_covers_and_is_no_point():
    """Two sets of 20 prompts, 1,000 experiments: 0.93 is 0.95 less three standard errors of a share."""
    rng = np.random.default_rng(1)
    for lost, gained, other in [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.9, 0.05, 0.1), (0.3, 0.3, 0.3), (1.0, 0.0, 0.0)]:
        truth, hits = (gained - lost) + other, 0
        drawn = [rng.multinomial(20, np.clip(p, 0, 1), size=1000) for p in shares_of(lost, gained, other)]
        for one, two in zip(*drawn, strict=True):
            e = apart(found(*one[:2].tolist()), found(*two[:2].tolist()))
            assert e.low <= e.value <= e.high
            assert e.high - e.low > 0.1
            hits += e.low - 1e-9 <= truth <= e.high + 1e-9
        assert hits / 1000 > 0.93


def shares_of(lost, gained, other):
    return (lost, gained, 1 - lost - gained), (other, 0.0, 1 - other)


@cache
def found(lost, gained):
    return share_change(*change(lost, gained, 20))


def rows_like(rng, shares, n=20):
    return rng.choice([-1.0, 1.0, 0.0], p=np.clip(shares, 0, 1), size=n), np.arange(n)


def test_the_p_of_a_difference_shares_out_the_clusters_anew():
    """The oracle: every way to call 5 of 9 prompts harmful."""
    first, second = np.array([-1, -1, -1, 0, -1.0]), np.array([0, 0, 1, -1.0])
    both = np.concatenate([first, second])
    found = [abs(both[list(k)].mean() - np.delete(both, k).mean()) for k in itertools.combinations(range(9), 5)]
    real = abs(first.mean() - second.mean())
    e = difference_of_changes((first, np.arange(5)), (second, np.arange(4)))
    assert e.value == pytest.approx(first.mean() - second.mean())
    assert e.p == pytest.approx(np.mean(np.array(found) >= real - 1e-12))


def test_the_ps_are_seldom_small_where_nothing_changed():
    """Models that differ by chance alone: 300 experiments, 0.05 plus three standard errors of the share."""
    rng, small = np.random.default_rng(2), []
    for _ in range(300):
        sets = [rows_like(rng, (0.25, 0.25, 0.5), n=7) for _ in range(2)]
        small.append([share_change(*sets[0]).p < 0.05, difference_of_changes(*sets).p < 0.05])
    assert np.mean(small, axis=0).max() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
