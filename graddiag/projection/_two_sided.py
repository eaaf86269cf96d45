"""A gradient W multiplied from both sides, `vec(P_out W P_in^T)`, without being formed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Condensed, Dense, Gradients, Lookup, Outer
from graddiag.row_layout import two_sides
from graddiag.signals import Block


@runtime_checkable
class Factors(Protocol):
    """Gives the matrix of each side of a block; hashable, since what it gives is cached."""

    def __hash__(self) -> int: ...

    def factor(self, block: Block, side: int) -> Float[np.ndarray, "p d"] | None:
        """The matrix of one side (0 output, 1 input), or None for the identity."""
        ...


def check_square(dim: int, least: int = 1) -> None:
    """Raises UsageError unless `dim` is a square with at least `least` numbers a side."""
    if dim < least**2 or math.isqrt(dim) ** 2 != dim:
        near = max(least, round(math.sqrt(max(dim, 1)))) ** 2
        raise UsageError(
            f"--dim {dim} is not a square of at least {least**2}, and a two-sided projection has sqrt(dim) a side. "
            f"Use {near}."
        )


@lru_cache(maxsize=4096)
def on_device(factors: Factors, block: Block, side: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """The transposed factor, [d, p], or None for the identity. Small, since p is: those of all blocks are kept."""
    factor = factors.factor(block, side)
    return None if factor is None else torch.from_numpy(factor).T.contiguous().to(device=device, dtype=dtype)


def two_sided_rows(factors: Factors, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
    """`(L P_out^T)^T (R P_in^T)` of each example, flattened."""
    if isinstance(gradients, Outer):
        left = shorten(factors, block, 0, gradients.left)
        return torch.bmm(left.transpose(1, 2), shorten(factors, block, 1, gradients.right)).flatten(1)
    if isinstance(gradients, Condensed):
        left = shorten(factors, block, 0, gradients.left)
        return torch.bmm(left.transpose(1, 2), gradients.right.rows).flatten(1)
    if isinstance(gradients, Lookup):
        left, right = _chosen(factors, block, gradients), shorten(factors, block, 1, gradients.output_grads)
        rows = torch.bmm(left.transpose(1, 2), right).flatten(1)
        return rows if gradients.head is None else rows + two_sided_rows(factors, block, gradients.head)
    assert isinstance(gradients, Dense)
    sides = two_sides(block.shape)
    values = gradients.values.reshape(-1, *sides)
    if len(sides) == 1:
        return shorten(factors, block, 0, values)
    half = shorten(factors, block, 1, values)  # [b, d_out, p_in]
    return shorten(factors, block, 0, half.transpose(1, 2)).transpose(1, 2).flatten(1)


def shorten(factors: Factors, block: Block, side: int, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b p"]:
    """One factor of the gradients of a block, its columns multiplied with the block's matrix of that side."""
    factor = on_device(factors, block, side, x.device, x.dtype)
    return x if factor is None else x @ factor


def _chosen(factors: Factors, block: Block, gradients: Lookup) -> Float[Tensor, "b t p"]:
    """The factor's rows of the ids."""
    grads = gradients.output_grads
    factor = on_device(factors, block, 0, grads.device, grads.dtype)
    if factor is None:
        return torch.nn.functional.one_hot(gradients.ids, block.shape[0]).to(grads.dtype)
    return factor[gradients.ids]
