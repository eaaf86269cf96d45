"""A one-sided Gaussian projection: nothing is assumed and nothing is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Gradients
from graddiag.projection._draws import generator, unbiased
from graddiag.projection._exact import Exact
from graddiag.projection._one_sided import Map, matrix_shape, one_sided_rows
from graddiag.row_layout import becomes_orthonormal, row_layout
from graddiag.signals import Block

TILE = 2**22  # entries of the matrix that are there at once: 32 MiB in float64
HOPELESS = 2**30  # entries that would be drawn for every batch: it would wait for random numbers, not for the model
KEPT_WHOLE = 8  # orthonormal matrices, of 32 MiB at most


@dataclass(frozen=True)
class GaussianRows:
    """The flattened gradient times a matrix of i.i.d. Gaussian entries of variance 1 / `dim`; the kind `dense`.

    `Var <Phi(g), Phi(h)> = (|g|^2 |h|^2 + <g, h>^2) / k`. Where `dim` is a sizeable share of the block's elements, the
    rows are orthonormal instead, which has a smaller variance.

    The columns that meet one row of the block come from a counter-based generator keyed by (seed, block, row): they do
    not depend on device, thread or order. They are drawn tile by tile, again for every batch. A longer row begins with
    a shorter one, up to scale, where both are i.i.d. or both orthonormal.
    """

    dim: int = 256
    seed: int = 0
    kind: str = field(default="dense", init=False)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UsageError(f"--dim {self.dim} leaves nothing of a gradient. Use 1 or more.")

    def size(self, block: Block) -> int:
        """Length of a row: `dim`, or the number of elements of a block that has no more."""
        return row_layout(self.kind, self.dim, block.shape).size

    def check(self, blocks: Sequence[Block]) -> None:
        """Raises UsageError where drawing the matrices of these blocks is hopeless."""
        projected = [math.prod(b.shape) for b in blocks if math.prod(b.shape) > self.dim]
        if sum(projected) * self.dim > HOPELESS:
            raise UsageError(
                f"--projection dense would draw {self.dim} x {sum(projected):,} random numbers for every batch; at "
                f"most {HOPELESS:,} are allowed. Use --projection sjlt, which is as fine, or logra; or a "
                "smaller --dim, or fewer --blocks."
            )

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """One row per example; a tile of one example's gradient is formed at a time."""
        if row_layout(self.kind, self.dim, block.shape).is_whole:
            return Exact().rows(block, gradients)
        width = matrix_shape(block)[1]

        def map_of(rows: Sequence[int], like: Tensor) -> Map:
            columns = torch.from_numpy(self._columns(block, rows)).to(device=like.device, dtype=like.dtype)
            return lambda tile: columns @ tile.flatten()

        tile_rows = max(1, TILE // (self.dim * width))
        return one_sided_rows(block, gradients, self.dim, map_of, tile_rows=tile_rows)

    def _columns(self, block: Block, rows: Sequence[int]) -> Float[np.ndarray, "k d"]:
        """The columns that meet some rows of the block."""
        height, width = matrix_shape(block)
        if becomes_orthonormal(self.dim, height * width):
            whole = _whole(self, block).reshape(self.dim, height, width)
            return whole[:, list(rows)].reshape(self.dim, -1)
        return _draws(self, block.name, rows, width) / math.sqrt(self.dim)


def _draws(p: GaussianRows, name: str, rows: Sequence[int], width: int) -> Float[np.ndarray, "k d"]:
    each = [generator(p.seed, name, "dense", row=r).standard_normal((p.dim, width)) for r in rows]
    return np.concatenate(each, axis=1)


@lru_cache(maxsize=KEPT_WHOLE)
def _whole(p: GaussianRows, block: Block) -> Float[np.ndarray, "k d"]:
    height, width = matrix_shape(block)
    return unbiased(_draws(p, block.name, range(height), width), height * width)
