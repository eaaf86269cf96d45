"""Rows some places at a time: every number that a report has is that of whole matrices."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tables import BLOCKS, RECIPE, Recipe, changed, compared, four_tables, random_pair, table_of

from graddiag import capacity, grams, tiles
from graddiag.analyzers import _matrix, conflict, framing
from graddiag.analyzers._agreement import agreement
from graddiag.capacity import Size, check_capacity
from graddiag.errors import ResourceError
from graddiag.grams import gram as real_gram
from graddiag.pipeline import compare
from graddiag.reporting import Analysis, conclude
from graddiag.running import Run
from graddiag.signals import Signals
from graddiag.tiles import Tiles, fits

SAME = 1e-10  # of numbers in double precision that are added in another order
NO_CLUSTERS, NO_ROWS = 0, 32 * 20**2  # bytes: matrices of clusters do not fit either, or those of 20 and fewer do

# Up to 14 clusters all signs are tried, above that random ones; rows of one cluster, and each row its own.
DESIGNS = {"4 clusters": Recipe(n=30), "18 clusters": Recipe(n=36, clusters=18), "rows": Recipe(n=30, clusters=0)}


def _tables(recipe: Recipe) -> dict[str, Signals]:
    """Sides of which some rows have no partner, are not finite, or are zero, with a safety set and a control."""
    tables = four_tables(replace(recipe, shared=0.5, cluster_effect=0.5))

    def spoilt(s: Signals, n: int) -> Signals:
        rows = {b: g.copy() for b, g in s.gradients.items()}
        for g in rows.values():
            g[1] = 0.0
        rows[BLOCKS[0]][4] = 0.0
        return replace(s, finite=np.arange(len(s)) != n, gradients=rows)

    left = changed(tables["left"], lambda s: spoilt(s, 3)).signals
    right = tables["right"].signals.take([*range(recipe.n - 1, 4, -1), 0, 2])
    safety = changed(tables["safety"], lambda s: replace(s, finite=np.arange(len(s)) != 2)).signals
    return {"left": left, "right": right, "safety": safety, "control-benign": tables["control"].signals}


def _numbers(folder: Path, found: dict[str, Signals], *, center: bool) -> dict[str, dict[str, float]]:
    """The keys of the summary and of each block; NaN where undefined."""
    conclude(found, {}, Analysis(controls=("benign",), center=center), folder, strangers={}, figures=False)
    content = json.loads((folder / "report.json").read_text())
    scopes = {"": content["summary"], **content["blocks"]}
    return {name: {k: math.nan if v is None else v for k, v in keys.items()} for name, keys in scopes.items()}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("whole", [NO_CLUSTERS, NO_ROWS])
@pytest.mark.parametrize("design", DESIGNS)
def test_every_number_of_a_report_is_the_same_from_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, design: str, whole: int, center: bool
) -> None:
    tables = _tables(DESIGNS[design])
    expected = _numbers(tmp_path / "whole", tables, center=center)
    monkeypatch.setattr(tiles, "WHOLE", whole)
    monkeypatch.setattr(tiles, "TILE", 2000)
    monkeypatch.setattr(grams, "gram", _only_what_fits)
    monkeypatch.setattr(_matrix, "whole_products", _drawn)
    got = _numbers(tmp_path / "tiles", tables, center=center)
    assert got.keys() == expected.keys()
    for scope, numbers in expected.items():
        assert got[scope] == pytest.approx(numbers, abs=SAME, rel=SAME, nan_ok=True), scope


def test_a_row_that_equals_the_mean_is_zero_once_centred_from_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    middle, away = np.random.default_rng(0).normal(size=(2, 48))
    left, right = np.stack([middle + away, middle - away]), np.stack([middle, middle])
    comparison = compared(table_of({"a": left}), table_of({"a": right}, name="right"))
    expected = conflict(comparison, center=True)
    monkeypatch.setattr(tiles, "WHOLE", NO_CLUSTERS)
    got = conflict(comparison, center=True)
    assert got.summary() == pytest.approx(expected.summary(), abs=SAME)
    assert math.isnan(got.overall.within_right)
    assert np.isnan(got.paired).all()


def _drawn(tables: Sequence[Signals], known: None) -> np.ndarray:
    """The rows of the figure, of which there are never more than 200 from a table."""
    return np.asarray(sum(real_gram(tables, b) for b in BLOCKS))


def _only_what_fits(tables: Sequence[Signals], block: str) -> np.ndarray:
    n = sum(int(t.finite.sum()) for t in tables)
    assert fits(n), f"a matrix of {n} rows was made, which does not fit"
    return real_gram(tables, block)


def test_tiles_hold_the_finite_rows_of_all_tables_and_all_places_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = random_pair(RECIPE)
    left = changed(left, lambda s: replace(s, finite=np.arange(12) != 3))
    monkeypatch.setattr(tiles, "TILE", 8 * 23 * 5)
    found = list(Tiles((left.signals, right.signals), BLOCKS))
    assert [x.shape[1] for x in found] == [5, 5, 5, 1] * 3
    rows = np.concatenate([np.delete(left.projected(), 3, axis=0), right.projected()])
    assert (np.concatenate(found, axis=1) == rows).all()


def test_memory_does_not_grow_with_the_square_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where each row is its own cluster: the signs of 2,500 of them under 10,000 relabellings take 24 MiB."""
    monkeypatch.setattr(tiles, "WHOLE", 0)
    monkeypatch.setattr(tiles, "TILE", 2**19)
    n = 2500
    comparison = compared(*random_pair(Recipe(n=n, blocks=("a",), size=8, dim=4, clusters=0)))
    tracemalloc.start()
    try:
        conflict(comparison)
        framing(comparison)
        agreement(comparison.left)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * (2 * n) ** 2 / 2, "half of one matrix of all rows"


SIZE = Size({"left": 400, "right": 300, "safety": 100}, numbers=50_000, largest=256, blocks=200)


def test_what_does_not_fit_is_refused_with_the_number_of_rows_that_does() -> None:
    assert SIZE.table_bytes == 4 * 50_000 * 800
    check_capacity(SIZE, free=SIZE.total)
    with pytest.raises(
        ResourceError, match=r"left 400, right 300, safety 100.*50,000 numbers each in 200 blocks.*--lim"
    ):
        check_capacity(SIZE, free=SIZE.total - 1)
    most = SIZE.most(SIZE.total - 1)
    assert 0 < most < 400
    assert SIZE.limited(most).total <= SIZE.total - 1 < SIZE.limited(most + 1).total
    with pytest.raises(ResourceError, match="To go on, use a smaller --dim or fewer --blocks"):
        check_capacity(SIZE, free=1000)


def test_compare_refuses_rows_that_do_not_fit_before_it_measures_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "all", lambda *_, **__: pytest.fail("rows were measured"))
    monkeypatch.setattr(capacity, "DRAWS", 10**12)
    with pytest.raises(ResourceError, match=r"left 4, right 4, safety 4.*GiB are free"):
        compare(
            "insecure", "educational", safety="safety", model="tiny", projection="logra", dim=16, limit=4, out=tmp_path
        )
