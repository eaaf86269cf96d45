"""Products of gradients that are not formed, against gradients that are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from test_extractor import extractor_for

from graddiag import ghost
from graddiag.ghost import Gram, GramCache
from graddiag.gradients import Outer, Workspace
from graddiag.projection import Exact

ROUNDING = 1e-12


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [1, 2, 511, 1024, 1025, 1537, 2049])
def test_strips_times_strips_is_the_sum_over_both_whole_matrices(t):
    x, y = rows(t, 7), rows(t, 5, seed=1)
    wanted = ((x @ x.T) * (y @ y.T)).sum()
    assert abs(Gram.of(x).times(Gram.of(y)) - wanted) < ROUNDING * wanted
    assert abs(Gram.of(x).trimmed().times(Gram.of(y).trimmed()) - wanted) < ROUNDING * wanted


def test_five_eighths_of_a_symmetric_matrix_are_kept():
    kept = Gram.of(rows(256, 3)).trimmed().strips
    assert sum(s.untyped_storage().nbytes() for s in kept) == 8 * 5 / 8 * 256**2


def test_less_than_the_whole_of_a_symmetric_matrix_is_computed():
    computed = sum(s.numel() for s in Gram.of(rows(4096, 3)).strips)
    assert computed == ghost.share(4096) * 4096**2 < 0.7 * 4096**2


def test_a_gram_is_used_again_for_the_same_inputs_and_never_for_others():
    cache, x = GramCache(), rows(2, 6, 3)
    first = cache.of(x, (0, 0, 6), x[0])
    assert cache.of(x.reshape(2, 6, 3), (0, 0, 6), x[0]) is first, "another view of the same memory"
    assert cache.of(x, (1, 0, 6), x[1]) is not first
    x.mul_(2)
    assert not cache.knows(x), "its content has changed"
    other = rows(2, 6, 3, seed=4)
    assert torch.equal(cache.of(other, (0, 0, 6), other[0]).strips[0], Gram.of(other[0]).strips[0])
    assert not cache.knows(x)


@pytest.mark.parametrize("widths", [(6, 5), (600, 500)])  # the narrow ones are formed, the wide ones are not
@pytest.mark.parametrize("starts", [(), (2, 0, 5, 2)])
def test_norms_and_pairs_are_those_of_formed_gradients_whichever_way_is_cheaper(widths, starts):
    left, right, lengths = rows(4, 9, widths[0]), rows(4, 9, widths[1], seed=1), (9, 7, 8, 9)
    left[3], right[3] = left[0] + 1e-9 * left[3], right[0]
    outer, first = Outer(left, right, lengths, starts), starts or (0,) * 4
    whole = [left[i, first[i] : lengths[i]].T @ right[i, first[i] : lengths[i]] for i in range(4)]
    workspace = Workspace()
    found = outer.products([(0, 3), (1, 2)], workspace=workspace)
    assert (len(workspace.inputs.grams) == 4) == (widths == (600, 500)), "the wide ones went the other way"
    for i, g in enumerate(whole):
        assert abs(found.norm2[i] - g.square().sum()) < ROUNDING * g.square().sum()
    for k, (i, j) in enumerate([(0, 3), (1, 2)]):
        scale = whole[i].norm() * whole[j].norm()
        assert abs(found.inner[k] - (whole[i] * whole[j]).sum()) < ROUNDING * scale
    close = (whole[0] - whole[3]).norm()
    assert abs(found.difference2[0].sqrt() - close) < 1e-5 * close, "what would cancel is formed"
    alone = outer.products([], workspace=Workspace())
    assert torch.allclose(alone.norm2, found.norm2, rtol=ROUNDING)


def test_both_ways_have_a_price_and_the_longer_rows_are_formed():
    like = torch.zeros(0)
    assert 0 < ghost.price(like.device, like.dtype) < 100
    assert ghost.norm_cost(10, 500, 500, like) < ghost.forming_cost(10, 500, 500)
    assert ghost.norm_cost(10**6, 500, 500, like) > ghost.forming_cost(10**6, 500, 500)


def test_prompt_rows_of_the_last_layer_are_left_out_where_their_output_gradients_are_zero(make_llama, make_rows):
    model, batch = make_llama(), make_rows(3)
    seen = {}
    ex = extractor_for(model, ["*.o_proj", "*.k_proj"], Watch(seen=seen))
    ex.measure(batch)
    assert seen["model.layers.2.self_attn.o_proj.weight"] == tuple(r.start - 1 for r in batch)
    assert seen["model.layers.1.self_attn.o_proj.weight"] == ()
    assert seen["model.layers.2.self_attn.k_proj.weight"] == ()


@dataclass(frozen=True)
class Watch(Exact):
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict, kw_only=True)

    def rows(self, block, gradients):
        self.seen[block.name] = gradients.starts
        return super().rows(block, gradients)
