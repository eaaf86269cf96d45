"""Per-example gradients against those of Opacus, an implementation by others. Skipped where it is not installed."""

from __future__ import annotations

import pytest
import torch
from architectures import build
from reference import row_token_losses
from test_architectures import EXACT, SMALL
from test_extractor import extractor_for
from torch import nn

opacus = pytest.importorskip("opacus")

KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding)


def opacus_gradients(model, rows):
    """The gradients of each row's mean loss, [n, *shape], of the parameters that require one."""
    for module in model.modules():
        module.training = type(module) in KINDS  # Opacus looks at modules in training only; dropout stays off
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum", strict=False)
    torch.stack([losses.mean() for losses in row_token_losses(wrapped, rows)]).sum().backward()
    found = {n.removeprefix("_module."): p.grad_sample for n, p in wrapped.named_parameters() if p.requires_grad}
    # OPT flattens batch and tokens before some modules, and Opacus then gives a gradient per token.
    return {n: g.unflatten(0, (len(rows), -1)).sum(1) for n, g in found.items()}


@pytest.mark.parametrize(("name", "kinds"), [("opt", KINDS), ("gpt-neox", KINDS), ("llama", (nn.Linear, nn.Embedding))])
def test_linear_norm_and_embedding_gradients_are_those_of_opacus(name, kinds, make_rows):
    model, rows = build(name, change={"tie_word_embeddings": False}), make_rows(4)
    modules = {n: m for n, m in model.named_modules() if type(m) in KINDS}
    assert {type(m) for m in modules.values()} == set(kinds)
    names = [f"{n}.{a}" for n, m in modules.items() for a, _ in m.named_parameters(recurse=False)]
    measured = extractor_for(model, names).measure(rows).gradients
    for n, p in model.named_parameters():
        p.requires_grad_(n in names)
    oracle = opacus_gradients(model, rows)
    assert set(oracle) == set(measured)
    whole = sum(g.square().sum() for g in oracle.values()) ** 0.5
    for n, wanted in oracle.items():
        scale = max(wanted.norm(), SMALL * whole)
        assert (torch.from_numpy(measured[n]) - wanted.flatten(1)).norm() < EXACT * scale, n
