"""The framing gradient, as one vector per pair, against enumeration and deletion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from scipy.stats import t
from tables import BLOCKS, RECIPE, Recipe, compared, draw, four_tables, random_pair, random_table, table_of

from graddiag.analyzers import framing
from graddiag.analyzers._rows import cosine_with_fixed
from graddiag.analyzers._two_samples import Sample, TwoSamples
from graddiag.permutations import smallest_p


@pytest.mark.parametrize("projection", ["logra", "exact"])
def test_framing_is_that_of_the_differences_of_pairs_as_one_vector(projection: str) -> None:
    tables = four_tables(replace(RECIPE, projection=projection), exact=False)
    left, right, safety = (tables[k].projected() for k in ("left", "right", "safety"))
    clusters = tables["left"].signals.clusters
    d = list(left - right)
    got = framing(compared(tables["left"], tables["right"]), tables["safety"].signals).overall
    assert got.consistency == pytest.approx(slow.consistency(d))
    assert got.p == slow.sign_flip_p(slow.cluster_totals(d, clusters))

    mean_safety = safety.mean(axis=0)
    norms = np.linalg.norm(np.mean(d, axis=0)) * np.linalg.norm(mean_safety)
    expected = slow.mean_with_interval([float(x @ mean_safety / norms) for x in d], list(clusters))
    assert got.safety_cosine.value == pytest.approx(slow.cos(np.mean(d, axis=0), mean_safety))
    assert (got.safety_cosine.value, got.safety_cosine.low, got.safety_cosine.high) == pytest.approx(expected)


def _apart(rows: np.ndarray, names: list[str]) -> float:
    return slow.apart(rows, rows, names, names)


@pytest.mark.parametrize("projection", ["logra", "exact"])
def test_the_corrected_cosine_with_safety_and_its_interval_are_those_of_loops_over_both_sets_of_clusters(
    projection: str,
) -> None:
    recipe = replace(RECIPE, n=15, projection=projection)
    left = random_table(replace(recipe, direction_seed=3, shared=2.0), seed=1)
    right = random_table(recipe, name="right", seed=2)
    safety = random_table(replace(recipe, n=11, clusters=5, shared=2.0), name="safety", seed=20)
    names = (list(left.signals.clusters), list(safety.signals.clusters))
    rows = (left.projected() - right.projected(), safety.projected())

    def cosine(*kept: set[str]) -> float:
        chosen = [[k for k, c in enumerate(n) if c in some] for n, some in zip(names, kept, strict=True)]
        d, s = (r[at] for r, at in zip(rows, chosen, strict=True))
        squares = [_apart(r, [n[k] for k in at]) for r, n, at in zip((d, s), names, chosen, strict=True)]
        return float(d.mean(axis=0) @ s.mean(axis=0)) / np.sqrt(squares[0] * squares[1])

    every = set(names[0]), set(names[1])
    value = cosine(*every)
    variances = []
    for side, own in enumerate(every):
        drop = [cosine(*(own - {c} if k == side else every[k] for k in (0, 1))) for c in own]
        variances.append((len(own) - 1) / len(own) * sum((r - value) ** 2 for r in drop))
    freedom = sum(variances) ** 2 / sum(v**2 / (len(own) - 1) for v, own in zip(variances, every, strict=True))
    half = t.ppf(0.975, freedom) * np.sqrt(sum(variances))
    found = framing(compared(left, right), safety.signals)
    got = found.overall.safety_cosine_corrected
    assert (got.value, got.low, got.high) == pytest.approx((value, value - half, value + half))
    assert abs(got.value) > abs(found.overall.safety_cosine.value), "noise shortens the raw cosine"
    summary = found.summary()
    assert summary["framing/safety_cosine_corrected/low"] == got.low
    assert found.kinds()["framing/safety_cosine_corrected"] == ("exact" if projection == "exact" else "projected")


def test_a_framing_gradient_or_a_safety_set_that_is_noise_has_no_corrected_cosine() -> None:
    """The squared norm of an expected gradient of zero comes out below 0 in about half of all experiments."""
    rng, repeats = np.random.default_rng(21), 400
    sure, noise = np.ones(8), np.zeros(8)
    counts = np.ones(30, dtype=np.int64)
    for toward in ((sure, noise), (noise, sure)):
        drawn = [[m + rng.normal(size=(30, 8)) for m in toward] for _ in range(repeats)]
        found = [TwoSamples.of(d, s, counts, counts).cosine() for d, s in drawn]
        unmeasured = np.mean([np.isnan(e.value) for e in found])
        assert 0.4 < unmeasured < 0.7
        assert np.mean([e.low > 0 or e.high < 0 for e in found]) < 0.05
        assert all(np.isnan(e.low) for e in found if np.isnan(e.value))


def test_a_single_cluster_on_either_side_leaves_nothing_to_correct_with() -> None:
    rows, counts = np.random.default_rng(1).normal(size=(6, 4)) + 2, np.ones(6, dtype=np.int64)
    one = rows.sum(axis=0, keepdims=True), np.array([6])
    assert np.isfinite(TwoSamples.of(rows, rows + 1, counts, counts).cosine().low)
    for first, second in (((rows, counts), one), (one, (rows, counts))):
        e = TwoSamples.of(first[0], second[0], first[1], second[1]).cosine()
        assert np.isnan([e.value, e.low, e.high]).all()


def test_a_framing_gradient_that_is_noise_is_seldom_said_to_lie_along_safety() -> None:
    """At most what 5 % allow: within 4 Monte-Carlo standard errors."""
    rng, repeats = np.random.default_rng(20), 1_500
    safety, counts = rng.normal(size=20), np.ones(40, dtype=np.int64)
    drawn = [rng.normal(size=(40, 20)) for _ in range(repeats)]
    found = [cosine_with_fixed(Sample.of(d, counts), d @ safety, float(safety @ safety)) for d in drawn]
    false = np.mean([e.low > 0 or e.high < 0 for e in found])
    assert abs(false - 0.05) < 4 * np.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.parametrize(("dim", "clusters"), [(4, 16), (24, 16), (4, 6)])
def test_the_p_of_framing_is_the_same_from_rows_and_from_products(dim: int, clusters: int) -> None:
    recipe = Recipe(n=16, size=24, dim=dim, clusters=clusters, blocks=BLOCKS[:1])
    got = framing(compared(*random_pair(recipe)))
    assert got.blocks[BLOCKS[0]].p == pytest.approx(got.overall.p, abs=2e-4)


def test_a_framing_that_always_pushes_the_same_way_is_as_consistent_as_there_are_pairs() -> None:
    full = draw(RECIPE, 1)
    pushed = {b: g + 0.1 for b, g in full.items()}
    got = framing(compared(table_of(pushed), table_of(full, name="right")))
    assert got.overall.consistency == pytest.approx(12)
    assert got.overall.p == smallest_p(4)
    assert got.summary()["framing/safety_cosine"] is None


def test_framings_that_cancel_point_nowhere() -> None:
    base, pushed = draw(RECIPE, 1), draw(RECIPE, 2)
    full = {b: g.copy() for b, g in base.items()}
    for b, g in full.items():
        g[0::4], g[1::4] = g[0::4] + pushed[b][0::4], g[1::4] - pushed[b][0::4]
    got = framing(compared(table_of(full), table_of(base, name="right")), four_tables()["safety"].signals)
    assert got.overall.consistency == pytest.approx(0, abs=1e-12)
    assert got.summary()["framing/safety_cosine"] is None


def test_the_mean_consistency_over_sign_flips_of_clusters_is_the_null_that_is_printed() -> None:
    sides = [random_table(Recipe(clusters=4, cluster_effect=2.0, cluster_seed=k), name=str(k), seed=k) for k in (1, 2)]
    left, right = sides
    comparison = compared(left, right)
    found = framing(comparison)
    d = left.projected() - right.projected()
    rng = np.random.default_rng(0)
    flips = rng.choice([-1.0, 1.0], size=(20_000, 4))[:, comparison.clusters]
    drawn = ((flips @ d) ** 2).sum(1) / (d**2).sum()
    assert found.overall.consistency_null == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(len(drawn)))
    assert found.overall.consistency_null > 1.2, "pairs of a cluster agree"
