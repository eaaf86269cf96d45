"""The directions between two subspaces, and what they may know of: against projections, and of planted directions."""

from __future__ import annotations

import numpy as np
import pytest
from state_changes import SITE, change_of, moved, orthonormal

from graddiag.analyzers import shared_space, subspace_overlap
from graddiag.analyzers._directions import leading
from graddiag.analyzers._states import centred
from graddiag.comparison import Comparison

WIDTH = 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def change(c: Comparison) -> np.ndarray:
    return np.asarray(centred(c.left.states[SITE] - c.right.states[SITE]))


def test_it_is_the_leading_space_of_the_sum_of_both_projections(rng):
    a, b = (moved(rng, orthonormal(rng, WIDTH, 3), name) for name in "AB")
    found = shared_space(a, b, SITE, k=3).directions
    p_a, p_b = (x @ x.T for x in (leading(change(c), 3) for c in (a, b)))
    oracle = np.linalg.eigh(p_a + p_b)[1][:, -3:]
    assert np.abs(found @ found.T - oracle @ oracle.T).max() < 1e-10
    swapped = shared_space(b, a, SITE, k=3).directions
    assert np.abs(found @ found.T - swapped @ swapped.T).max() < 1e-10


def test_a_direction_that_both_sets_move_along_is_in_it_and_their_own_ones_are_not(rng):
    three = orthonormal(rng, WIDTH, 3)
    common = three[:, :1]
    a, b = (moved(rng, np.hstack([common * 2, three[:, i : i + 1]]), name, n=200) for name, i in (("A", 1), ("B", 2)))
    one = shared_space(a, b, SITE, k=1).directions
    assert abs(float(one[:, 0] @ common[:, 0])) > 0.99


def test_its_sizes_and_overlap_are_those_of_the_overlap_of_the_two_sets(rng):
    both = orthonormal(rng, WIDTH, 2)
    a, b = moved(rng, both, "A"), moved(rng, np.hstack([both, orthonormal(rng, WIDTH, 1)]), "B")
    found, whole = shared_space(a, b, SITE), subspace_overlap(a, b, n_null=3)
    assert found.overlap == pytest.approx(whole.overall.overlap.value, abs=1e-12)
    assert found.directions.shape == (WIDTH, min(found.k))
    assert found.k == (2, 3)


def test_rows_of_other_clusters_do_not_enter(rng):
    two = orthonormal(rng, WIDTH, 2)
    sets = [moved(rng, two, name) for name in "AB"]
    within = frozenset(f"{name}-{i}" for name in "AB" for i in range(20))
    found = shared_space(sets[0], sets[1], SITE, within=within, k=2)
    spoiled = []
    for c, name in zip(sets, "AB", strict=True):
        tuned = c.left.states[SITE].copy()
        tuned[20:] += 100 * rng.normal(size=(20, WIDTH))
        spoiled.append(change_of(tuned, c.right.states[SITE], name))
    again = shared_space(spoiled[0], spoiled[1], SITE, within=within, k=2)
    assert np.array_equal(found.directions, again.directions)
    assert found.n_rows == (20, 20)
    whole = shared_space(spoiled[0], spoiled[1], SITE, k=2)
    assert not np.allclose(whole.directions @ whole.directions.T, found.directions @ found.directions.T)


@pytest.mark.parametrize(("n", "k"), [(0, None), (1, None), (3, 3), (3, 5)])
def test_too_few_rows_share_nothing(rng, n, k):
    a, b = (moved(rng, orthonormal(rng, WIDTH, 1), name) for name in "AB")
    within = frozenset(f"{name}-{i}" for name in "AB" for i in range(n))
    found = shared_space(a, b, SITE, within=within, k=k)
    assert found.directions.shape == (WIDTH, 0)
    assert np.isnan(found.overlap)


def test_models_that_are_identical_share_nothing(rng):
    rows = rng.normal(size=(20, WIDTH))
    a, b = (change_of(rows, rows, name) for name in "AB")
    assert shared_space(a, b, SITE).directions.shape == (WIDTH, 0)
