"""The framing gradient, as one vector per pair, against enumeration and deletion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import BLOCKS, RECIPE, Recipe, compared, draw, four_tables, random_pair, table_of

from graddiag.analyzers import framing
from graddiag.statistics import smallest_p


@pytest.mark.parametrize("projection", ["logra", "exact"])
def test_framing_is_that_of_the_differences_of_pairs_as_one_vector(projection: str):
    tables = four_tables(replace(RECIPE, projection=projection), exact=False)
    left, right, safety = (tables[k].projected() for k in ("left", "right", "safety"))
    clusters = tables["left"].signals.clusters
    d = list(left - right)
    got = framing(compared(tables["left"], tables["right"]), tables["safety"].signals).overall
    assert got.consistency == pytest.approx(slow.consistency(d))
    assert got.p == slow.sign_flip_p(slow.cluster_totals(d, clusters))

    def toward_safety(some: set[str]) -> float:
        kept = [x for x, c in zip(d, clusters, strict=True) if c in some]
        return slow.cos(np.mean(kept, axis=0), safety.mean(axis=0))

    assert got.safety_cosine.value == pytest.approx(toward_safety(set(clusters)))
    interval = slow.jackknife(toward_safety, set(clusters))
    assert (got.safety_cosine.low, got.safety_cosine.high) == pytest.approx(interval)


@pytest.mark.parametrize(("dim", "clusters"), [(4, 16), (24, 16), (4, 6)])
def test_the_p_of_framing_is_the_same_from_rows_and_from_products(dim: int, clusters: int):
    recipe = Recipe(n=16, size=24, dim=dim, clusters=clusters, blocks=BLOCKS[:1])
    got = framing(compared(*random_pair(recipe)))
    assert got.blocks[BLOCKS[0]].p == pytest.approx(got.overall.p, abs=2e-4)


def test_a_framing_that_always_pushes_the_same_way_is_as_consistent_as_there_are_pairs():
    full = draw(RECIPE, 1)
    pushed = {b: g + 0.1 for b, g in full.items()}
    got = framing(compared(table_of(pushed), table_of(full, name="right")))
    assert got.overall.consistency == pytest.approx(12)
    assert got.overall.p == smallest_p(4)
    assert "framing/safety_cosine" not in got.summary()
