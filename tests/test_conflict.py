"""Conflict: cosines between gradients against double loops, and what centring does to them."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import BLOCKS, RECIPE, Recipe, Table, changed, compared, directions, draw, random_pair, table_of, taken

from graddiag.analyzers import Conflict, ConflictScope, conflict
from graddiag.comparison import Comparison
from graddiag.permutations import DRAWS


def _uneven_pair(projection: str = "logra", *, recipe: Recipe = RECIPE) -> tuple[Table, Table]:
    """Sides of 12 and 9 rows of which 7 are pairs, in another order, some in clusters of another name."""
    left, right = random_pair(replace(recipe, projection=projection))
    right = taken(right, [11, 3, 4, 0, 9, 8, 2, 5, 6])
    ids = (*right.signals.ids[:7], "new-1", "new-2")
    clusters = ("other", *right.signals.clusters[1:8], "new")
    return left, Table(replace(right.signals, ids=ids, clusters=clusters), right.full)


def _clusters(comparison: Comparison) -> tuple[list[str], list[str]]:
    """Cluster names of both sides; a paired right row has that of its left partner."""
    named = dict(zip(comparison.left.ids, comparison.left.clusters, strict=True))
    right = [named.get(i, c) for i, c in zip(comparison.right.ids, comparison.right.clusters, strict=True)]
    return list(comparison.left.clusters), right


def _check(got: ConflictScope, left: np.ndarray, right: np.ndarray, comparison: Comparison) -> None:
    """All numbers but those of the pairs, against loops over whole vectors."""
    ids, clusters = (comparison.left.ids, comparison.right.ids), _clusters(comparison)
    assert got.within_left == pytest.approx(slow.within(left))
    assert got.within_right == pytest.approx(slow.within(right))
    assert got.across == pytest.approx(slow.across(left, right, *ids))
    assert got.same_cluster == pytest.approx(slow.same_cluster((left, right), ids, clusters))
    assert got.mean_gradient_cosine == pytest.approx(slow.cos(left.mean(axis=0), right.mean(axis=0)))

    def corrected(some: set[str]) -> float:
        kept = [[i for i, c in enumerate(side) if c in some] for side in clusters]
        names = [[side[i] for i in at] for side, at in zip(clusters, kept, strict=True)]
        return slow.corrected(left[kept[0]], right[kept[1]], *names)

    every = set(clusters[0]) | set(clusters[1])
    assert got.corrected.value == pytest.approx(min(corrected(every), 1.0), nan_ok=True)
    low, high = np.clip(slow.jackknife(corrected, every), -1, 1)
    assert (got.corrected.low, got.corrected.high) == pytest.approx((low, high), nan_ok=True)


def _check_pairs(got: Conflict, left: Table, right: Table, rows: tuple[np.ndarray, np.ndarray]) -> None:
    at = {i: k for k, i in enumerate(right.signals.ids)}
    pairs = [(k, at[i]) for k, i in enumerate(left.signals.ids) if i in at]
    cosines = [slow.cos(rows[0][a], rows[1][b]) for a, b in pairs]
    clusters = [left.signals.clusters[a] for a, _ in pairs]
    value, low, high = slow.mean_with_interval(cosines, clusters)
    assert got.paired == pytest.approx(cosines)
    e = got.overall.paired
    assert (e.value, e.low, e.high) == pytest.approx((value, max(low, -1), min(high, 1)))
    assert got.overall.negative_fraction == pytest.approx(np.mean(np.array(cosines) < 0))


@pytest.mark.parametrize("projection", ["logra", "exact"])
def test_all_numbers_are_those_of_whole_vectors(projection: str) -> None:
    left, right = _uneven_pair(projection)
    comparison = compared(left, right)
    got = conflict(comparison)
    _check(got.overall, left.projected(), right.projected(), comparison)
    _check_pairs(got, left, right, (left.projected(), right.projected()))
    for b in BLOCKS:
        _check(got.blocks[b], left.signals.gradients[b], right.signals.gradients[b], comparison)
    assert got.paired_by_block.shape == (3, 7)
    assert got.exact_pairs == (projection == "exact")
    assert set(got.kinds().values()) == {"exact" if projection == "exact" else "projected"}


@pytest.mark.parametrize("projection", ["logra", "exact"])
def test_centring_is_subtracting_the_mean_of_all_rows_of_both_sides(projection: str) -> None:
    left, right = _uneven_pair(projection)
    comparison = compared(left, right, exact=True)
    got = conflict(comparison, center=True)
    grand = np.concatenate([left.projected(), right.projected()]).mean(axis=0)
    rows = left.projected() - grand, right.projected() - grand
    _check(got.overall, *rows, comparison)
    _check_pairs(got, left, right, rows)
    assert got.exact_pairs == (projection == "exact")


def test_centring_forces_the_mean_inner_product_across_the_sides() -> None:
    left, right = _uneven_pair()
    a, b = left.projected(), right.projected()
    grand = np.concatenate([a, b]).mean(axis=0)
    measured = np.mean([(x - grand) @ (y - grand) for x in a for y in b])
    predicted = -12 * 9 / 21**2 * np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    got = conflict(compared(left, right), center=True)
    assert got.forced == pytest.approx(measured, rel=1e-12)
    assert got.forced == pytest.approx(predicted, rel=1e-12)
    assert got.summary()["conflict/forced"] == got.forced < 0
    plain = conflict(compared(left, right))
    assert math.isnan(plain.forced)
    assert "conflict/forced" not in plain.summary()


def test_the_forced_value_of_sides_of_equal_size_is_a_quarter_of_the_distance_of_their_means() -> None:
    left, right = random_pair(RECIPE)
    distance = np.sum((left.projected().mean(axis=0) - right.projected().mean(axis=0)) ** 2)
    assert conflict(compared(left, right), center=True).forced == pytest.approx(-distance / 4, rel=1e-12)


def test_sides_that_share_a_direction_agree_and_centring_alone_makes_them_look_opposed() -> None:
    recipe = Recipe(n=30, shared=3.0, clusters=0, size=96, dim=64)
    comparison = compared(*random_pair(recipe))
    plain, centred = conflict(comparison).overall, conflict(comparison, center=True).overall
    for value in (plain.across, plain.within_left, plain.within_right, plain.paired.value):
        assert value == pytest.approx(0.9, abs=0.03)
    assert plain.corrected.value > 0.98
    assert plain.negative_fraction == 0
    assert -0.1 < centred.across < 0
    assert centred.mean_gradient_cosine == pytest.approx(-1)


def test_exact_products_replace_the_projected_ones_of_pairs_and_nothing_else() -> None:
    left, right = _uneven_pair(recipe=Recipe())
    plain, exact = conflict(compared(left, right)), conflict(compared(left, right, exact=True))
    _check_pairs(exact, left, right, (left.whole(), right.whole()))
    assert exact.overall.negative_fraction != plain.overall.negative_fraction
    assert exact.overall.paired.p == plain.overall.paired.p
    assert exact.overall.paired.value != pytest.approx(plain.overall.paired.value, abs=1e-4)
    for name in ("across", "within_left", "within_right", "same_cluster", "mean_gradient_cosine", "corrected"):
        assert getattr(exact.overall, name) == getattr(plain.overall, name)
    kinds = exact.kinds()
    assert {k for k, v in kinds.items() if v == "exact"} == {
        *("conflict/paired_cosine", "conflict/low", "conflict/high", "conflict/negative_fraction"),
        "conflict/paired_cosine/projection_se",
    }


def test_exact_products_follow_ids_too() -> None:
    left, right = _uneven_pair()
    comparison = compared(left, right, exact=True)
    assert comparison.products is not None
    mixed = Comparison(left.signals, right.signals, comparison.products.take([6, 2, 0, 5, 1, 4, 3]))
    assert (conflict(mixed).paired == conflict(comparison).paired).all()


def test_the_whole_vector_is_no_mean_over_blocks() -> None:
    rng = np.random.default_rng(1)
    big, small = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    left = table_of({"a": 10 * big, "b": small}, projection="exact")
    right = table_of({"a": 10 * big, "b": -small}, projection="exact", name="right")
    got = conflict(compared(left, right))
    assert got.blocks["a"].paired.value == pytest.approx(1)
    assert got.blocks["b"].paired.value == pytest.approx(-1)
    assert got.overall.paired.value > 0.9


@pytest.mark.parametrize("exact", [False, True])
def test_a_zero_row_is_undefined_counted_and_in_no_mean(exact: bool) -> None:
    full = draw(RECIPE, 1)
    right = table_of(draw(RECIPE, 2), name="right")
    without = conflict(compared(taken(table_of(full), [i for i in range(12) if i != 4]), right, exact=exact))
    for g in full.values():
        g[4] = 0
    got = conflict(compared(table_of(full), right, exact=exact))
    assert np.flatnonzero(np.isnan(got.paired)).tolist() == [4]
    assert np.isnan(got.paired_by_block[:, 4]).all()
    assert got.n_undefined == 1
    assert got.overall.paired.value == pytest.approx(without.overall.paired.value)
    assert (got.overall.paired.low, got.overall.paired.high) == pytest.approx(
        (without.overall.paired.low, without.overall.paired.high)
    )
    assert got.overall.within_left == pytest.approx(without.overall.within_left)
    assert got.overall.negative_fraction == without.overall.negative_fraction


def test_a_block_that_is_zero_leaves_the_whole_as_it_is() -> None:
    left, right = random_pair(RECIPE)
    silent = [table_of(t.full | {"silent": np.zeros((12, 48))}, name=n) for t, n in ((left, "left"), (right, "right"))]
    got, expected = conflict(compared(*silent)), conflict(compared(left, right))
    assert math.isnan(got.blocks["silent"].paired.value)
    assert math.isnan(got.blocks["silent"].across)
    assert got.overall.across == pytest.approx(expected.overall.across)
    assert got.block_summary()["silent"]["conflict/q"] is None


def test_means_that_cancel_have_no_direction() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 48))
    left = table_of({"a": np.concatenate([rows, -rows])})
    right = table_of({"a": np.random.default_rng(2).normal(size=(10, 48))}, name="right")
    assert math.isnan(conflict(compared(left, right)).overall.mean_gradient_cosine)


@pytest.mark.parametrize("seed", range(6))
def test_sides_whose_clusters_have_nothing_in_common_have_no_corrected_cosine(seed: int) -> None:
    unlike = np.linalg.qr(np.random.default_rng(seed).normal(size=(48, 48)))[0]
    sides = [table_of({"a": np.repeat(rows, 2, axis=0)}, projection="exact") for rows in (unlike[:6], unlike[6:12])]
    clusters = tuple(f"c{i // 2}" for i in range(12))
    left, right = (changed(t, lambda s: replace(s, clusters=clusters)) for t in sides)
    got = conflict(compared(left, right)).overall
    assert math.isnan(got.corrected.value)
    assert math.isfinite(got.mean_gradient_cosine)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_that_equals_the_mean_has_no_direction_once_centred(seed: int) -> None:
    middle, away = np.random.default_rng(seed).normal(size=(2, 48))
    left, right = {"a": np.stack([middle + away, middle - away])}, {"a": np.stack([middle, middle])}
    got = conflict(compared(table_of(left), table_of(right, name="right")), center=True)
    assert np.isnan(got.paired).all()
    assert got.overall.within_left == pytest.approx(-1)
    assert math.isnan(got.overall.within_right)


def test_identical_rows_have_no_direction_once_centred() -> None:
    same = {"a": np.tile(np.random.default_rng(1).normal(size=48), (4, 1))}
    got = conflict(compared(table_of(same), table_of(same, name="right")), center=True)
    assert np.isnan(got.paired).all()
    assert got.forced == pytest.approx(0, abs=1e-12)
    assert got.overall.label_p == 1, "nothing moves, whatever the labels"
    found = {v for k, v in got.summary().items() if k not in {"conflict/forced", "conflict/label_distance/p"}}
    assert found == {None}


def test_partners_that_are_alike_are_told_from_rows_that_only_share_a_cluster() -> None:
    recipe = Recipe(n=16, cluster_effect=2.0)
    base = draw(recipe, 1)
    noise = [draw(recipe, s) for s in (2, 3)]
    clusters = [f"c{i % 4}" for i in range(16)]
    alike = [
        table_of({b: base[b] + 0.1 * n[b] for b in base}, name=k, clusters=clusters)
        for k, n in zip("ab", noise, strict=True)
    ]
    alone = [table_of(n, name=k, clusters=clusters) for k, n in zip("ab", noise, strict=True)]
    got, null = conflict(compared(*alike)).overall, conflict(compared(*alone)).overall
    assert got.paired.p < 0.001 < null.paired.p
    assert got.paired.value > got.same_cluster + 0.1
    assert null.paired.value == pytest.approx(null.same_cluster, abs=0.1)
    assert null.paired.value > 0.5


def test_without_rows_that_share_a_cluster_the_pairing_cannot_be_tested() -> None:
    left, right = random_pair(replace(RECIPE, clusters=0))
    got = conflict(compared(left, right)).summary()
    assert got["conflict/p"] is got["conflict/same_cluster"] is None
    assert got["conflict/low"] is not None


def _with_known_cosine(seed: int) -> Comparison:
    """Sides whose expected gradients have the cosine 0.6, with strong effects of clusters that both sides share."""
    unit = directions(np.random.default_rng(9), ("a", "b"), 24)
    u, v = np.concatenate([unit["a"], 0 * unit["a"]]), np.concatenate([0 * unit["b"], unit["b"]])
    noise = Recipe(n=40, clusters=10, cluster_effect=1.5, blocks=("w",), cluster_seed=seed)
    clusters = [f"c{i % 10}" for i in range(40)]
    left = {"w": draw(noise, 2 * seed)["w"] + 1.5 * u}
    right = {"w": draw(noise, 2 * seed + 1)["w"] + 1.5 * (0.6 * u + 0.8 * v)}
    tables = (table_of(g, name=n, clusters=clusters, projection="exact") for g, n in ((left, "left"), (right, "right")))
    return compared(*tables)


def test_the_corrected_cosine_is_right_on_average_and_its_interval_covers_while_the_plain_one_is_biased() -> None:
    repeats = 150
    found = [conflict(_with_known_cosine(s)).overall for s in range(1, 1 + repeats)]
    values = np.array([s.corrected.value for s in found])
    covered = np.mean([s.corrected.low <= 0.6 <= s.corrected.high for s in found])
    plain = np.array([s.mean_gradient_cosine for s in found])
    error = values.std() / math.sqrt(repeats)
    assert abs(values.mean() - 0.6) < 4 * error + 0.01
    assert plain.mean() > 0.6 + 8 * error
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


def test_a_further_block_needs_memory_for_its_permutations_only() -> None:
    def peak(blocks: int) -> int:
        comparison = compared(*random_pair(Recipe(n=100, blocks=tuple(map(str, range(blocks))), size=4, dim=2)))
        tracemalloc.start()
        try:
            conflict(comparison)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one_matrix = 200 * 200 * 8
    permutations = 20 * (1 + DRAWS) * 8
    assert peak(24) - peak(4) < permutations + 2 * one_matrix
