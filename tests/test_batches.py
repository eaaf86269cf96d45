"""Pairs are cut alike, and stay together in batches of no more padded tokens than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graddiag.encoding import Encoded, EncodedSet, batches, match_targets
from graddiag.errors import UsageError

Sizes = tuple[int, int, int]


def a_row(name: str, length: int, start: int = 2, n_cut: int = 0) -> Encoded:
    return Encoded(name, name, np.arange(length, dtype=np.int32), start, n_cut)


def a_set(*rows: Encoded) -> EncodedSet:
    return EncodedSet("mine", rows, (), "answer", 100)


def test_a_cut_member_of_a_pair_takes_the_end_of_its_partner_too() -> None:
    left = a_set(a_row("a", 10, start=6, n_cut=3), a_row("b", 9), a_row("c", 8), a_row("alone", 7, n_cut=1))
    right = a_set(a_row("c", 5, n_cut=1), a_row("other", 9), a_row("a", 9, start=2), a_row("b", 7))
    new_left, new_right = match_targets(left, right)
    assert [(r.id, r.n_targets, r.n_cut) for r in new_left.rows] == [
        ("a", 4, 3),
        ("b", 7, 0),
        ("c", 3, 3),
        ("alone", 5, 1),
    ]
    assert [(r.id, r.n_targets, r.n_cut) for r in new_right.rows] == [
        ("c", 3, 1),
        ("other", 7, 0),
        ("a", 4, 3),
        ("b", 5, 0),
    ]
    both = tuple(replace(s, target="all") for s in (left, right))
    assert match_targets(*both) == both, "where prompts are targets too, equal numbers would cut answers away"


lengths = st.lists(st.tuples(st.integers(3, 12), st.integers(1, 2), st.integers(0, 1)), min_size=6, max_size=6)


@given(lengths, lengths)
def test_after_matching_every_cut_pair_has_equally_many_targets_and_only_ends_were_lost(
    a: list[Sizes], b: list[Sizes]
) -> None:
    left, right = (a_set(*(a_row(f"r{k}", *one) for k, one in enumerate(many))) for many in (a, b))
    new = match_targets(left, right)
    for before, after in zip((left, right), new, strict=True):
        for x, y in zip(before.rows, after.rows, strict=True):
            assert y.tokens.tolist() == x.tokens[: len(y.tokens)].tolist()
            assert (y.id, y.start, len(y.tokens) + y.n_cut) == (x.id, x.start, len(x.tokens) + x.n_cut)
    for x, y, old_x, old_y in zip(new[0].rows, new[1].rows, left.rows, right.rows, strict=True):
        if old_x.n_cut or old_y.n_cut:
            assert x.n_targets == y.n_targets == min(old_x.n_targets, old_y.n_targets)
        else:
            assert (x, y) == (old_x, old_y)
    again = match_targets(*new)
    assert [r.digest for one in again for r in one.rows] == [r.digest for one in new for r in one.rows]


# Batches

row_lengths = st.lists(st.integers(2, 50), max_size=40)
budgets = st.integers(1, 200)


def rows_of(many: Sequence[int]) -> list[Encoded]:
    return [a_row(f"r{k}", n, start=1) for k, n in enumerate(many)]


def padded(batch: Sequence[int], rows: Sequence[Encoded]) -> int:
    return max(len(rows[i].tokens) for i in batch) * len(batch)


@given(row_lengths, budgets, st.data())
def test_batches_hold_every_row_once_whole_units_and_no_more_tokens_than_allowed(
    many: list[int], budget: int, data: st.DataObject
) -> None:
    rows = rows_of(many)
    order = data.draw(st.permutations(range(len(rows))))
    n_pairs = data.draw(st.integers(0, len(rows) // 2))
    units = [tuple(order[2 * k : 2 * k + 2]) for k in range(n_pairs)] + [(i,) for i in order[2 * n_pairs :]]
    found = batches(rows, batch_tokens=budget, units=units)
    assert sorted(i for b in found for i in b) == list(range(len(rows)))
    for batch in found:
        inside = [u for u in units if set(u) & set(batch)]
        assert sorted(i for u in inside for i in u) == sorted(batch)
        assert padded(batch, rows) <= budget or len(inside) == 1
    longest = [max(len(rows[i].tokens) for i in b) for b in found]
    assert longest == sorted(longest)
    assert found == batches(rows, batch_tokens=budget, units=units), "nothing is random"


@given(row_lengths, budgets)
def test_without_units_every_row_is_its_own_and_a_batch_is_closed_only_when_the_next_row_does_not_fit(
    many: list[int], budget: int
) -> None:
    rows = rows_of(many)
    found = batches(rows, batch_tokens=budget)
    assert found == batches(rows, batch_tokens=budget, units=[(i,) for i in range(len(rows))])
    for batch, following in pairwise(found):
        assert padded([*batch, following[0]], rows) > budget


def test_a_batch_may_be_exactly_as_large_as_allowed() -> None:
    assert batches(rows_of([5, 5]), batch_tokens=10) == [[0, 1]]
    assert batches(rows_of([5, 5]), batch_tokens=9) == [[0], [1]]


def test_rows_that_are_in_no_unit_are_in_no_batch() -> None:
    assert batches(rows_of([5, 6, 7]), batch_tokens=100, units=[(2,), (0,)]) == [[0, 2]]
    assert batches(rows_of([5, 6]), batch_tokens=100, units=[]) == []


def test_the_members_of_a_pair_stay_side_by_side_also_where_they_need_too_many_tokens() -> None:
    assert batches(rows_of([5, 90, 6, 7]), batch_tokens=20, units=[(0, 1), (2, 3)]) == [[2, 3], [0, 1]]


def test_a_batch_without_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--batch-tokens 0: .*above 0"):
        batches(rows_of([5]), batch_tokens=0)
