"""Every parameter of every architecture against one backward pass per example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import build, configs, with_lora
from conftest import pairs_of
from defects import with_stray_parameter
from reference import row_gradients
from test_extractor import extractor_for

from graddiag.errors import UsageError
from graddiag.gradients import Dense
from graddiag.mean_gradient import MeanGradient
from graddiag.projection import LoGra

EXACT = 1e-10
ROOT = 1e-7  # of a norm from its square: where the norm is 0, the root of the rounding
SMALL = 1e-4  # of the whole gradient's norm: below it, a block's own norm is no scale (OPT's key bias has gradient 0)
FLOAT32 = 1e-6  # Gemma multiplies by its norms' weights in float32, so their gradients are sums in float32
NAMES = [*configs(), "llama-lora"]


def tolerance(name, block):
    return FLOAT32 if name == "gemma3" and "norm" in block else EXACT


def model_of(name, **settings):
    return with_lora(build("llama", **settings)) if name == "llama-lora" else build(name, **settings)


def scale_of(gradients, block):
    whole = sum(g.square().sum() for g in gradients.values()) ** 0.5
    return max(gradients[block].norm().item(), SMALL * whole.item())


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_that_of_one_backward_per_row(name, n, make_rows):
    model, rows = model_of(name), make_rows(n)
    ex = extractor_for(model, ["*"])
    measured = ex.measure(rows)
    assert not any("one backward pass per example" in n for n in ex.notes), "no fallback is needed"
    assert set(measured.gradients) == {p for p, _ in model.named_parameters()}
    for i, oracle in enumerate(row_gradients(model, rows)):
        for block, found in measured.gradients.items():
            scale = scale_of(oracle, block)
            wanted = oracle[block].flatten()
            assert (torch.from_numpy(found[i]) - wanted).norm() < tolerance(name, block) * scale, (i, block)
            assert abs(measured.norms[block][i] - wanted.norm()) < ROOT * scale, (i, block)


@pytest.mark.parametrize("name", NAMES)
def test_products_of_every_parameter_are_exact(name, make_rows):
    model, rows, other = model_of(name), make_rows(4), make_rows(3, seed=5)
    ex, mean = extractor_for(model, ["*"]), MeanGradient()
    table = ex.measure(other, mean=mean).table(range(3), other, ex.space, ex.provenance("s"))
    known = mean.known(table)
    measured = ex.measure(rows, pairs=pairs_of(rows), known=known)
    g, s = row_gradients(model, rows), row_gradients(model, other)
    for block in measured.norms:
        centre = sum(x[block] for x in s) / 3
        size = [scale_of(x, block) for x in (*g, *s)]
        near = tolerance(name, block)
        assert (known.means[block] - centre).norm() < near * max(size)
        for i, one in enumerate(g):
            assert abs(measured.reference_dot[block][i] - (one[block] * centre).sum()) < near * max(size) ** 2
        for k, (i, j) in enumerate(pairs_of(rows)):
            assert abs(measured.inner[block][k] - (g[i][block] * g[j][block]).sum()) < near * max(size) ** 2
            assert abs(measured.difference_norm[block][k] - (g[i][block] - g[j][block]).norm()) < ROOT * max(size)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt", "qwen3-moe", "gemma3"])
def test_every_parameter_is_projected_as_its_whole_gradient_would_be(name, make_rows):
    model, rows = model_of(name), make_rows(3)
    exact = extractor_for(model, ["*"]).measure(rows)
    projector = LoGra(16, seed=2)
    ex = extractor_for(model, ["*"], projector)
    short = ex.measure(rows)
    for b in ex.blocks:
        whole = torch.from_numpy(exact.gradients[b.block.name]).reshape(3, *b.block.shape)
        wanted = projector.rows(b.block, Dense(whole))
        assert wanted.shape == (3, projector.size(b.block))
        error = (torch.from_numpy(short.gradients[b.block.name]) - wanted).norm()
        assert error <= tolerance(name, b.block.name) * wanted.norm() + 1e-14, b.block.name


@pytest.mark.parametrize(("projection", "heads"), [("q_proj", 4), ("k_proj", 2), ("v_proj", 2), ("o_proj", 4)])
def test_heads_are_the_parts_of_their_projection(projection, heads, make_rows):
    model, rows = build("llama-tied"), make_rows(3)
    pattern = f"model.layers.1.self_attn.{projection}.weight"
    ex = extractor_for(model, [pattern, *(f"{pattern}[head={h}]" for h in range(heads))])
    measured = ex.measure(rows)
    names = [b.block.name for b in ex.blocks]
    shapes = {b.block.name: b.block.shape for b in ex.blocks}
    parts = [measured.gradients[n].reshape(3, *shapes[n]) for n in names[1:]]
    whole = measured.gradients[pattern].reshape(3, *shapes[pattern])
    axis = 2 if projection == "o_proj" else 1
    assert np.allclose(np.concatenate(parts, axis=axis), whole, rtol=1e-12)
    with pytest.raises(UsageError, match=rf"has heads 0 to {heads - 1}, and not {heads}"):
        extractor_for(model, [f"{pattern}[head={heads}]"])


@pytest.mark.parametrize("mode", ["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("frozen", [False, True])
def test_training_settings_of_the_model_change_nothing(mode, frozen, make_rows):
    rows = make_rows(3)
    wanted = extractor_for(build("gpt2"), ["*"]).measure(rows)
    model = build("gpt2").train()
    if mode != "plain":
        model.gradient_checkpointing_enable({"use_reentrant": mode == "reentrant"})
    model.requires_grad_(not frozen)
    found = extractor_for(model, ["*"]).measure(rows)
    for block, g in wanted.gradients.items():
        assert np.array_equal(found.gradients[block], g), block
    assert model.training


def test_a_parameter_that_a_module_does_not_use_itself_falls_back_and_is_named(make_rows):
    model, rows = with_stray_parameter(build("llama")), make_rows(3)
    ex = extractor_for(model, ["*"])
    measured = ex.measure(rows)
    told = [n for n in ex.notes if "one backward pass per example" in n]
    assert len(told) == 1
    assert "model.layers.0.mlp.scale.a" in told[0]
    for i, row in enumerate(rows):
        (oracle,) = row_gradients(model, [row])
        for block, found in measured.gradients.items():
            assert (torch.from_numpy(found[i]) - oracle[block].flatten()).norm() < 1e-6 * scale_of(oracle, block), block
