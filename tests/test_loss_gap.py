"""The loss gap: of pairs, of sides, and token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from scipy import stats
from tables import RECIPE, changed, compared, draw, random_pair, table_of, taken

from graddiag.analyzers import loss_gap
from graddiag.permutations import smallest_p


def test_the_loss_gap_is_that_of_the_pairs_and_the_means_are_those_of_the_sides() -> None:
    left, right = random_pair(RECIPE)
    right = taken(right, range(2, 12))
    got = loss_gap(compared(left, right))
    gaps = [left.signals.loss[i] - right.signals.loss[i - 2] for i in range(2, 12)]
    assert got.gap == pytest.approx(gaps)
    assert got.ids == left.signals.ids[2:]
    assert got.mean.value == pytest.approx(slow.mean(gaps))
    assert (got.left_mean, got.right_mean) == (left.signals.loss.mean(), right.signals.loss.mean())
    assert got.effect_size == pytest.approx(np.mean(gaps) / np.std(gaps, ddof=1))
    assert got.wilcoxon_p == stats.wilcoxon(gaps).pvalue
    totals = slow.cluster_totals([np.array([g]) for g in gaps], left.signals.clusters[2:])
    assert got.mean.p == slow.sign_flip_p(totals)
    assert (got.n_pairs, got.n_clusters, got.n_identical) == (10, 4, 10)


def test_a_constant_gap_has_no_effect_size_but_the_smallest_p() -> None:
    left = table_of(draw(RECIPE, 1), loss=[1.0 + 0.1 * i for i in range(12)])
    right = table_of(draw(RECIPE, 2), name="right", loss=[0.7 + 0.1 * i for i in range(12)])
    got = loss_gap(compared(left, right))
    assert math.isnan(got.effect_size)
    assert got.mean.p == smallest_p(4)
    assert (got.mean.low, got.mean.high) == pytest.approx((0.3, 0.3))


def test_gaps_by_token_use_the_pairs_with_the_same_tokens_that_reach_the_position() -> None:
    left, right = random_pair(replace(RECIPE, n=14))
    other = (np.array([7, 7, 7]), *right.signals.target_ids[1:])
    right = changed(right, lambda s: replace(s, target_ids=other))
    got = loss_gap(compared(left, right))
    assert got.n_identical == 13
    for t in range(9):
        rows = [i for i in range(1, 14) if len(left.signals.token_loss[i]) > t]
        if len(rows) < 5:
            assert len(got.position_gap) <= t
            continue
        gaps = [left.signals.token_loss[i][t] - right.signals.token_loss[i][t] for i in rows]
        expected = slow.mean_with_interval(gaps, [left.signals.clusters[i] for i in rows])
        assert (got.position_gap[t], got.position_low[t], got.position_high[t]) == pytest.approx(expected)
        assert got.position_n[t] == len(rows)
    assert 3 <= len(got.position_gap) < 9
