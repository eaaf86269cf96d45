"""The standard error of projected numbers: its parts against finite differences, its size against repetition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tables import BLOCKS, RECIPE, Table, changed, compared, four_tables, table_of, taken

from graddiag.analyzers import alignment, conflict, framing
from graddiag.analyzers._alignment import projected_cosines
from graddiag.analyzers._alignment_error import _Near, _Norms
from graddiag.analyzers._conflict import KEYS, _Frame
from graddiag.analyzers._cosines import rows64
from graddiag.analyzers._framing_sums import block_sums
from graddiag.analyzers._projection_error import Influence, Spread, cosine_influence, spread
from graddiag.gradients import Dense
from graddiag.grams import gram
from graddiag.projection import LoGra
from graddiag.row_layout import RowLayout, row_layout
from graddiag.signals import Block, Signals
from graddiag.statistics import NORMAL

STEP = 1e-5  # of a finite difference: rounding and curvature both stay below 1e-8
PLACES = (0, 7)
COVERAGE_SEEDS = 600  # the share covered is then known to 0.9 points


def _weighted(tables: dict[str, Table], block: str, place: int, weight: float) -> dict[str, Table]:
    """The tables with the products of one place of one block counted `weight` times."""

    def change(signals: Signals) -> Signals:
        rows = signals.gradients[block].copy()
        rows[:, place] *= math.sqrt(weight)
        return replace(signals, gradients={**signals.gradients, block: rows})

    return {role: changed(t, change) for role, t in tables.items()}


def _slope(numbers: Callable[[dict[str, Table]], dict[str, float]], block: str, place: int) -> dict[str, float]:
    up, down = (numbers(_weighted(_tables(), block, place, 1 + s)) for s in (STEP, -STEP))
    return {k: (up[k] - down[k]) / (2 * STEP) for k in up}


def _tables() -> dict[str, Table]:
    """Four tables, one row of the left zero and one not finite; the right has other rows in another order."""
    tables = four_tables(exact=False)
    full = {b: g.copy() for b, g in tables["left"].full.items()}
    for g in full.values():
        g[5] = 0
    ids, clusters = tables["left"].signals.ids, tables["left"].signals.clusters
    finite = [i != 2 for i in range(12)]
    left = table_of(full, ids=ids, clusters=clusters, finite=finite)
    return tables | {"left": left, "right": taken(tables["right"], [11, 3, 4, 0, 9, 8, 2, 5, 6])}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_what_a_place_does_to_a_conflict_is_what_changes_with_its_weight(center: bool, place: int) -> None:
    block = BLOCKS[1]

    def numbers(tables: dict[str, Table]) -> dict[str, float]:
        found = conflict(compared(tables["left"], tables["right"]), center=center)
        out = {}
        for scope, keys in (("whole", found.summary()), ("block", found.block_summary()[block])):
            out |= {f"{scope} {name}": math.nan if keys[key] is None else keys[key] for name, key in KEYS.items()}
        return out

    tables = _tables()
    comparison = compared(tables["left"], tables["right"])
    frame, sides = _Frame.of(comparison, 0, centered=center), (comparison.left, comparison.right)
    found = {}
    for scope, blocks in (("whole", BLOCKS), ("block", (block,))):
        products = np.asarray(sum(gram(sides, b) for b in blocks))
        influences = frame.influences(frame.from_gram(products))
        at = influences.at([np.concatenate([rows64(t, block) for t in sides])])
        found |= {f"{scope} {name}": float(i.moves[place]) for name, i in at.items()}
    assert found == pytest.approx(_slope(numbers, block, place), abs=1e-7, nan_ok=True)
    if center:  # two centred means are opposite, whatever the projection
        assert abs(found.pop("whole mean_gradient_cosine") + found.pop("block mean_gradient_cosine")) < 1e-12
    assert np.nanmin(np.abs(list(found.values()))) > 1e-4, "a place that does nothing would prove nothing"


@pytest.mark.parametrize("place", PLACES)
def test_what_a_place_does_to_framing_is_what_changes_with_its_weight(place: int) -> None:
    block = BLOCKS[0]

    def numbers(tables: dict[str, Table]) -> dict[str, float]:
        found = framing(compared(tables["left"], tables["right"]), tables["safety"].signals).overall
        cosines = {"safety_cosine": found.safety_cosine, "safety_cosine_corrected": found.safety_cosine_corrected}
        return {"consistency": found.consistency} | {name: e.value for name, e in cosines.items()}

    tables = _tables()
    parts = {b: block_sums(compared(tables["left"], tables["right"]), tables["safety"].signals, b)[1:] for b in BLOCKS}
    total, at = parts[BLOCKS[0]][0] + parts[BLOCKS[1]][0] + parts[BLOCKS[2]][0], parts[block][1]
    found = {name: float(i.moves[place]) for name, i in at.influences(total).items()}
    assert found == pytest.approx(_slope(numbers, block, place), abs=1e-7)
    assert np.min(np.abs(list(found.values()))) > 1e-4, "a place that does nothing would prove nothing"


@pytest.mark.parametrize("place", PLACES)
def test_what_a_place_does_to_alignment_is_what_changes_with_its_weight(place: int) -> None:
    block = BLOCKS[2]

    def numbers(tables: dict[str, Table]) -> dict[str, float]:
        found = alignment(compared(tables["left"], tables["right"]), tables["safety"].signals).overall
        return {name: e.value for name, e in found.parts.items()}

    tables = _tables()
    sides = {k: tables[k].signals for k in ("left", "right")}
    safety = tables["safety"].signals
    near = _Near.of(compared(tables["left"], tables["right"]), safety, sides, block)
    norms = _Norms.of(safety, sides, BLOCKS)
    cosines = {name: c.whole for name, c in projected_cosines(sides, safety).items()}
    found = {name: float(i.moves[place]) for name, i in norms.influences(near, cosines).items()}
    assert found == pytest.approx(_slope(numbers, block, place), abs=1e-7)


def _two_way(rng: np.random.Generator, p: int, q: int) -> np.ndarray:
    """A table of cells that share what their row, their column and they alone add: variances 1, 0.25 and 4."""
    return rng.normal(size=(p, 1)) + rng.normal(scale=0.5, size=(1, q)) + rng.normal(scale=2.0, size=(p, q))


@pytest.mark.parametrize(("p", "q", "fixed"), [(6, 5, (0, 0)), (8, 4, (3, 0)), (6, 5, (0, 5)), (6, 6, (2, 3))])
def test_the_variance_is_that_of_repetition_and_counts_what_both_sides_share_once(
    p: int, q: int, fixed: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    still, totals, spreads = _two_way(rng, p, q), [], []
    layout = RowLayout((p, q), fixed)
    for _ in range(20_000):
        cells = _fresh(still, rng, fixed)
        totals.append(cells.sum())
        spreads.append(spread(Influence(cells.ravel(), np.full(p * q, 1 / (p * q))), layout))
    estimate = [s.first + s.second - s.twice for s in spreads]
    error = np.std(estimate) / math.sqrt(len(estimate))
    truth = np.var(totals)
    assert abs(np.mean(estimate) - truth) < 4 * (error + truth * math.sqrt(2 / len(totals)))
    if fixed == (0, 0):
        both = np.array([s.first + s.second for s in spreads])
        twice = p * q**2 + 0.25 * p**2 * q + 2 * 4 * p * q
        assert both.mean() == pytest.approx(twice, abs=4 * both.std() / math.sqrt(len(both))), "cells count twice"


def _fresh(still: np.ndarray, rng: np.random.Generator, fixed: tuple[int, int]) -> np.ndarray:
    """New draws where a place is random; cells of two fixed places stay as they are."""
    p, q = still.shape
    row, column = rng.normal(size=(p, 1)), rng.normal(scale=0.5, size=(1, q))
    cell = rng.normal(scale=2.0, size=(p, q))
    f, g = fixed
    row[:f], column[:, :g], cell[:f, :g] = 0.0, 0.0, 0.0
    if f == p or g == q:  # a side that is kept whole: one draw per place of the other
        cell = np.zeros((p, q))
    elif f or g:
        cell[:f], cell[:, :g] = 0.0, 0.0
    return np.asarray(row + column + cell)


def test_nothing_random_has_no_error_and_a_single_random_place_an_unknown_one() -> None:
    moves = Influence(np.arange(12.0), np.full(12, 1 / 12))
    assert spread(moves, RowLayout((3, 4), (3, 4))).standard_error == 0.0
    assert math.isnan(spread(moves, RowLayout((3, 4), (2, 4))).standard_error)
    assert spread(moves, RowLayout((12,), (0,))).standard_error > 0


def test_independent_blocks_add_their_variances_and_many_leave_no_doubt() -> None:
    rng = np.random.default_rng(1)
    one = [Influence(rng.normal(size=16), np.full(16, 1 / 1600)) for _ in range(100)]
    total = Spread()
    for i in one:
        total = total + spread(i, RowLayout((16,), (0,)))
    assert total.standard_error == pytest.approx(math.sqrt(1600), rel=0.1)
    variance = sum(spread(i, RowLayout((16,), (0,))).first for i in one)
    assert total.standard_error == pytest.approx(math.sqrt(variance), rel=0.01), "no t with few degrees of freedom"


def test_exact_numbers_have_no_standard_error_and_gradients_that_are_not_projected_one_of_zero() -> None:
    tables = four_tables()
    comparison = compared(tables["left"], tables["right"], exact=True)
    found = conflict(comparison).summary()
    assert found["conflict/paired_cosine/projection_se"] is None
    assert found["conflict/across/projection_se"] > 0
    toward = alignment(comparison, tables["safety"].signals)
    assert toward.summary()["alignment/left/projection_se"] is None
    assert conflict(compared(tables["left"], tables["right"])).summary()["conflict/paired_cosine/projection_se"] > 0
    plain = four_tables(replace(RECIPE, projection="exact"))
    comparison = compared(plain["left"], plain["right"])
    safety = plain["safety"].signals
    for result in (conflict(comparison), framing(comparison, safety), alignment(comparison, safety)):
        errors = {k: v for k, v in result.summary().items() if k.endswith("/projection_se")}
        assert set(errors.values()) == {0.0}


@pytest.mark.parametrize("shape", [(40, 30), (24, 30), (24, 20)])
def test_1_96_standard_errors_reach_the_exact_cosine_of_means_in_95_of_100_projections(shape: tuple[int, int]) -> None:
    """Of rank 16, projected to 16 a side: of i.i.d. rows, of orthonormal ones on one side, and on both."""
    rng = np.random.default_rng(2)
    block, layout = Block("b", shape), row_layout("logra", 256, shape)
    left, right = (np.linalg.qr(rng.normal(size=(d, 16)))[0] for d in shape)
    a, b = (left * (w + 1) / np.arange(1, 17) @ right.T for w in rng.normal(size=(2, 16)))
    exact = np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    rows = Dense(torch.from_numpy(np.stack([a, b])))
    covered = []
    for seed in range(COVERAGE_SEEDS):
        x, y = LoGra(256, seed).rows(block, rows).numpy()
        places = np.stack([x * y, x * x, y * y])
        totals = places.sum(axis=1)
        error = spread(cosine_influence(places, totals), layout).standard_error
        covered.append(abs(totals[0] / np.sqrt(totals[1] * totals[2]) - exact) <= NORMAL * error)
    chance = math.sqrt(0.95 * 0.05 / COVERAGE_SEEDS)
    assert 0.93 - 2 * chance < np.mean(covered) < 0.97 + 2 * chance
