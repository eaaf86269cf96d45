"""Two random sides: the cheapest projection of outer products, since no gradient is formed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients import Gradients
from graddiag.projection._draws import generator, unbiased
from graddiag.projection._two_sided import check_square, on_device, two_sided_rows
from graddiag.row_layout import row_layout, two_sides
from graddiag.signals import Block

SIDES = ("output", "input")


@dataclass(frozen=True)
class LoGra:
    """Two-sided random projection `vec(P_out W P_in^T)` of a gradient W, of at most `dim` numbers (LoGra, arXiv
    2405.13954).

    Each factor has i.i.d. Gaussian entries of variance one over its number of rows, so that `E[P^T P]` is the
    identity and inner products are unbiased; where the rows are a sizeable share of the side they are orthonormal, and
    a factor that would not shorten its side is the identity itself. A parameter of one dimension is projected from
    its one side; of three dimensions, the first two count as one. The entries come from a counter-based generator
    keyed by (seed, block, side): they do not depend on device, thread or order. A longer factor begins with the rows
    of a shorter one, up to scale, where both are i.i.d. or both orthonormal.
    """

    dim: int = 256
    seed: int = 0
    kind: str = field(default="logra", init=False)

    def __post_init__(self) -> None:
        check_square(self.dim)

    def size(self, block: Block) -> int:
        """Length of a row: at most `dim`, less where a side of the block is shorter than `sqrt(dim)`."""
        return row_layout(self.kind, self.dim, block.shape).size

    def factor(self, block: Block, side: int) -> Float[np.ndarray, "p d"] | None:
        """The matrix of one side (0 output, 1 input), or None for the identity."""
        p, d = row_layout(self.kind, self.dim, block.shape).kept[side], two_sides(block.shape)[side]
        if p == d:
            return None
        return unbiased(generator(self.seed, block.name, SIDES[side]).standard_normal((p, d)), d)

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """`(L P_out^T)^T (R P_in^T)` of each example, flattened: the gradient itself is not formed."""
        return two_sided_rows(self, block, gradients)

    def on(self, block: Block, side: int, like: Tensor) -> Float[Tensor, "d p"] | None:
        """The transposed factor on the device and in the dtype of `like`."""
        return on_device(self, block, side, like.device, like.dtype)
