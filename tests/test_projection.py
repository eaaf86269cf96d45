"""Projections: unbiased inner products, the variance that the formula says, the same matrices everywhere."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from graddiag.errors import UsageError
from graddiag.gradients import Dense, Outer
from graddiag.projection import Exact, LoGra, make_projector, probe_digest
from graddiag.signals import Block

SEEDS = 200
Z = 3.0  # standard errors; 8 shapes are tested


def draws(block, w, h, dim, seeds):
    """Projected inner products of two gradients over seeds."""
    out = []
    for seed in range(seeds):
        p = LoGra(dim, seed)
        a, b = (p.rows(block, Dense(x[None])) for x in (w, h))
        out.append((a * b).sum().item())
    return np.array(out)


@pytest.mark.parametrize("shape", [(48, 40), (12, 100), (100, 12), (5, 60), (60, 1), (3, 3), (200,), (4, 9, 20)])
def test_inner_products_are_unbiased_over_seeds_for_every_shape(shape):
    rng = np.random.default_rng(0)
    w, h = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    h = h + w
    found = draws(Block("b", shape), w, h, 64, SEEDS)
    wanted = (w * h).sum().item()
    error = found.std(ddof=1) / math.sqrt(SEEDS)
    assert abs(found.mean() - wanted) <= Z * error + 1e-9 * abs(wanted)


def test_the_variance_is_that_of_the_formula():
    """20,000 draws of small i.i.d. Gaussian factors against the closed form, within 10 %."""
    rng = np.random.default_rng(1)
    w, h = rng.normal(size=(7, 6)), rng.normal(size=(7, 6))
    p, m = 4, h.T @ w
    first = (1 + 1 / p) * ((m**2).sum() + ((w @ h.T) ** 2).sum()) + 2 * np.trace(m @ m)
    wanted = first / p + ((w**2).sum() * (h**2).sum() + (w * h).sum() ** 2) / p**2
    found = draws(Block("b", (7, 6)), torch.from_numpy(w), torch.from_numpy(h), p * p, 20_000)
    assert found.var() == pytest.approx(wanted, rel=0.1)


def test_the_identity_where_nothing_is_shortened():
    block, p = Block("b", (4, 3)), LoGra(16)
    outer = Outer(torch.randn(2, 5, 4), torch.randn(2, 5, 3), (5, 5))
    assert torch.equal(p.rows(block, outer), Exact().rows(block, outer))
    assert p.size(block) == Exact().size(block) == 12


def test_matrices_do_not_depend_on_thread_or_order_and_longer_ones_begin_alike():
    block = Block("model.layers.3.mlp.up_proj.weight", (64, 48))
    wanted = LoGra(64, 7).factor(block, 0)
    LoGra(64, 7).factor(Block("other", (64, 48)), 1)
    found = []
    thread = threading.Thread(target=lambda: found.append(LoGra(64, 7).factor(block, 0)))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], wanted)
    longer = LoGra(256, 7).factor(block, 0)
    assert np.allclose(longer[:8] * math.sqrt(16), wanted * math.sqrt(8))
    assert not np.array_equal(wanted, LoGra(64, 7).factor(Block("other", (64, 48)), 0))
    assert not np.array_equal(wanted, LoGra(64, 8).factor(block, 0))


def test_rows_of_a_split_batch_are_the_rows_of_the_batch():
    block, p = Block("b", (30, 20)), LoGra(16)
    left, right = torch.randn(4, 6, 30).double(), torch.randn(4, 6, 20).double()

    def rows(at):
        return p.rows(block, Outer(left[at], right[at], (6,) * len(left[at])))

    assert torch.allclose(torch.cat([rows(slice(1)), rows(slice(1, 4))]), rows(slice(4)), rtol=1e-12)


def test_a_probe_tells_projections_apart():
    kinds = [LoGra(16, 0), LoGra(16, 1), LoGra(64, 0), Exact()]
    assert len({probe_digest(p) for p in kinds}) == len(kinds)
    assert probe_digest(LoGra(16, 0)) == probe_digest(LoGra(16, 0))


def test_wrong_kinds_and_sizes_are_refused_with_what_to_use():
    with pytest.raises(UsageError, match=r"no projection 'fancy'. Allowed: exact, logra"):
        make_projector("fancy", 256, 0)
    with pytest.raises(UsageError, match=r"'sjlt' is not there yet. Use exact or logra"):
        make_projector("sjlt", 256, 0)
    with pytest.raises(UsageError, match=r"200 is not a square.*Use 196"):
        make_projector("logra", 200, 0)
