"""The framing gradient, as one vector per pair, against enumeration and deletion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import BLOCKS, RECIPE, Recipe, compared, draw, four_tables, random_pair, random_table, table_of

from graddiag.analyzers import framing
from graddiag.analyzers._rows import cosine_with_fixed
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


def test_a_framing_gradient_that_is_noise_is_seldom_said_to_lie_along_safety() -> None:
    """At most what 5 % allow: within 4 Monte-Carlo standard errors."""
    rng, repeats = np.random.default_rng(20), 1_500
    safety, counts = rng.normal(size=20), np.ones(40, dtype=np.int64)
    drawn = [rng.normal(size=(40, 20)) for _ in range(repeats)]
    found = [cosine_with_fixed(d @ d.T, d @ safety, float(safety @ safety), counts) for d in drawn]
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
