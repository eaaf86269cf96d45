"""Outer products whose right factor is no longer there: what norms and a two-sided projection need of it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.ghost import Gram
from graddiag.gradients._base import Formed, Gradients, Products, Workspace, wide


@dataclass(frozen=True)
class Shortened:
    """The right factor R of a batch's outer products: the Gram matrix of each example's rows, and `R P^T`."""

    grams: tuple[Gram, ...]
    rows: Float[Tensor, "b t p"]


@dataclass(frozen=True)
class Condensed(Gradients):
    """`left_i^T R_i` over an example's own rows, R known only by its Gram matrices and its projection.

    Norms are exact all the same, by the ghost identity; other products are not to be had.
    """

    left: Float[Tensor, "b t d0"]
    right: Shortened
    lengths: tuple[int, ...]

    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "d0 d1"] | None = None,
        total: Float[Tensor, "d0 d1"] | None = None,
        formed: Formed | None = None,
        workspace: Workspace,
    ) -> Products:
        """Norms only."""
        assert (reference, total, *pairs) == (None, None), "what such products need was let go"
        norms = [self._norm2(i) for i in range(len(self.lengths))]
        nothing = norms[0].new_zeros(0)
        return Products(torch.stack(norms), nothing, nothing, None)

    def _norm2(self, i: int) -> Tensor:
        left = wide(self.left[i, : self.lengths[i]])
        return Gram.of(left).trimmed().times(self.right.grams[i]).clamp(min=0)
