"""The Adam form against steps that torch's optimizers really take, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import build, with_lora
from conftest import relative
from reference import row_gradients, row_token_losses
from test_extractor import extractor_for

from graddiag import adam
from graddiag.adam import Moments
from graddiag.mean_gradient import MeanGradient
from graddiag.optimizer_state import read_optimizer

EXACT = 1e-9  # float64; the square root of v' loses a digit of the gradients' 1e-10
SETTINGS = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0}  # a short memory: momentum and v both matter


def trained(model, rows, *, steps=3, kind=torch.optim.AdamW, **settings):
    """The model after some real steps on all rows, and its optimizer."""
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, **{**SETTINGS, **settings})
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([x.mean() for x in row_token_losses(model, rows)]).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def step_taken(optimizer, model, gradients):
    """What torch's optimizer really takes off each parameter on the given gradients, per unit of learning rate."""
    twin = copy.deepcopy(model)
    again = type(optimizer)([p for p in twin.parameters() if p.requires_grad], lr=1.0, **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in again.param_groups:
        group["lr"] = 1.0
    before = {n: p.detach().clone() for n, p in twin.named_parameters()}
    for n, p in twin.named_parameters():
        p.grad = gradients[n].clone() if p.requires_grad else None
    again.step()
    return {n: before[n] - p.detach() for n, p in twin.named_parameters() if p.requires_grad}


def measured_with(model, optimizer, rows, other, patterns=None):
    """The rows' table with the Adam form towards the mean gradient of other rows, and that mean."""
    ex, mean = extractor_for(model, patterns), MeanGradient()
    safety = ex.measure(other, mean=mean).table(range(len(other)), other, ex.space, ex.provenance("safety"))
    state = read_optimizer(optimizer, model, ex.blocks)
    known = mean.known(safety).wanting(token_scores=False, optimizer=state.at_hand(ex.blocks))
    return ex.measure(rows, known=known).table(range(len(rows)), rows, ex.space, ex.provenance("x")), known


def model_of(name):
    return with_lora(build("llama")) if name == "llama-lora" else build(name)


PATTERNS = {"llama-tied": ["*"], "gpt2": ["*"], "qwen3-moe": ["*"], "llama-lora": ["*lora_*", "*modules_to_save*"]}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_examples_step_is_the_one_that_the_optimizer_takes(name, make_rows, monkeypatch):
    monkeypatch.setattr(adam, "_TILE_ROWS", 7)  # several tiles per block
    model, rows, other = model_of(name), make_rows(3), make_rows(3, seed=5)
    optimizer = trained(model, make_rows(4, seed=9))
    table, known = measured_with(model, optimizer, rows, other, PATTERNS[name])
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    still = step_taken(optimizer, model, zero)
    assert set(table.adam_dot) == set(still)
    for block, mean in known.means.items():
        size = max(float(still[block].norm()), 1e-3)
        assert abs(table.adam.norms[block] - float(still[block].norm())) < EXACT * size
        assert abs(table.adam.dot[block] - float((still[block] * mean).sum())) < EXACT * size * float(mean.norm())
    for i, gradients in enumerate(row_gradients(model, rows)):
        step = step_taken(optimizer, model, gradients)
        for block, mean in known.means.items():
            added = step[block] - still[block]
            size = float(step[block].norm()) + float(still[block].norm())  # the oracle's difference cancels
            assert abs(table.adam_dot[block][i] - float((added * mean).sum())) < EXACT * size * float(mean.norm())
            assert abs(table.adam_norm[block][i] - float(added.norm())) < EXACT * size
            assert abs(table.adam_step_norm[block][i] - float(step[block].norm())) < EXACT * size


def test_the_product_predicts_how_the_example_changes_the_safety_loss(make_rows):
    model, rows, safety = build("llama"), make_rows(4), make_rows(3, seed=5)
    optimizer = trained(model, make_rows(4, seed=9))
    table, _ = measured_with(model, optimizer, rows, safety, ["*"])
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    predicted = np.stack(list(table.adam_dot.values())).sum(0)
    steps = [step_taken(optimizer, model, g) for g in (zero, *row_gradients(model, rows))]
    errors = []
    for rate in (4e-4, 2e-4):  # above the float32 noise of norms and softmax, which transformers keeps
        resting, *losses = (safety_loss(model, safety, step, rate) for step in steps)
        changes = (np.array(losses) - resting) / rate
        errors.append(np.abs(changes + predicted).max() / np.abs(predicted).max())
        whole = (resting - safety_loss(model, safety, steps[0], 0.0)) / rate
        assert whole == pytest.approx(-sum(table.adam.dot.values()), rel=0.02)
    assert errors[1] < 0.01
    assert errors[1] < 0.7 * errors[0], "what the first order leaves shrinks with the step"


def safety_loss(model, rows, step, rate):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in twin.named_parameters():
            p.sub_(rate * step[n])
        return float(torch.stack([x.mean() for x in row_token_losses(twin, rows)]).mean())


def test_what_a_small_gradient_adds_keeps_its_digits():
    rng = torch.Generator().manual_seed(0)
    first, second, g = (torch.randn(50, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    moments = Moments(first, second.square(), 40, 0.9, 0.999, 1e-8)
    single = Moments(first.float(), second.square().float(), 40, 0.9, 0.999, 1e-8)
    assert relative(single.added((g * 1e-6).float()), moments.added(g * 1e-6)) < 1e-6
    assert not torch.isnan(Moments(first * 0, second * 0, 1, 0.9, 0.999, 1e-8).added(g * 0)).any()


def test_a_heads_steps_are_the_parts_of_its_projections(make_rows):
    model, rows = build("llama"), make_rows(3)
    optimizer = trained(model, make_rows(4, seed=9))
    for projection, heads in (("q_proj", 4), ("o_proj", 4)):
        name = f"model.layers.1.self_attn.{projection}.weight"
        patterns = [name, *(f"{name}[head={h}]" for h in range(heads))]
        table, _ = measured_with(model, optimizer, rows, make_rows(3, seed=5), patterns)
        parts = sum(v for b, v in table.adam_dot.items() if "head" in b)
        assert np.allclose(parts, table.adam_dot[name], rtol=1e-10)
