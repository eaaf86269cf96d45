"""The same rows whatever form the gradients have, however they are split, and wherever the matrices are made."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from test_projection import RANDOM, projector_for

from graddiag.gradients import Dense, Lookup, Outer
from graddiag.projection import GaussianRows, LoGra, Sjlt, make_projector
from graddiag.signals import Block

EXACT = 1e-11  # float64; sums of a few thousand products
SINGLE = 1e-5  # float32
LENGTHS = (6, 4, 1, 3)


def matrix_of(projector, block):
    """The whole projection as a matrix [k, d]: what it does to each unit gradient."""
    d = math.prod(block.shape)
    return projector.rows(block, Dense(torch.eye(d, dtype=torch.float64).reshape(d, *block.shape))).T


def outer(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(4, 6, d, dtype=torch.float64, generator=generator) for d in shape)
    for i, t in enumerate(LENGTHS):
        left[i, t:] = 0
    return Outer(left, right, LENGTHS)


def table(shape, *, tied):
    """Rows looked up, the last one and some twice; beyond an example's end the gradients are 0."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, shape[0], (4, 6), generator=generator)
    ids[0, 1], ids[:, 0] = ids[0, 2], shape[0] - 1
    return Lookup(ids, outer((shape[1], 1), 3).left, LENGTHS, shape[0], outer(shape, 5) if tied else None)


def whole(gradients):
    """The gradients themselves, formed the slow way."""
    if isinstance(gradients, Outer):
        return torch.einsum("bto,bti->boi", gradients.left, gradients.right)
    out = torch.zeros(len(LENGTHS), gradients.rows, gradients.output_grads.shape[2], dtype=torch.float64)
    for i, t in enumerate(LENGTHS):
        for s in range(t):
            out[i, gradients.ids[i, s]] += gradients.output_grads[i, s]
    return out if gradients.head is None else out + whole(gradients.head)


def forms(shape):
    return [outer(shape), table(shape, tied=False), table(shape, tied=True)]


def close(a, b, near=EXACT):
    return (a - b).norm() <= near * b.norm()


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("shape", [(30, 20), (50, 3), (12, 9)])
def test_every_form_of_a_gradient_is_projected_by_one_matrix(kind, shape):
    block = Block("b", shape)
    p = projector_for(kind, 16, 0, block)
    matrix = matrix_of(p, block)
    for gradients in forms(shape):
        assert close(p.rows(block, gradients), whole(gradients).flatten(1) @ matrix.T), type(gradients)


@pytest.mark.parametrize(("kind", "shape"), [("sjlt", (1100, 1000)), ("dense", (300, 300))])
def test_tiles_add_up_to_the_whole(kind, shape):
    """Blocks of more than one tile: rows of the gradient in its one half, and in its other, are the rows of all."""
    block, p, gradients = Block("b", shape), make_projector(kind, 64, 0), outer(shape)
    total = p.rows(block, gradients)
    assert close(p.rows(block, Dense(whole(gradients))), total)
    half = torch.arange(shape[0]) < shape[0] // 3
    parts = [p.rows(block, Outer(gradients.left * m, gradients.right, LENGTHS)) for m in (half, ~half)]
    assert close(parts[0] + parts[1], total)
    for tied in (False, True):  # rows that are looked up are visited one by one, all others tile by tile
        looked_up = table(shape, tied=tied)
        assert close(p.rows(block, looked_up), p.rows(block, Dense(whole(looked_up))))


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("shape", [(200,), (4, 9, 20)])
def test_vectors_and_experts_are_projected_by_one_matrix(kind, shape):
    block = Block("b", shape)
    p = projector_for(kind, 16, 0, block)
    values = torch.randn(3, *shape, dtype=torch.float64)
    assert close(p.rows(block, Dense(values)), values.flatten(1) @ matrix_of(p, block).T)


@pytest.mark.parametrize("kind", RANDOM)
def test_rows_of_a_split_batch_are_the_rows_of_the_batch(kind):
    block = Block("b", (30, 20))
    p = projector_for(kind, 16, 0, block)
    for gradients in (outer((30, 20)), Dense(whole(outer((30, 20))))):
        total = p.rows(block, gradients)
        for at in (slice(1), slice(1, 4)):
            if isinstance(gradients, Outer):
                part = Outer(gradients.left[at], gradients.right[at], LENGTHS[at])
            else:
                part = Dense(gradients.values[at])
            assert close(p.rows(block, part), total[at])


