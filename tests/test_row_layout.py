"""The layout of a row is that of what the projector gives."""

from __future__ import annotations

import math

import pytest
import torch
from test_projection import projector_for

from graddiag.gradients import Dense
from graddiag.row_layout import row_layout
from graddiag.signals import Block

SHAPES = [(48, 40), (5, 60), (60, 1), (3, 3), (200,), (4, 9, 20)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["exact", "logra", "sjlt", "dense", "lowrank"])
def test_the_layout_has_as_many_places_as_the_projectors_rows(kind, shape):
    block = Block("b", shape)
    rows = projector_for(kind, 64, 0, block).rows(block, Dense(torch.ones(2, *shape)))
    layout = row_layout(kind, 64, shape)
    assert rows.shape == (2, layout.size)
    assert layout.is_whole == (layout.size == math.prod(shape))


def test_one_sided_kinds_have_one_side_and_low_rank_ones_a_fixed_half():
    assert row_layout("sjlt", 64, (48, 40)) == row_layout("dense", 64, (48, 40))
    assert row_layout("sjlt", 64, (48, 40)).kept == (64,)
    assert row_layout("lowrank", 64, (48, 5)).fixed == (4, 5), "a side that is kept whole has no random place"
    assert row_layout("dense", 64, (8, 8)).is_whole
