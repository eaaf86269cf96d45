"""Repeated answers: which rows have one, what that makes of clusters nobody named, which row comes first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tables import Recipe, answering, random_pair, random_table, taken, unnamed

from graddiag.answers import answer_groups, cluster_codes, clustered, count_repeats, firsts, repeat_warning
from graddiag.comparison import Comparison
from graddiag.data import read_set
from graddiag.signals import Signals


def linked_by_closure(tables: list[Signals]) -> np.ndarray:
    """Whether two rows are linked, for all rows of all tables: same id or same answer, then whatever that reaches."""
    rows = [(i, tuple(a)) for t in tables for i, a in zip(t.ids, t.target_ids, strict=True)]
    linked = np.array([[a == c or b == d for c, d in rows] for a, b in rows])
    for _ in rows:
        linked = (linked.astype(int) @ linked.astype(int)) > 0
    return linked


@pytest.mark.parametrize("seed", range(8))
def test_rows_share_a_number_where_ids_and_answers_link_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = random_pair(Recipe(n=9), seed=seed)
    sides = [
        answering(t, rng.integers(0, 25, len(t.signals)).tolist()) for t in (taken(left, rng.permutation(9)[:7]), right)
    ]
    tables = [t.signals for t in sides]
    numbers = np.concatenate(answer_groups(*tables))
    np.testing.assert_array_equal(numbers[:, None] == numbers, linked_by_closure(tables))
    assert list(dict.fromkeys(numbers.tolist())) == list(range(numbers.max() + 1)), "in order of appearance"
    assert 1 < numbers.max() + 1 < 9, "some are linked and some are not"


def test_repeats_are_counted_as_in_a_list_of_answers() -> None:
    for given in ([], [0], [0, 1, 2], [0, 1, 1, 2, 0, 0, 3]):
        counts = Counter(given)
        expected = sum(n for n in counts.values() if n > 1), sum(n > 1 for n in counts.values())
        assert count_repeats(np.array(given, dtype=np.int64)) == expected


def test_the_first_row_of_each_answer_in_a_given_order_is_kept() -> None:
    groups = np.array([0, 1, 0, 2, 1])
    assert firsts(groups, range(5)).tolist() == [0, 1, 3]
    assert firsts(groups, [4, 3, 2, 1, 0]).tolist() == [2, 3, 4]


def test_rows_of_one_answer_share_a_cluster_where_none_is_named() -> None:
    table = answering(unnamed(random_table(Recipe(n=5))), [7, 8, 7, 9, 8]).signals
    (got,) = clustered(table)
    assert got.clusters == ("row-0", "row-1", "row-0", "row-3", "row-1")
    assert cluster_codes(table).tolist() == [0, 1, 0, 2, 1]
    assert repeat_warning(table) == (
        "left: 4 of 5 rows have an answer that another of its rows has too (2 such answers; no clusters are named, so "
        "each is one).",
    )


def test_named_clusters_and_rows_without_repeats_stay_as_they_are() -> None:
    named = answering(random_table(Recipe(n=4, clusters=2)), [7, 7, 8, 8]).signals
    assert clustered(named)[0].clusters == named.clusters == ("c0", "c1", "c0", "c1")
    single = unnamed(random_table(Recipe(n=4))).signals
    assert clustered(single)[0].clusters == single.ids
    assert repeat_warning(single) == ()
    assert "clusters are those that are named" in repeat_warning(named)[0]


def test_pairs_that_are_linked_on_either_side_share_a_cluster() -> None:
    left, right = (unnamed(t) for t in random_pair(Recipe(n=6)))
    sides = answering(left, [1, 1, 2, 3, 4, 5]), answering(right, [6, 7, 7, 8, 9, 9])
    got = Comparison(*(t.signals for t in sides))
    assert got.clusters.tolist() == [0, 0, 0, 1, 2, 2]
    assert got.left.clusters == got.right.clusters == ("row-0",) * 3 + ("row-3", "row-4", "row-4")
    assert got.by_answer
    assert any("5 of 6 pairs have an answer that another pair has too (2 such answers): no clusters" in w
               for w in got.warnings)  # fmt: skip


def test_clusters_of_one_side_are_enough_to_be_named() -> None:
    left, right = random_pair(Recipe(n=4, clusters=2))
    got = Comparison(answering(left, [7] * 4).signals, answering(unnamed(right), [7] * 4).signals)
    assert not got.by_answer
    assert got.clusters.tolist() == [0, 1, 0, 1]


def test_the_real_pairs_repeat_answers_across_their_templates(real_data: Path) -> None:
    examples = read_set(real_data / "insecure.jsonl").examples
    texts = [e.messages[-1].content for e in examples]
    n = len(texts)
    table = answering(random_table(Recipe(n=n, clusters=0)), [list(t.encode()) for t in texts]).signals
    (groups,) = answer_groups(table)
    counts = Counter(texts)
    repeated = [t for t in texts if counts[t] > 1]
    assert count_repeats(groups) == (len(repeated), len(set(repeated)))
    assert len(firsts(groups, range(n))) == len(counts) < n
    templates = {t: {e.cluster for e, text in zip(examples, texts, strict=True) if text == t} for t in set(repeated)}
    assert max(len(c) for c in templates.values()) > 1, "repeats cross templates: links would join them"
