"""Projecting commutes with extracting: what comes out is the projection of the gradient that autograd gives."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import relative
from reference import row_gradients
from test_architectures import model_of, scale_of, tolerance
from test_extractor import EXACT, extractor_for

from graddiag.bases import measured_bases, on_bases
from graddiag.gradients import Dense, Outer
from graddiag.mean_gradient import MeanGradient
from graddiag.projection import LoGra, make_projector

ARCHITECTURES = ["llama", "llama-tied", "gpt2", "gemma3", "qwen3-moe"]  # outer, dense, lookup, tied lookup, experts


def extractor_of(kind, model, rows):
    if kind == "lowrank":
        pilot = extractor_for(model, ["*"], LoGra(16, 2))
        return on_bases(pilot, measured_bases(pilot, rows[:2], batch_tokens=100))
    return extractor_for(model, ["*"], make_projector(kind, 16, 2))


@pytest.mark.parametrize("kind", ["logra", "sjlt", "dense", "lowrank"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_projected_as_the_gradient_of_one_backward_per_row(kind, name, make_rows):
    model, rows = model_of(name), make_rows(3)
    ex = extractor_of(kind, model, rows)
    found = ex.measure(rows).gradients
    oracle = row_gradients(model, rows)
    for b in ex.blocks:
        block = b.block.name
        wanted = ex.projector.rows(b.block, Dense(torch.stack([g[block] for g in oracle])))
        assert found[block].shape == (3, ex.projector.size(b.block))
        for i, g in enumerate(oracle):
            error = (torch.from_numpy(found[block][i]) - wanted[i]).norm()
            stretch = max(1.0, (wanted[i].norm() / g[block].norm().clamp(min=1e-300)).item())
            assert error < 10 * stretch * tolerance(name, block) * scale_of(g, block), block


@pytest.mark.parametrize("mode", ["norms", "pairs", "mean"])
def test_a_gradient_is_formed_once_for_its_products_and_its_sparse_row(mode, make_llama, make_rows, monkeypatch):
    """The same rows as from one backward per row, whatever else the gradients are needed for."""
    model, rows = make_llama(), make_rows(4)
    ex = extractor_for(model, None, make_projector("sjlt", 16, 2))
    formed: Counter[int] = Counter()
    original = Outer.factors
    monkeypatch.setattr(Outer, "factors", lambda g, i: (formed.update([i]), original(g, i))[1])
    pairs, mean = [(0, 1), (2, 3)] if mode == "pairs" else [], MeanGradient() if mode == "mean" else None
    found = ex.measure(rows, pairs=pairs, mean=mean).gradients
    assert formed == dict.fromkeys(range(4), len(ex.blocks))
    for i, g in enumerate(row_gradients(model, rows)):
        for b in ex.blocks:
            wanted = ex.projector.rows(b.block, Dense(g[b.block.name].unsqueeze(0)))[0]
            assert relative(found[b.block.name][i], wanted) < EXACT
