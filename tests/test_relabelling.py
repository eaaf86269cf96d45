"""Sides named by chance: against every relabelling, against sign flips of pairs, and what centring shows of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import BLOCKS, RECIPE, Recipe, Table, changed, compared, random_pair, table_of, taken

from graddiag.analyzers import conflict, framing
from graddiag.analyzers._rows import Rows, label_products
from graddiag.comparison import Comparison
from graddiag.permutations import DRAWS, EXHAUSTIVE, familywise_p
from graddiag.relabelling import Relabellings

DESIGNS = {  # left and right rows of each cluster
    "pairs": ((3, 1, 2, 4), (3, 1, 2, 4)),
    "unequal pairs of sides": ((3, 1, 2, 4), (1, 2, 5, 1)),
    "clusters of one side": ((3, 1, 2, 0, 0, 0), (0, 0, 0, 2, 1, 4)),
    "both kinds": ((3, 1, 2, 0, 0), (1, 2, 0, 4, 1)),
    "rows of their own on one side": ((2, 2, 1, 1), (2, 2, 0, 0)),
}


def _sides(counts: tuple[tuple[int, ...], tuple[int, ...]], *, shift: float = 0.0, seed: int = 0) -> Comparison:
    """Sides without partners, with so many rows of each cluster; the left one shifted."""
    rng = np.random.default_rng(seed)
    tables = []
    for name, side in zip(("left", "right"), counts, strict=True):
        clusters = [f"c{k}" for k, n in enumerate(side) for _ in range(n)]
        full = {b: rng.normal(size=(len(clusters), 16)) + (shift if name == "left" else 0.0) for b in ("a", "b")}
        ids = [f"{name}-{i}" for i in range(len(clusters))]
        tables.append(table_of(full, name=name, ids=ids, clusters=clusters, projection="exact"))
    return compared(*tables)


def _distances(comparison: Comparison, left: np.ndarray, right: np.ndarray) -> list[float]:
    named = dict(zip(comparison.left.ids, comparison.left.clusters, strict=True))
    of_right = [named.get(i, c) for i, c in zip(comparison.right.ids, comparison.right.clusters, strict=True)]
    return slow.label_distances(left, right, (comparison.left.clusters, of_right))


def _whole(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    sides = ((t, t.blocks) for t in (comparison.left, comparison.right))
    left, right = (np.concatenate([t.gradients[b] for b in blocks], axis=1) for t, blocks in sides)
    return left, right


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("center", [False, True])
def test_the_p_of_labels_is_the_share_of_all_relabellings_centred_or_not(
    design: str, shift: float, center: bool
) -> None:
    comparison = _sides(DESIGNS[design], shift=shift)
    expected = _distances(comparison, *_whole(comparison))
    got = conflict(comparison, center=center)
    assert got.overall.label_p == pytest.approx(slow.label_p(expected))
    assert got.overall.label_distance == pytest.approx(expected[0] / np.mean(expected[1:]))
    for b in ("a", "b"):
        distances = _distances(comparison, comparison.left.gradients[b], comparison.right.gradients[b])
        assert got.blocks[b].label_p == pytest.approx(slow.label_p(distances))
    assert got.block_summary()["a"]["conflict/label_distance/p"] == got.blocks["a"].label_p


def test_partners_share_the_cluster_of_the_left_one_and_rows_that_are_not_finite_have_no_label() -> None:
    left, right = random_pair(RECIPE)
    right = taken(right, [11, 3, 4, 0, 9, 8, 2, 5, 6])
    clusters = ("other", *right.signals.clusters[1:7], "new", "new")
    right = Table(replace(right.signals, ids=(*right.signals.ids[:7], "n1", "n2"), clusters=clusters), right.full)
    left = changed(left, lambda s: replace(s, finite=np.arange(12) != 5))
    comparison = compared(left, right)
    kept = comparison.left.take(np.flatnonzero(comparison.left.finite))
    expected = _distances(Comparison(kept, comparison.right), np.delete(left.projected(), 5, axis=0), right.projected())
    assert conflict(comparison).overall.label_p == pytest.approx(slow.label_p(expected))


@pytest.mark.parametrize("clusters", [6, 20])
def test_where_every_row_has_a_partner_relabelling_is_the_sign_flip_of_framing(clusters: int) -> None:
    comparison = compared(*random_pair(Recipe(n=40, clusters=clusters, cluster_effect=0.5)))
    labels, flips = conflict(comparison), framing(comparison)
    rounding = 2e-4  # of single precision, where signs are drawn
    assert labels.overall.label_p == pytest.approx(flips.overall.p, abs=rounding)
    for b in BLOCKS:
        assert labels.blocks[b].label_p == pytest.approx(flips.blocks[b].p, abs=rounding)
    relative = flips.overall.consistency / flips.overall.consistency_null
    drawn = 0.0 if clusters <= EXHAUSTIVE else 0.05  # of the mean over 10,000 flips; over all of them it is exact
    assert labels.overall.label_distance == pytest.approx(relative, rel=1e-9 + drawn)


def test_within_less_across_is_the_distance_of_the_means() -> None:
    comparison = _sides(DESIGNS["both kinds"], shift=0.3)
    left, right = _whole(comparison)
    rows, every = Rows.of(comparison), np.concatenate([left, right])
    counts = [np.bincount(c, minlength=rows.n_clusters) for c in (rows.left_clusters, rows.right_clusters)]
    null = Relabellings.of(*counts).null(label_products(every @ every.T, rows))
    means = [float(np.mean(a @ b.T)) for a, b in ((left, left), (right, right), (left, right))]
    assert null.values[0] == pytest.approx(means[0] + means[1] - 2 * means[2])


def test_random_relabellings_agree_with_all_of_them() -> None:
    """Within 4 Monte-Carlo standard errors; 16,016 ways are too many to be tried."""
    comparison = _sides(((2, 2, 2) + (2,) * 5 + (0,) * 9, (1, 1, 1) + (0,) * 5 + (1,) * 9), shift=0.12)
    expected = slow.label_p(_distances(comparison, *_whole(comparison)))
    assert 0.02 < expected < 0.5
    got = conflict(comparison).overall.label_p
    assert abs(got - expected) < 4 * math.sqrt(expected * (1 - expected) / DRAWS)


def test_a_relabelling_leaves_as_many_clusters_of_one_side_to_each_side() -> None:
    left, right = np.array([2, 1] + [1] * 9 + [0] * 21), np.array([1, 3] + [0] * 9 + [1] * 21)
    signs = Relabellings.of(left, right).signs
    assert len(signs) == 1 + DRAWS
    lefts = signs[:, 2:] * np.repeat([1, -1], [9, 21]) > 0
    assert set(lefts.sum(axis=1)) == {9}
    assert abs(lefts[1:].mean(axis=0) - 9 / 30).max() < 4 * math.sqrt(0.3 * 0.7 / DRAWS)
    assert abs(signs[1:, :2].mean(axis=0)).max() < 4 / math.sqrt(DRAWS)


def test_sides_that_differ_are_told_apart_in_the_block_where_they_do_and_only_there() -> None:
    rng, counts = np.random.default_rng(3), (np.repeat([1, 0], 15), np.repeat([0, 1], 15))
    labels = Relabellings.of(*counts)
    sign = np.repeat([1.0, -1.0], 15)[:, None]
    drawn = [rng.normal(size=(30, 8)) + (0.8 * (sign > 0) if b == 4 else 0.0) for b in range(10)]
    rows = [(x - x.mean(axis=0)) * sign for x in drawn]
    got = familywise_p([labels.null(x @ x.T) for x in rows])
    assert got[4] < 0.01
    assert np.delete(got, 4).min() > 0.05


@pytest.mark.parametrize(("spread", "false"), [(1.0, False), (4.0, True)])
def test_rows_of_unequal_spread_cross_the_null_where_the_noisier_side_is_the_smaller_and_equal_ones_do_not(
    spread: float, false: bool
) -> None:
    """What the p is about: do labels mean anything, not whether the expected gradients are equal."""
    counts, repeats = (np.repeat([1, 0], [6, 30]), np.repeat([0, 1], [6, 30])), 400
    labels, rng, sign = Relabellings.of(*counts, draws=199), np.random.default_rng(4), np.where(counts[0], 1.0, -1.0)
    found = []
    for _ in range(repeats):
        rows = rng.normal(size=(36, 5)) * np.where(counts[0], spread, 1.0)[:, None]
        rows = (rows - rows.mean(axis=0)) * sign[:, None]
        found.append(labels.null(rows @ rows.T).p <= 0.05)
    rate = float(np.mean(found))
    assert rate > 0.2 if false else abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_one_cluster_a_side_cannot_be_told_apart() -> None:
    assert conflict(_sides(((3, 0), (0, 4)), shift=5.0)).overall.label_p == 1
    assert math.isnan(conflict(_sides(((3,), (4,)), shift=5.0)).overall.label_p)


def test_the_seed_decides_which_relabellings_are_drawn_and_of_equal_seeds_they_are_the_same() -> None:
    counts = np.repeat([1, 0], 20), np.repeat([0, 1], 20)
    one, same, other = (Relabellings.of(*counts, seed=s).signs for s in (1, 1, 2))
    assert (one == same).all()
    assert (one[1:] != other[1:]).any()
    assert (one[0] == 1).all()
