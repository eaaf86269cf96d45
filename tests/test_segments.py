"""Which positions of which row belong to which example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graddiag.errors import DataError
from graddiag.monitor._segments import Marks, Segment, find_segments

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def all_used(rows, width):
    return np.ones((rows, width), dtype=bool)


def one_after_the_other(lengths):
    ends = np.cumsum(lengths)
    return tuple(Segment(0, int(e - n), int(e)) for n, e in zip(lengths, ends, strict=True))


@given(LENGTHS)
def test_each_of_the_three_ways_finds_the_examples_of_a_row(lengths):
    used = all_used(1, sum(lengths))
    ways = {
        "seq_idx": np.repeat(np.arange(len(lengths)), lengths)[None],
        "cu_seq_lens": np.cumsum([0, *lengths]),
        "position_ids": np.concatenate([np.arange(n) for n in lengths])[None],
    }
    for name, value in ways.items():
        assert find_segments(Marks(used, **{name: value})) == one_after_the_other(lengths), name


@given(LENGTHS, st.integers(0, 4))
def test_borders_behind_which_nothing_stands_are_no_examples(lengths, padding):
    borders = np.cumsum([0, *lengths, 0, 0])
    found = find_segments(Marks(all_used(1, sum(lengths) + padding), cu_seq_lens=borders))
    assert found == one_after_the_other(lengths)


def test_seq_idx_comes_before_cu_seq_lens_and_that_before_positions():
    used, idx = all_used(1, 4), np.array([[0, 0, 1, 1]])
    borders, positions = np.array([0, 1, 4]), np.array([[0, 1, 2, 0]])
    assert find_segments(Marks(used, idx, borders, positions)) == (Segment(0, 0, 2), Segment(0, 2, 4))
    assert find_segments(Marks(used, None, borders, positions)) == (Segment(0, 0, 1), Segment(0, 1, 4))
    assert find_segments(Marks(used, None, None, positions)) == (Segment(0, 0, 3), Segment(0, 3, 4))


@pytest.mark.parametrize("left", [True, False])
@given(lengths=LENGTHS)
def test_a_padded_row_is_one_example_whatever_positions_its_padding_has(left, lengths):
    width = max(lengths) + 2
    at = np.arange(width)
    used = np.stack([at >= width - n if left else at < n for n in lengths])
    positions = np.maximum(np.cumsum(used, axis=1) - 1, 0)
    found = find_segments(Marks(used, position_ids=positions))
    assert found == tuple(Segment(k, 0, width if left else n) for k, n in enumerate(lengths))
    assert found == find_segments(Marks(used))


def test_a_row_that_is_all_padding_has_no_example():
    used = np.array([[True, True], [False, False]])
    assert find_segments(Marks(used)) == (Segment(0, 0, 2),)


def test_rows_of_several_examples_are_numbered_row_by_row():
    positions = np.array([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    found = find_segments(Marks(all_used(2, 5), position_ids=positions))
    assert [s.at for s in found] == [
        (0, slice(0, 2)),
        (0, slice(2, 5)),
        (1, slice(0, 3)),
        (1, slice(3, 4)),
        (1, slice(4, 5)),
    ]


@pytest.mark.parametrize("borders", [[0, 3, 9], [0, 3, 2, 4], [0, 5, 8]])
def test_borders_that_are_not_inside_the_rows_are_refused(borders):
    with pytest.raises(DataError, match="not the borders of examples inside 2 rows of 4"):
        find_segments(Marks(all_used(2, 4), cu_seq_lens=np.array(borders)))
