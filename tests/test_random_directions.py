"""Random directions have no side: where a sign could matter, draws are uniform on the sphere, and where QR leaves the
sign to LAPACK, only squares are read."""

from __future__ import annotations

import numpy as np
import pytest
from state_changes import orthonormal

from graddiag.analyzers._directions import agreement
from graddiag.analyzers._retention import _along_random
from graddiag.intervention import Intervention, random_like
from graddiag.projection._draws import becomes_orthonormal, unbiased

D, N = 8, 4000
ONE = np.eye(D)[0]


def added(seed):
    return random_like(Intervention(add={0: 3 * ONE}), seed=seed).add[0] / 3


def removed(seed):
    x = random_like(Intervention(remove={0: np.eye(D)[:2]}), seed=seed).remove[0][0]
    return x / np.linalg.norm(x)


def orthonormal_rows(seed):
    assert becomes_orthonormal(2, D)
    return unbiased(np.random.default_rng(seed).normal(size=(2, D)), D)[0] / np.sqrt(D / 2)


def of_lapack(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, 2)))[0][:, 0]


def check_uniform(draws):
    """Mean, covariance and fourth moment of uniform directions, each within 4.5 of its standard errors."""
    n = len(draws)
    assert np.abs(draws.mean(axis=0)).max() < 4.5 / np.sqrt(n * D)
    second = draws.T @ draws / n
    assert np.abs(second - np.eye(D) / D).max() < 4.5 * np.sqrt(3 / (D * (D + 2)) / n)
    assert (draws**4).mean() == pytest.approx(3 / (D * (D + 2)), rel=0.05)


@pytest.mark.parametrize("draw", [added, removed, orthonormal_rows])
def test_random_directions_are_uniform_on_the_sphere_with_no_side_of_their_own(draw):
    check_uniform(np.stack([draw(seed) for seed in range(N)]))


def test_columns_of_a_bare_qr_would_be_found_out():
    with pytest.raises(AssertionError):
        check_uniform(np.stack([of_lapack(seed) for seed in range(N)]))


def test_a_shift_lies_along_random_directions_as_often_one_way_as_the_other():
    """Cosines with any vector: mean 0 and mean square 1 / d."""
    found = _along_random(5 * ONE, 20_000, np.random.default_rng(1)) / 5
    assert abs(found.mean()) < 4.5 / np.sqrt(20_000 * D)
    assert (found**2).mean() == pytest.approx(1 / D, rel=0.05)
    assert np.mean(found > 0) == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(20_000))


def test_what_is_read_of_spaces_does_not_see_the_signs_of_their_directions():
    rng = np.random.default_rng(3)
    a, b = (orthonormal(rng, D, 3) for _ in range(2))
    for signs in ([1, -1, 1], [-1, -1, -1]):
        assert agreement(a * signs, b) == pytest.approx(agreement(a, b), rel=1e-12)