@pytest.mark.parametrize("kind", RANDOM)
def test_rows_depend_on_the_dtype_by_its_rounding_only(kind):
    block = Block("b", (30, 20))
    p = projector_for(kind, 16, 0, block)
    for gradients in forms((30, 20)):
        double, single = p.rows(block, gradients), p.rows(block, single_of(gradients))
        assert single.dtype == torch.float32
        assert close(single.double(), double, SINGLE)


def single_of(gradients):
    if isinstance(gradients, Outer):
        return Outer(gradients.left.float(), gradients.right.float(), LENGTHS)
    head = single_of(gradients.head) if gradients.head else None
    return Lookup(gradients.ids, gradients.output_grads.float(), LENGTHS, gradients.rows, head)


@pytest.mark.parametrize("kind", ["sjlt", "dense"])
def test_half_precision_is_projected_in_float32(kind):
    p, gradients, block = make_projector(kind, 16, 0), outer((30, 20)), Block("b", (30, 20))
    half = Outer(gradients.left.bfloat16(), gradients.right.bfloat16(), LENGTHS)
    widened = Outer(half.left.float(), half.right.float(), LENGTHS)
    assert torch.equal(p.rows(block, half), p.rows(block, widened))


@pytest.mark.parametrize("kind", RANDOM)
def test_matrices_depend_on_seed_and_block_and_not_on_thread_order_or_global_state(kind):
    block, other = Block("model.layers.3.mlp.up_proj.weight", (34, 28)), Block("other", (34, 28))
    wanted = matrix_of(projector_for(kind, 16, 7, block), block)
    matrix_of(projector_for(kind, 16, 7, other), other)
    np.random.seed(1)
    torch.manual_seed(1)
    found = []
    thread = threading.Thread(target=lambda: found.append(matrix_of(projector_for(kind, 16, 7, block), block)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], wanted)
    assert torch.initial_seed() == 1
    assert not torch.allclose(wanted, matrix_of(projector_for(kind, 16, 7, other), other))
    assert not torch.allclose(wanted, matrix_of(projector_for(kind, 16, 8, block), block))


@pytest.mark.parametrize(("short", "long"), [(16, 64), (144, 400)])
def test_a_longer_two_sided_factor_begins_with_the_shorter_one_up_to_scale(short, long):
    """Both i.i.d. (at most 8 of 48 rows), or both orthonormal (12 or more)."""
    block = Block("b", (64, 48))
    for side in (0, 1) if long == 64 else (1,):
        a, b = (LoGra(dim, 7).factor(block, side) for dim in (short, long))
        assert np.allclose(b[: len(a)] / np.linalg.norm(b[0]), a / np.linalg.norm(a[0]), atol=1e-12)


def test_the_first_orthonormal_row_is_the_first_draw_with_its_sign():
    for seed in range(10):  # a LAPACK that chooses signs by the numbers is right by chance in half of them
        iid, orthonormal = (LoGra(dim, seed).factor(Block("b", (64, 48)), 1)[0] for dim in (16, 400))
        assert np.allclose(orthonormal / np.linalg.norm(orthonormal), iid / np.linalg.norm(iid), atol=1e-12)


@pytest.mark.parametrize(("short", "long"), [(16, 64), (160, 300)])
def test_a_longer_dense_matrix_begins_with_the_shorter_one_up_to_scale(short, long):
    block = Block("b", (20, 30))
    a, b = (matrix_of(GaussianRows(dim, 7), block) for dim in (short, long))
    assert close(b[:short] / b[0].norm(), a / a[0].norm())


def test_each_place_of_a_sparse_row_is_the_sum_of_two_places_of_the_row_with_twice_as_many():
    block = Block("b", (20, 30))
    a, b = (matrix_of(Sjlt(dim, 7, most_nonzeros=4), block) for dim in (16, 32))
    assert close(b[0::2] + b[1::2], a)


def test_every_column_of_a_sparse_matrix_has_one_entry_in_each_group():
    matrix = matrix_of(Sjlt(24, 0, most_nonzeros=4), Block("b", (20, 30)))
    filled = matrix.reshape(4, 6, 600).abs()
    assert torch.equal((filled > 0).sum(1), torch.ones(4, 600, dtype=torch.long))
    assert torch.allclose(filled.amax(1), torch.tensor(0.5, dtype=torch.float64))
    signs = torch.sign(matrix).sum() / math.sqrt(4 * 600)
    assert abs(signs) < 4, "as many plus as minus, within four standard errors"
