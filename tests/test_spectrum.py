"""The change of one set's states: mean and components apart."""

from __future__ import annotations

import numpy as np
import pytest
from state_changes import SITE, change_of, moved, orthonormal

from graddiag.analyzers import shift
from graddiag.analyzers._directions import FLIPS, count_components, leading, singular_values
from graddiag.errors import DataError

WIDTH = 30


def test_identical_models_have_no_shift_at_all() -> None:
    rows = np.random.default_rng(0).normal(size=(20, WIDTH))
    found = shift(change_of(rows, rows), SITE)
    assert (found.size, found.k, found.mean_p) == (0.0, 0, 1.0)
    summary = found.summary()
    assert summary["subspace/size:harmful"] == 0.0
    assert summary["subspace/k:harmful"] == 0.0
    assert summary["subspace/mean_norm:harmful"] is None
    assert summary["subspace/first_share:harmful"] is None


def test_one_vector_added_to_all_states_is_mean_and_no_component() -> None:
    rng = np.random.default_rng(1)
    rows, added = rng.normal(size=(20, WIDTH)), rng.normal(size=WIDTH)
    found = shift(change_of(rows + added, rows), SITE)
    assert found.mean_share == pytest.approx(1.0)
    assert found.mean_norm.value == pytest.approx(np.linalg.norm(added))
    assert found.mean_p < 0.001
    assert found.size == pytest.approx(np.sqrt(20) * np.linalg.norm(added) / np.linalg.norm(rows))


def test_the_mean_changes_nothing_in_the_centred_spectrum() -> None:
    planted = orthonormal(np.random.default_rng(2), WIDTH, 3)
    without, with_mean = (shift(moved(np.random.default_rng(3), planted, mean=m), SITE) for m in (0.0, 5.0))
    np.testing.assert_allclose(with_mean.shares, without.shares, rtol=1e-9)
    assert without.k == with_mean.k == 3
    assert with_mean.mean_share > 10 * with_mean.mean_share_null
    assert without.mean_p > 0.01
    assert with_mean.mean_p < 0.001


@pytest.mark.parametrize("k", [1, 3, 6])
def test_as_many_components_are_counted_as_were_planted(k: int) -> None:
    """At this strength a component cannot be missed; one too many is found in 5 % of sets."""
    counted = [
        shift(moved(np.random.default_rng([k, seed]), orthonormal(np.random.default_rng(seed), WIDTH, k)), SITE).k
        for seed in range(20)
    ]
    assert min(counted) == k
    assert np.median(counted) == k
    assert sum(c > k for c in counted) <= 5  # 5 of 20 at a rate of 5 %: p = 0.003


def test_small_components_are_found_behind_large_ones() -> None:
    rng = np.random.default_rng(5)
    strengths = np.array([200.0, 5.0])
    rows = rng.normal(size=(60, 2)) * strengths @ orthonormal(rng, WIDTH, 2).T + 0.1 * rng.normal(size=(60, WIDTH))
    assert count_components(rows - rows.mean(axis=0)).k == 2


def test_noise_has_a_component_in_one_of_twenty_sets_whatever_its_coordinates_sizes() -> None:
    sizes = np.exp(np.linspace(0, 3, WIDTH))
    n = 300
    found = [
        count_components(np.random.default_rng(s).normal(size=(25, WIDTH)) * sizes, seed=s).k > 0 for s in range(n)
    ]
    rate, expected = np.mean(found), 1 / (FLIPS + 1)
    assert abs(rate - expected) < 3.3 * np.sqrt(expected * (1 - expected) / n)


def test_a_huge_coordinate_hides_components_unless_coordinates_are_scaled() -> None:
    sizes = np.where(np.arange(WIDTH) == 4, 1000.0, 1.0)
    rng = np.random.default_rng(6)
    planted = orthonormal(rng, WIDTH, 2)
    aligned = rng.normal(size=(50, WIDTH)) * sizes
    along = 3 * rng.normal(size=(50, 2)) @ planted.T
    change = change_of(aligned + along + 0.1 * rng.normal(size=(50, WIDTH)) * sizes, aligned)
    assert shift(change, SITE).k == 0
    assert shift(change, SITE, scaled=True).k == 2


def test_leading_directions_are_those_of_the_singular_value_decomposition() -> None:
    for shape in ((12, 30), (30, 12)):
        rows = np.random.default_rng(7).normal(size=shape)
        _, values, vectors = np.linalg.svd(rows, full_matrices=False)
        found = leading(rows, 4)
        np.testing.assert_allclose(found @ found.T, vectors[:4].T @ vectors[:4], atol=1e-9)
        np.testing.assert_allclose(singular_values(rows), values, rtol=1e-9)
    assert np.isnan(leading(np.ones((12, 30)), 2)).all(), "rows of rank 1 have no second direction"


def test_more_components_than_rows_allow_are_refused() -> None:
    rows = np.random.default_rng(8).normal(size=(5, WIDTH))
    with pytest.raises(DataError, match=r"harmful: 5 components were asked for, and 5 rows .* at most 4"):
        shift(change_of(rows + 1, rows), SITE, k=5)
    with pytest.raises(DataError, match="Ask for 1 to 4"):
        shift(change_of(rows + 1, rows), SITE, k=0)


def test_a_site_that_was_not_read_is_named_with_those_that_were() -> None:
    rows = np.random.default_rng(9).normal(size=(5, WIDTH))
    with pytest.raises(DataError, match=r"no states at '7/answer' of tuned.*Sites in this table: 3/first:10"):
        shift(change_of(rows, rows), "7/answer")
