"""Extraction against one backward pass per example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import pairs_of, relative
from defects import Past, with_up_projection
from reference import row_gradients, row_token_losses
from torch import nn

from graddiag.blocks import select_blocks
from graddiag.errors import DataError
from graddiag.extractor import Extractor
from graddiag.mean_gradient import MeanGradient
from graddiag.projection import Exact, LoGra, make_projector
from graddiag.signals import Provenance, Space

EXACT = 1e-10  # float64, same batch: rounding only
ALONE = 1e-6  # transformers computes norms and softmax in float32 even in a float64 model
SINGLE = 1e-5  # float32


def extractor_for(model, patterns=None, projector=None):
    blocks = select_blocks(model, patterns)
    p = projector or Exact()
    space = Space("tok", "tmpl", "answer", 128, tuple(b.block for b in blocks), p.kind, p.dim, p.seed, "", "float64")
    return Extractor(model, blocks, p, space, Provenance("test", "", "w", ""))


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_are_those_of_one_backward_per_row_in_the_same_batch(make_llama, make_rows, n, attention):
    model, rows = make_llama(attn_implementation=attention), make_rows(n)
    measured = extractor_for(model).measure(rows)
    for i, oracle in enumerate(row_gradients(model, rows)):
        for block, found in measured.gradients.items():
            assert relative(found[i], oracle[block]) < EXACT, (i, block)
            assert measured.norms[block][i] == pytest.approx(oracle[block].norm().item(), rel=EXACT)


def test_losses_are_those_of_the_models_own_logits_row_by_row(make_llama, make_rows):
    model, rows = make_llama(), make_rows(5)
    with torch.no_grad():
        oracle = row_token_losses(model, rows)
    for found, wanted in zip(extractor_for(model).measure(rows).token_loss, oracle, strict=True):
        assert relative(found, wanted) < EXACT


def test_a_row_is_the_same_alone_and_in_a_batch(make_llama, make_rows):
    model, rows = make_llama(), make_rows(6)
    together = extractor_for(model).measure(rows)
    for i, row in enumerate(rows):
        alone = extractor_for(model).measure([row])
        for block, found in together.gradients.items():
            assert relative(found[i], alone.gradients[block][0]) < ALONE


def test_float32_is_within_its_rounding(make_llama, make_rows):
    model, rows = make_llama(), make_rows(4)
    oracle = row_gradients(model, rows)
    measured = extractor_for(model.float()).measure(rows)
    for i in range(len(rows)):
        for block, found in measured.gradients.items():
            assert relative(found[i], oracle[i][block]) < SINGLE


def test_products_of_pairs_and_with_a_mean_are_those_of_the_full_gradients(make_llama, make_rows):
    model, rows, other = make_llama(), make_rows(6), make_rows(3, seed=7)
    ex, mean = extractor_for(model), MeanGradient()
    safety = ex.measure(other, mean=mean)
    known = mean.known(safety.table(range(3), other, ex.space, ex.provenance("safety")))
    measured = ex.measure(rows, pairs=pairs_of(rows), known=known)
    g, s = row_gradients(model, rows), row_gradients(model, other)
    for block in measured.norms:
        centre = sum(x[block] for x in s) / len(s)
        assert relative(known.means[block], centre) < EXACT
        assert known.reference.norms[block] == pytest.approx(centre.norm().item(), rel=EXACT)
        for k, (i, j) in enumerate(pairs_of(rows)):
            scale = g[i][block].norm() * g[j][block].norm()
            assert abs(measured.inner[block][k] - (g[i][block] * g[j][block]).sum()) < EXACT * scale
            assert measured.difference_norm[block][k] == pytest.approx(
                (g[i][block] - g[j][block]).norm().item(), rel=EXACT
            )
        for i in range(len(rows)):
            scale = g[i][block].norm() * centre.norm()
            assert abs(measured.reference_dot[block][i] - (g[i][block] * centre).sum()) < EXACT * scale


def test_the_difference_of_nearly_equal_partners_keeps_its_digits(make_llama, make_rows):
    model = make_llama().float()
    rows = make_rows(1, longest=30) * 2
    changed = rows[1].tokens.copy()
    changed[0] = (changed[0] + 1) % 64
    rows[1] = type(rows[1])(id="other", cluster="c", tokens=changed, start=rows[1].start, n_cut=0)
    found = extractor_for(model).measure(rows, pairs=[(0, 1)])
    oracle = row_gradients(model.double(), rows)
    for block, d in found.difference_norm.items():
        wanted = (oracle[0][block] - oracle[1][block]).norm().item()
        assert d[0] == pytest.approx(wanted, rel=1e-3), block


def test_projecting_commutes_with_extracting(make_llama, make_rows):
    model, rows = make_llama(), make_rows(4)
    projector = LoGra(16, seed=3)
    measured = extractor_for(model, projector=projector).measure(rows)
    oracle = row_gradients(model, rows)
    for b in select_blocks(model):
        out, inp = projector.factor(b.block, 0), projector.factor(b.block, 1)
        for i in range(len(rows)):
            wanted = out @ oracle[i][b.block.name].numpy() @ inp.T
            assert relative(measured.gradients[b.block.name][i], wanted) < EXACT


def test_the_backward_pass_stops_below_the_lowest_block(make_llama, make_rows):
    model = make_llama()
    reached = []
    for k, layer in enumerate(model.model.layers):
        layer.mlp.act_fn = Watch(layer.mlp.act_fn, reached, k)
    extractor_for(model, ["model.layers.2.*proj"]).measure(make_rows(2))
    assert reached == [2]
    reached.clear()
    extractor_for(model, ["model.layers.1.mlp.down_proj", "model.layers.2.*proj"]).measure(make_rows(2))
    assert reached == [2], "down_proj of layer 1 lies above that layer's activation"


class Watch(nn.Module):
    def __init__(self, inner, reached, number):
        super().__init__()
        self.inner, self.reached, self.number = inner, reached, number

    def forward(self, x):
        out = self.inner(x)
        if out.requires_grad:
            out.register_hook(lambda _: self.reached.append(self.number))
        return out


def test_nothing_of_the_model_changes_not_even_after_an_error(make_llama, make_rows):
    model = make_llama(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    model.lm_head.requires_grad_(False)
    before = state_of(model)
    first = extractor_for(model).measure(make_rows(3))
    assert state_of(model) == before
    assert relative(extractor_for(model).measure(make_rows(3)).norms["model.layers.0.self_attn.q_proj.weight"],
                    first.norms["model.layers.0.self_attn.q_proj.weight"]) == 0, "dropout is off"  # fmt: skip
    broken = extractor_for(model)
    model.model.layers[2].mlp.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.measure(make_rows(3))
    assert state_of(model) == before


def state_of(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


def test_extraction_works_where_gradients_are_off(make_llama, make_rows):
    model = make_llama()
    wanted = extractor_for(model).measure(make_rows(2))
    with torch.no_grad():
        quiet = extractor_for(model).measure(make_rows(2))
    for block, norm in wanted.norms.items():
        assert relative(quiet.norms[block], norm) == 0


def test_a_row_that_is_not_finite_is_flagged_and_its_neighbours_are_untouched(make_llama, make_rows):
    model, rows = make_llama(), make_rows(4)
    for row in rows:
        row.tokens[row.tokens == 5] = 6
    clean = extractor_for(model).measure(rows)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("inf")
    rows[1].tokens[0] = 5
    ex, mean = extractor_for(model), MeanGradient()
    measured = ex.measure(rows, mean=mean)
    table = measured.table(range(4), rows, ex.space, ex.provenance("x"))
    assert table.finite.tolist() == [True, False, True, True]
    for block, norm in measured.norms.items():
        assert relative(norm[[0, 2, 3]], clean.norms[block][[0, 2, 3]]) < ALONE
        assert mean.counts[block] == 3
        assert torch.isfinite(mean.totals[block]).all()


def test_a_module_that_is_called_twice_sums_its_calls(make_llama, make_rows):
    model, rows = make_llama(), make_rows(3)
    model.model.layers[2] = model.model.layers[1]
    measured = extractor_for(model, ["model.layers.1.mlp.*"]).measure(rows)
    for i, oracle in enumerate(row_gradients(model, rows)):
        for block, found in measured.gradients.items():
            assert relative(found[i], oracle[block]) < EXACT


def test_blocks_that_take_no_part_have_gradient_0_and_are_told_of(make_llama, make_rows):
    model = make_llama()
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    ex = extractor_for(model)
    measured = ex.measure(make_rows(2))
    assert "7 blocks take no part in the loss, the first is 'model.layers.1.self_attn.q_proj.weight'" in ex.notes[0]
    for block, norm in measured.norms.items():
        assert (norm == 0).all() == block.startswith("model.layers.1."), block


def test_a_linear_weight_that_is_used_past_its_module_is_refused(make_llama, make_rows):
    model = with_up_projection(make_llama(), Past)
    with pytest.raises(
        DataError, match=r"1 of 21 blocks took no part.*layers\.1\.mlp\.up_proj\.inner\.weight.*torch\.compile"
    ):
        extractor_for(model).measure(make_rows(2))


def test_scaled_logits_are_found_out_and_the_models_own_are_used(make_llama, make_rows):
    model, rows = make_llama(), make_rows(3)

    class Scaled(type(model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = torch.tanh(out.logits / 3) * 3
            return out

    model.__class__ = Scaled
    ex = extractor_for(model)
    measured = ex.measure(rows)
    assert "full logits" in ex.notes[0]
    for i, oracle in enumerate(row_gradients(model, rows)):
        for block, found in measured.gradients.items():
            assert relative(found[i], oracle[block]) < EXACT


def test_the_head_itself_can_be_a_block(make_llama, make_rows):
    model, rows = make_llama(), make_rows(3)
    measured = extractor_for(model, ["lm_head"]).measure(rows)
    for i, oracle in enumerate(row_gradients(model, rows)):
        assert relative(measured.gradients["lm_head.weight"][i], oracle["lm_head.weight"]) < EXACT


def test_rows_are_not_affected_by_what_pads_them(make_llama, make_rows):
    model, rows = make_llama(), make_rows(3)
    left = row_gradients(model, rows, left=True)
    measured = extractor_for(model).measure(rows)
    for i in range(3):
        for block, found in measured.gradients.items():
            assert relative(found[i], left[i][block]) < ALONE


def test_a_projection_of_everything_is_the_gradient_itself(make_llama, make_rows):
    model, rows = make_llama(), make_rows(2)
    whole = extractor_for(model, projector=make_projector("logra", 64**2, 0)).measure(rows)
    exact = extractor_for(model).measure(rows)
    for block, found in exact.gradients.items():
        assert np.array_equal(whole.gradients[block], found)
