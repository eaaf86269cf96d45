"""How well is the safety direction known: against really splitting the set, drawn truths and random directions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import Recipe, compared, four_tables, random_table, table_of

from graddiag.analyzers import alignment
from graddiag.analyzers._row_sums import Groups, RowSums
from graddiag.analyzers._safety_direction import random_direction_sd
from graddiag.analyzers._safety_direction import split_half as of_sums
from graddiag.statistics import Estimate


def split_half(products: np.ndarray, clusters: np.ndarray) -> Estimate:
    groups = Groups.of_one(clusters)
    return of_sums(RowSums.of_gram(products, groups), groups)


def test_split_halves_and_spearman_brown_give_the_same_number_on_average() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 400)) + 0.3 * rng.normal(size=400)  # many numbers: a cosine is near its expectation
    found = []
    for _ in range(400):
        order = rng.permutation(20)
        half = slow.cos(rows[order[:10]].mean(axis=0), rows[order[10:]].mean(axis=0))
        found.append(2 * half / (1 + half))
    got = split_half(rows @ rows.T, np.arange(20))
    assert got.value == pytest.approx(np.mean(found), abs=0.01)


def test_rows_of_a_cluster_that_agree_among_themselves_do_not_make_the_direction_known() -> None:
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.normal(size=(12, 500)), 5, axis=0) + 0.1 * rng.normal(size=(60, 500))
    named, alone = split_half(rows @ rows.T, np.repeat(np.arange(12), 5)), split_half(rows @ rows.T, np.arange(60))
    assert named.low <= 0 <= named.high
    assert alone.low > 0.5


def test_one_canned_answer_looks_like_a_direction_of_safety_only_while_its_rows_count_as_independent() -> None:
    """82 of 98 rows have one answer and 16 rows 12 others, answers are alike by 0.3, and no direction is common to all:
    rows are a precise sample of these answers, but answers are the sample of what safe answers are like."""
    sizes = np.array([82, 3, 2, 2, *[1] * 9])
    rng, answers, repeats = np.random.default_rng(4), np.repeat(np.arange(13), sizes), 200
    known = {"rows": 0, "answers": 0}
    for _ in range(repeats):
        shared, own = rng.normal(size=(13, 20)), rng.normal(size=(98, 20))
        rows = math.sqrt(0.3) * shared[answers] + math.sqrt(0.7) * own
        for unit, clusters in (("rows", np.arange(98)), ("answers", answers)):
            known[unit] += split_half(rows @ rows.T, clusters).low > 0
    assert known["rows"] == repeats, "a claim about safety that another safety set would not bear out"
    assert known["answers"] / repeats <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / repeats)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_its_interval_covers_the_cosine_that_is_to_be_expected(size: int, heavy: bool) -> None:
    rng, repeats, clusters = np.random.default_rng(2), 600, np.arange(40) // size
    n = clusters[-1] + 1
    own, shared = (0.7, 0.3) if size > 1 else (1.0, 0.0)
    truth = 1 / (1 + 16 * (shared / n + own / 40))  # a mean of length 1; noise of length 4, own or a cluster's
    hits = 0
    for _ in range(repeats):
        each, common = (
            rng.standard_t(3, (k, 16)) / math.sqrt(3) if heavy else rng.normal(size=(k, 16)) for k in (40, n)
        )
        rows = math.sqrt(own) * each + math.sqrt(shared) * common[clusters]
        rows[:, 0] += 1
        e = split_half(rows @ rows.T, clusters)
        hits += e.low <= truth <= e.high
    assert hits / repeats > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)


def test_zero_rows_and_a_single_cluster_say_nothing_of_the_direction() -> None:
    for products, clusters in ((np.zeros((4, 4)), np.arange(4)), (np.eye(4), np.zeros(4, dtype=np.int64))):
        got = split_half(products, clusters)
        assert math.isnan(got.value)
        assert math.isnan(got.low)


def test_equal_rows_agree_wholly_without_an_interval_and_opposite_ones_have_no_agreement() -> None:
    equal = split_half(np.ones((6, 6)), np.arange(6))
    assert equal.value == 1
    assert math.isnan(equal.low)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert math.isnan(split_half(opposite @ opposite.T, np.arange(2)).value)


def test_random_directions_spread_as_much_as_is_said() -> None:
    recipe = Recipe(projection="exact", shared=0.5)
    table, safety = random_table(recipe), random_table(replace(recipe, n=9), name="safety", seed=20)
    rows = table.whole()
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
    norms = [np.linalg.norm(g.mean(axis=0)) for g in safety.full.values()]
    rng, drawn = np.random.default_rng(3), []
    for _ in range(4_000):
        parts = [rng.normal(size=g.shape[1]) for g in safety.full.values()]
        vector = np.concatenate([k * p / np.linalg.norm(p) for k, p in zip(norms, parts, strict=True)])
        drawn.append(unit @ vector / np.linalg.norm(vector))
    got = random_direction_sd(table.signals, safety.signals)
    assert got == pytest.approx(np.std(drawn), rel=4 / math.sqrt(2 * len(drawn)))


def test_alignment_says_both_of_all_blocks_and_the_first_per_block() -> None:
    tables = four_tables()
    safety = tables["safety"].signals
    found = alignment(compared(tables["left"], tables["right"]), safety, {"benign": tables["control"].signals})
    rows = np.concatenate([safety.gradients[b] for b in safety.blocks], axis=1)
    codes = np.unique(safety.clusters, return_inverse=True)[1]
    summary = found.summary()
    assert summary["alignment/safety_split_half"] == pytest.approx(split_half(rows @ rows.T, codes).value)
    assert summary["alignment/safety_clusters"] == len(set(codes))
    assert summary["alignment/safety_largest_cluster"] == np.bincount(codes).max() / len(codes)
    assert found.kinds()["alignment/safety_clusters"] == "loss"
    assert summary["alignment/control:benign/random_sd"] > 0
    block = safety.blocks[0]
    alone = split_half(safety.gradients[block] @ safety.gradients[block].T, codes)
    assert found.block_summary()[block]["alignment/safety_split_half"] == pytest.approx(alone.value)
    assert found.kinds()["alignment/safety_split_half"] == "projected"


def test_rows_without_gradients_have_no_spread() -> None:
    table = table_of({"a": np.zeros((3, 8))})
    assert math.isnan(random_direction_sd(table.signals, table.signals))
