"""Inner products and cosines of all rows: order, selection, precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import RECIPE, draw, random_pair, random_table, table_of, taken

from graddiag.analyzers import cosine_matrix
from graddiag.errors import DataError, UsageError


def test_the_matrix_is_ordered_by_side_cluster_and_id() -> None:
    left, right = random_pair(RECIPE)
    right = taken(right, np.random.default_rng(1).permutation(12))
    got = cosine_matrix([left.signals, right.signals])
    keys = list(zip(got.sides, got.clusters, got.ids, strict=True))
    assert keys == sorted(keys)
    assert got.shown == got.available == (12, 12)
    assert got.selection == ()
    at = {(0, i): v for i, v in zip(left.signals.ids, left.projected(), strict=True)}
    at |= {(1, i): v for i, v in zip(right.signals.ids, right.projected(), strict=True)}
    rows = [at[s, i] for s, i in zip(got.sides.tolist(), got.ids, strict=True)]
    assert got.values == pytest.approx(np.array([[slow.cos(a, b) for b in rows] for a in rows]))


def test_a_matrix_of_many_rows_shows_evenly_spaced_ones_and_says_so() -> None:
    left, right = random_pair(replace(RECIPE, n=21, clusters=1))
    got = cosine_matrix([left.signals, taken(right, range(4)).signals], limit=5)
    ordered = sorted(left.signals.ids)
    assert got.ids[:5] == tuple(ordered[i] for i in (0, 5, 10, 15, 20))
    assert got.shown == (5, 4)
    assert got.selection == ("left: 5 of 21 rows, evenly spaced",)


def test_a_zero_row_of_the_matrix_is_undefined_and_a_broken_row_is_not_in_it() -> None:
    full = draw(RECIPE, 1)
    for g in full.values():
        g[2] = 0
    got = cosine_matrix([table_of(full, finite=[i != 5 for i in range(12)]).signals])
    assert "row-5" not in got.ids
    k = got.ids.index("row-2")
    assert np.isnan(got.values[k]).all()
    assert np.isnan(got.values[:, k]).all()
    assert np.isnan(got.values).sum() == 21


def test_a_matrix_of_nothing_is_refused() -> None:
    left, right = random_pair(RECIPE)
    other = random_table(replace(RECIPE, dim=8)).signals
    with pytest.raises(DataError, match="no table to compare"):
        cosine_matrix([])
    with pytest.raises(UsageError, match="matrix of 0 rows"):
        cosine_matrix([left.signals, right.signals], limit=0)
    with pytest.raises(DataError, match="not measured in the same space"):
        cosine_matrix([left.signals, other])
