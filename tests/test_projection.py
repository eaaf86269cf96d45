"""Projections: unbiased inner products, the variance that the formulas say, and where nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from graddiag.errors import UsageError
from graddiag.gradients import Dense, Outer
from graddiag.projection import Bases, Exact, GaussianRows, LoGra, Sjlt, make_projector, probe_digest, sides_basis
from graddiag.row_layout import row_layout
from graddiag.signals import Block

SEEDS = 200
Z = 3.0  # standard errors
DRAWS = 20_000  # of a variance, so that its own error is a small part of
NEAR = 0.1  # relative
RANDOM = ["logra", "sjlt", "dense", "lowrank"]
SHAPES = [(48, 40), (12, 100), (100, 12), (5, 60), (60, 1), (3, 3), (200,), (4, 9, 20)]


def bases_of(block, dim, rank=3):
    """Bases from a mean gradient that has nothing to do with the gradients of a test."""
    rng = np.random.default_rng(99)
    rows, width = math.prod(block.shape[:-1]), block.shape[-1]
    mean = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, width))
    return Bases({block.name: sides_basis(torch.from_numpy(mean).reshape(block.shape), block, dim, 0)})


def projector_for(kind, dim, seed, block):
    return make_projector(kind, dim, seed, bases=bases_of(block, dim) if kind == "lowrank" else None)


def draws(make, block, w, h, seeds):
    """Projected inner products of two gradients over seeds."""
    both = Dense(torch.from_numpy(np.stack([w, h])))
    out = np.empty(seeds)
    for seed in range(seeds):
        a, b = make(seed).rows(block, both)
        out[seed] = (a * b).sum().item()
    return out


def one_sided_draws(make, w, h, seeds, copies=100):
    """As `draws`, of one-sided kinds, many at a time: the rows of a tall block have matrices of their own, so pairs of
    gradients that stand in different rows are projected independently."""
    rows, width = w.shape
    tall = torch.zeros(2, copies, copies, rows, width, dtype=torch.float64)
    for c in range(copies):
        tall[0, c, c], tall[1, c, c] = torch.from_numpy(w), torch.from_numpy(h)
    both, block = Dense(tall.reshape(2 * copies, copies * rows, width)), Block("b", (copies * rows, width))
    out = []
    for seed in range(seeds // copies):
        a, b = make(seed).rows(block, both).reshape(2, copies, -1)
        out.append((a * b).sum(1).numpy())
    return np.concatenate(out)


def two_gradients(shape, seed=0):
    """Neither parallel nor orthogonal, and not of equal norm."""
    rng = np.random.default_rng(seed)
    w, h = rng.normal(size=shape), rng.normal(size=shape)
    return w, h + w


def two_sided_variance(w, h, p):
    m = h.T @ w
    first = (1 + 1 / p) * ((m**2).sum() + ((w @ h.T) ** 2).sum()) + 2 * np.trace(m @ m)
    return first / p + ((w**2).sum() * (h**2).sum() + (w * h).sum() ** 2) / p**2


def one_sided_variance(w, h, k):
    return ((w**2).sum() * (h**2).sum() + (w * h).sum() ** 2) / k


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("shape", SHAPES)
def test_inner_products_are_unbiased_over_seeds_for_every_shape(kind, shape):
    block, (w, h) = Block("b", shape), two_gradients(shape)
    bases = bases_of(block, 64)
    found = draws(lambda seed: make_projector(kind, 64, seed, bases=bases), block, w, h, SEEDS)
    wanted = (w * h).sum()
    error = found.std(ddof=1) / math.sqrt(SEEDS)
    assert abs(found.mean() - wanted) <= Z * error + 1e-9 * abs(wanted)
    assert (found.std() < 1e-9 * abs(wanted)) == row_layout(kind, 64, shape).is_whole


def test_two_iid_sides_have_the_variance_of_the_formula():
    (w, h), p = two_gradients((20, 17), 1), 4
    found = draws(lambda seed: LoGra(p * p, seed), Block("b", w.shape), w, h, DRAWS)
    assert found.var() == pytest.approx(two_sided_variance(w, h, p), rel=NEAR)


def test_an_iid_dense_projection_has_the_variance_of_the_formula():
    w, h = two_gradients((2, 21), 2)
    found = one_sided_draws(lambda seed: GaussianRows(8, seed), w, h, DRAWS)
    assert found.var() == pytest.approx(one_sided_variance(w, h, 8), rel=NEAR)


@pytest.mark.parametrize(("dim", "nonzeros"), [(7, 1), (8, 4)])
def test_a_sparse_projection_has_the_same_variance_for_any_number_of_nonzeros(dim, nonzeros):
    """Pairs of places only: what a number does to itself is exact, hence the third term."""
    w, h = two_gradients((2, 15), 3)
    w[0, 0] = h[0, 0] = 6.0  # so that the third term is more than the tolerance
    assert Sjlt(dim, most_nonzeros=4).nonzeros == nonzeros
    found = one_sided_draws(lambda seed: Sjlt(dim, seed, most_nonzeros=4), w, h, DRAWS)
    assert 2 * ((w * h) ** 2).sum() / dim > 2 * NEAR * found.var()
    assert found.var() == pytest.approx(one_sided_variance(w, h, dim) - 2 * ((w * h) ** 2).sum() / dim, rel=NEAR)


def test_more_nonzeros_make_large_errors_rarer():
    """Two large numbers that fall together cost all of their product with one non-zero, a quarter with four."""
    w = np.zeros((2, 2))
    w[0, 1] = w[1, 0] = 1.0
    tails = []
    for most in (1, 4):
        error = one_sided_draws(lambda seed, most=most: Sjlt(12, seed, most_nonzeros=most), w, w, 4000) - 2
        tails.append((error**4).mean() / (error**2).mean() ** 2)
    assert tails[0] > 2 * tails[1]


@pytest.mark.parametrize("kind", ["logra", "dense"])
def test_orthonormal_rows_have_a_smaller_variance_than_iid_ones(kind):
    (w, h), dim = two_gradients((6, 7), 4), 16  # 4 of 6 and of 7, or 16 of 42
    wanted = two_sided_variance(w, h, 4) if kind == "logra" else one_sided_variance(w, h, dim)
    found = draws(lambda seed: make_projector(kind, dim, seed), Block("b", w.shape), w, h, 1500)
    assert found.var() < (1 - NEAR) * wanted


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("shape", [(4, 3), (16,), (2, 2, 3)])
def test_the_identity_where_nothing_is_shortened(kind, shape):
    block = Block("b", shape)
    values = Dense(torch.randn(2, *shape))
    p = projector_for(kind, 16, 0, block)
    assert torch.equal(p.rows(block, values), Exact().rows(block, values))
    assert p.size(block) == Exact().size(block) == math.prod(shape)


def planted(rng, shape, rank):
    return rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1]))


def test_low_rank_bases_capture_a_planted_gradient_exactly():
    rng, block, dim = np.random.default_rng(5), Block("b", (48, 40)), 64
    columns, rows = planted(rng, block.shape, 4)
    basis = sides_basis(torch.from_numpy(columns @ rows), block, dim, 0)
    p = make_projector("lowrank", dim, 1, bases=Bases({"b": basis}))
    inside = [torch.from_numpy(columns @ rng.normal(size=(4, 4)) @ rows) for _ in range(2)]
    a, b = p.rows(block, Dense(torch.stack(inside)))
    assert (a * b).sum().item() == pytest.approx((inside[0] * inside[1]).sum().item(), rel=1e-10)
    layout = row_layout("lowrank", dim, block.shape)
    random = a.reshape(layout.kept)[layout.fixed[0] :]
    assert random.norm() < 1e-10 * a.norm(), "all of it is in the fixed places, which come first"
    outside = torch.from_numpy(rng.normal(size=block.shape))
    off = p.rows(block, Dense(outside[None]))[0]
    assert abs((off.square().sum() / outside.square().sum()).item() - 1) > 1e-3, "elsewhere it is an estimate"


def test_the_basis_of_a_mean_is_its_top_singular_subspace():
    rng, block = np.random.default_rng(6), Block("b", (60, 50))
    u, _ = np.linalg.qr(rng.normal(size=(60, 50)))
    v, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    mean = u * np.geomspace(1, 1e-6, 50) @ v.T
    left, right = sides_basis(torch.from_numpy(mean), block, 64, 0)
    for found, wanted in ((left, u), (right, v)):
        assert np.allclose(found.T @ found, np.eye(4), atol=1e-13)
        assert np.linalg.norm(found @ found.T - wanted[:, :4] @ wanted[:, :4].T) < 1e-8


def test_a_low_rank_factor_is_orthonormal_at_its_fixed_rows_and_random_off_them():
    block = Block("b", (48, 40))
    p = projector_for("lowrank", 64, 3, block)
    for side in (0, 1):
        factor = p.factor(block, side)
        assert np.allclose(factor[:4] @ factor[:4].T, np.eye(4), atol=1e-12)
        assert np.abs(factor[4:] @ factor[:4].T).max() < 1e-12


@pytest.mark.parametrize("kind", ["logra", "lowrank", "dense"])
def test_a_sizeable_share_of_a_side_is_orthonormal(kind):
    block = Block("b", (18, 20))
    p = projector_for(kind, 100 if kind == "dense" else 64, 0, block)
    if kind == "dense":
        factor = p.rows(block, Dense(torch.eye(360, dtype=torch.float64).reshape(360, 18, 20))).numpy().T
        assert np.allclose(factor @ factor.T, np.eye(100) * 360 / 100, atol=1e-12)
    else:
        gram = p.factor(block, 1)[4:] @ p.factor(block, 1)[4:].T
        size = 20 / 8 if kind == "logra" else (20 - 4) / 4
        assert np.allclose(gram, np.eye(4) * size, atol=1e-12)


def test_a_probe_tells_projections_apart():
    block = Block("b", (48, 40))
    kinds = [LoGra(16, 0), LoGra(16, 1), LoGra(64, 0), Exact(), Sjlt(16), Sjlt(16, 1), GaussianRows(16)]
    kinds += [projector_for("lowrank", 16, 0, block), projector_for("lowrank", 16, 1, block)]
    kinds.append(make_projector("lowrank", 16, 0, bases=bases_of(block, 16, rank=2)))
    assert len({probe_digest(p) for p in kinds}) == len(kinds)
    assert probe_digest(LoGra(16, 0)) == probe_digest(LoGra(16, 0))
    same = [projector_for("lowrank", 16, 0, block) for _ in range(2)]
    assert probe_digest(same[0]) == probe_digest(same[1]), "bases with the same content are the same"


def test_wrong_kinds_and_sizes_are_refused_with_what_to_use():
    with pytest.raises(UsageError, match=r"no projection 'fancy'. Allowed: exact, logra"):
        make_projector("fancy", 256, 0)
    with pytest.raises(UsageError, match=r"200 is not a square.*Use 196"):
        make_projector("logra", 200, 0)
    with pytest.raises(UsageError, match=r"1 is not a square of at least 4.*Use 4"):
        make_projector("lowrank", 1, 0, bases=Bases({}))
    with pytest.raises(UsageError, match=r"'lowrank' needs a reference.*reference=examples"):
        make_projector("lowrank", 256, 0)
    for kind in ("sjlt", "dense"):
        with pytest.raises(UsageError, match=r"--dim 0 leaves nothing"):
            make_projector(kind, 0, 0)


def test_a_dense_matrix_that_is_hopeless_is_refused_before_anything_is_drawn():
    blocks = [Block(f"b{k}", (576, 1536)) for k in range(30)]
    with pytest.raises(UsageError, match=r"256 x 26,542,080 random numbers.*sjlt"):
        make_projector("dense", 256, 0, blocks=blocks)
    assert make_projector("dense", 256, 0, blocks=[*blocks[:2], Block("norm", (256,))]).kind == "dense"


def test_bases_of_something_else_are_refused():
    block = Block("b", (48, 40))
    p = projector_for("lowrank", 64, 0, block)
    gradients = Outer(torch.randn(1, 2, 48), torch.randn(1, 2, 40), (2,))
    with pytest.raises(UsageError, match=r"bases know 1 blocks, but not 'c'"):
        p.rows(Block("c", (48, 40)), gradients)
    with pytest.raises(UsageError, match=r"basis of 'b' is \[48, 4\], and --dim 256 needs \[48, 8\]"):
        make_projector("lowrank", 256, 0, bases=p.bases).rows(block, gradients)
