"""Blocks in turns: groups that fit, and tables of some blocks each, side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import Recipe, Table, products_of, random_pair, random_table, with_adam, with_scores
from test_signals import same

from graddiag.errors import DataError, UsageError
from graddiag.signals import Block, PairProducts, Signals
from graddiag.turns import groups, parse_bytes, products_side_by_side, side_by_side


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), budget=st.integers(9, 40))
def test_groups_hold_all_blocks_in_order_and_none_could_take_its_next_neighbour(sizes, budget):
    blocks = [Block(f"b{k}", (n,)) for k, n in enumerate(sizes)]
    found = groups(blocks, 8 * budget, 8)
    assert [name for group in found for name in group] == [b.name for b in blocks]
    size = {b.name: b.shape[0] for b in blocks}
    used = [sum(size[name] for name in group) for group in found]
    assert max(used) <= budget
    assert all(a + size[after[0]] > budget for a, after in zip(used, found[1:], strict=False))


def test_a_block_that_does_not_fit_alone_is_named_with_what_it_needs():
    with pytest.raises(UsageError, match=r"--mean-memory 99 does not hold 'big' alone, which needs 120 bytes"):
        groups([Block("small", (2, 2)), Block("big", (5, 3))], 99, 8)


@pytest.mark.parametrize(
    ("text", "n"), [("1000", 1000), ("8GiB", 8 * 2**30), ("1.5 MB", 1_500_000), ("2kib", 2048), ("3 B", 3)]
)
def test_bytes_are_read_with_their_unit(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "lots", "8 GiBs", "-1", "1e9"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(UsageError, match="is no number of bytes"):
        parse_bytes(text)


def split(signals: Signals, names: list[str], share: float) -> Signals:
    """The part of a table that a turn of some blocks has, with a share of its token scores."""

    def some(values):
        return {b: v for b, v in values.items() if b in names}

    scores, rest = signals.token_alignment, signals.alignment_elsewhere
    return replace(
        signals,
        space=replace(signals.space, blocks=tuple(b for b in signals.space.blocks if b.name in names)),
        reference=replace(signals.reference, norms=some(signals.reference.norms)),
        adam=replace(signals.adam, dot=some(signals.adam.dot), norms=some(signals.adam.norms)),
        token_alignment=tuple(share * s for s in scores),
        alignment_elsewhere=share * rest,
        **{
            k: some(getattr(signals, k))
            for k in ("norms", "gradients", "reference_dot", "adam_dot", "adam_norm", "adam_step_norm")
        },
    )


def full_table() -> Table:
    safety = random_table(Recipe(n=4), name="safety")
    return with_scores(with_adam(random_table(Recipe(n=5)), safety))


def test_parts_side_by_side_are_the_whole():
    whole = full_table().signals
    a, b = split(whole, [whole.blocks[0]], 0.25), split(whole, list(whole.blocks[1:]), 0.75)
    joined = side_by_side([a, b])
    for mine, theirs in zip(joined.token_alignment, whole.token_alignment, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-12)
    exact = {"token_alignment": whole.token_alignment, "alignment_elsewhere": whole.alignment_elsewhere}
    assert np.allclose(joined.alignment_elsewhere, whole.alignment_elsewhere, rtol=1e-12)
    assert same(replace(joined, **exact), whole)


def test_a_row_is_finite_where_it_is_in_every_turn():
    whole = full_table().signals
    a, b = split(whole, [whole.blocks[0]], 0.5), split(whole, list(whole.blocks[1:]), 0.5)
    a = replace(a, finite=np.array([True, False, True, True, True]))
    b = replace(b, finite=np.array([True, True, True, False, True]))
    assert side_by_side([a, b]).finite.tolist() == [True, False, True, False, True]


def test_turns_that_measured_other_rows_are_refused():
    whole = full_table().signals
    a, b = split(whole, [whole.blocks[0]], 0.5), split(whole, list(whole.blocks[1:]), 0.5)
    with pytest.raises(DataError, match="have not measured the same rows"):
        side_by_side([a, b.take([1, 0, 2, 3, 4])])


def test_products_of_pairs_are_joined_by_id():
    left, right = random_pair(Recipe(n=6))
    whole = products_of(left, right)
    first, *others = left.signals.blocks
    parts = [
        PairProducts(
            whole.left_ids,
            whole.right_ids,
            {b: whole.inner[b] for b in names},
            {b: whole.difference_norm[b] for b in names},
        )
        for names in ([first], others)
    ]
    joined = products_side_by_side([parts[0], parts[1].take([3, 1, 0, 2, 5, 4])])
    assert joined.left_ids == whole.left_ids
    for block, inner in whole.inner.items():
        assert np.array_equal(joined.inner[block], inner)
        assert np.array_equal(joined.difference_norm[block], whole.difference_norm[block])
