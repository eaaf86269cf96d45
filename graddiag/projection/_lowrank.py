"""Half of each side looks where a reference gradient is large, the other half at random everywhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Gradients
from graddiag.projection._draws import generator, unbiased
from graddiag.projection._logra import SIDES
from graddiag.projection._two_sided import check_square, two_sided_rows
from graddiag.row_layout import RowLayout, row_layout, two_sides
from graddiag.signals import Block

KIND = "lowrank"
LEAST_A_SIDE = 2  # one direction of the reference, one at random
# Subspace iteration (Halko et al. 2011, arXiv 0909.4061): with r + 8 columns and 4 steps, what is missed of the r-th
# direction falls as (sigma_{r+9} / sigma_r)^8.
SPARE = 8
STEPS = 4


@dataclass(frozen=True, eq=False)
class Bases:
    """Orthonormal columns for the two sides of each block: `of[block] = (U [d_out, r], V [d_in, r])`, float64.

    A side without fixed directions (one that is kept whole, or a parameter of one dimension) has r = 0. Two objects are
    equal only if they are the same one; `digest` compares contents.
    """

    of: Mapping[str, tuple[Float[np.ndarray, "d0 r0"], Float[np.ndarray, "d1 r1"]]]

    @cached_property
    def digest(self) -> str:
        """A digest of every bit."""
        h = hashlib.sha256()
        for name, sides in sorted(self.of.items()):
            h.update(f"{name} {[s.shape for s in sides]}".encode())
            for side in sides:
                h.update(np.ascontiguousarray(side).tobytes())
        return h.hexdigest()


@dataclass(frozen=True)
class LowRank:
    """Two-sided projection `vec(P_out W P_in^T)` with half of each side's `sqrt(dim)` rows fixed: the top singular
    directions of a reference set's mean gradient.

    The other rows are random in the orthogonal complement of the fixed ones, scaled so that `E[P^T P]` is the identity
    on it (orthonormal where they are a sizeable share of it). Hence inner products are unbiased for every gradient, and
    exact for gradients within the fixed directions of both sides. A parameter of one dimension has random rows only, as
    in `LoGra`. A row is no beginning of a longer one: the complement shrinks as fixed rows are added.
    """

    dim: int
    seed: int
    bases: Bases
    kind: str = field(default=KIND, init=False)

    def __post_init__(self) -> None:
        check_square(self.dim, LEAST_A_SIDE)

    def check(self, blocks: Sequence[Block]) -> None:
        """Raises UsageError where the bases are not those of these blocks at this `dim`."""
        for block in blocks:
            layout = row_layout(self.kind, self.dim, block.shape)
            for side, (k, d) in enumerate(zip(layout.kept, two_sides(block.shape), strict=True)):
                if k < d:
                    self._fixed(block, side, layout)

    def size(self, block: Block) -> int:
        """Length of a row: at most `dim`, less where a side of the block is shorter than `sqrt(dim)`."""
        return row_layout(self.kind, self.dim, block.shape).size

    def factor(self, block: Block, side: int) -> Float[np.ndarray, "p d"] | None:
        """The matrix of one side (0 output, 1 input), fixed rows first, or None for the identity."""
        layout, d = row_layout(self.kind, self.dim, block.shape), two_sides(block.shape)[side]
        p = layout.kept[side]
        if p == d:
            return None
        fixed = self._fixed(block, side, layout)
        r = len(fixed)
        draws = generator(self.seed, block.name, SIDES[side]).standard_normal((p - r, d))
        return np.concatenate([fixed, unbiased(draws - draws @ fixed.T @ fixed, d - r)])

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """`(L P_out^T)^T (R P_in^T)` of each example, flattened: the gradient itself is not formed."""
        return two_sided_rows(self, block, gradients)

    def _fixed(self, block: Block, side: int, layout: RowLayout) -> Float[np.ndarray, "r d"]:
        d, r = two_sides(block.shape)[side], layout.fixed[side]
        if r == 0:
            return np.zeros((0, d))
        if block.name not in self.bases.of:
            raise UsageError(
                f"The bases know {len(self.bases.of)} blocks, but not {block.name!r}. Make them with the same --blocks."
            )
        basis = self.bases.of[block.name][side]
        if basis.shape != (d, r):
            raise UsageError(
                f"The basis of {block.name!r} is {list(basis.shape)}, and --dim {self.dim} needs {[d, r]}. Make the "
                "bases with the same --dim and model."
            )
        return basis.T


def sides_basis(
    mean: Float[Tensor, "*_"], block: Block, dim: int, seed: int
) -> tuple[Float[np.ndarray, "d0 r0"], Float[np.ndarray, "d1 r1"]]:
    """Orthonormal top singular directions of a block's mean gradient, as many a side as `LowRank` fixes there."""
    sides, layout = two_sides(block.shape), row_layout(KIND, dim, block.shape)
    if len(sides) == 1:
        return np.zeros((sides[0], 0)), np.zeros((0, 0))
    m = mean.reshape(sides)
    found = []
    for side, matrix in enumerate((m, m.T)):
        r, d = layout.fixed[side], sides[side]
        start = generator(seed, block.name, SIDES[side], "basis").standard_normal((d, min(d, r + SPARE)))
        found.append(_top_left(matrix, start, r) if r < layout.kept[side] else np.zeros((d, 0)))
    return found[0], found[1]


def _top_left(m: Float[Tensor, "d e"], start: Float[np.ndarray, "d w"], r: int) -> Float[np.ndarray, "d r"]:
    """The r left singular directions with the largest singular values, in that order.

    QR gives orthonormal columns even where m has a smaller rank.
    """
    q = torch.from_numpy(start).to(m)
    for _ in range(STEPS):
        q = torch.linalg.qr(m @ (m.T @ torch.linalg.qr(q).Q)).Q
    _, _, turned = torch.linalg.svd(m.T @ q, full_matrices=False)
    # Orthonormal to float64's rounding, whatever the mean was summed in: unbiasedness rests on it.
    top: np.ndarray = np.linalg.qr((q @ turned[:r].T).double().cpu().numpy()).Q
    return top
