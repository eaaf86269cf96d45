"""Rows of a table: embeddings, with the outer products of a tied head added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graddiag.ghost import dot, inner
from graddiag.gradients._base import Formable, Formed, Products, Workspace, wide
from graddiag.gradients._outer import Outer

_TILE_ROWS = 4096  # rows of a table that are formed at once where a difference must not cancel


@dataclass(frozen=True)
class Lookup(Formable):
    """Rows of a table: `output_grads` are added to the rows `ids`; a tied head adds its outer products `head`.

    With E the rows looked up and H the head's part, `<g_i, g_j>` has four terms: equal ids in E_i and E_j; the ghost
    product of H_i and H_j; and twice `sum over t in i, s in j of left_j[s, id_it] <grad_it, right_js>`. `at` as in
    `Outer`.
    """

    ids: Int[Tensor, "b t"]
    output_grads: Float[Tensor, "b t d"]
    lengths: tuple[int, ...]
    rows: int
    head: Outer | None = None
    at: Int[Tensor, "b t"] | None = None

    def looked_up(self, i: int) -> tuple[Int[Tensor, " t"], Float[Tensor, "t d"]]:
        """Ids and output gradients of example i."""
        return self.ids[i, : self.lengths[i]], wide(self.output_grads[i, : self.lengths[i]])

    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "rows d"] | None = None,
        total: Float[Tensor, "rows d"] | None = None,
        formed: Formed | None = None,
        workspace: Workspace,
    ) -> Products:
        """Products without the table, which is as long as the vocabulary; a difference that would cancel, in tiles."""
        n, like = len(self.lengths), wide(self.output_grads[:0])
        norm2 = torch.stack([self.inner(i, i) for i in range(n)]).clamp(min=0)
        dots = None if reference is None else torch.stack([self._dot(i, reference) for i in range(n)])
        found = Products(norm2, like.new_zeros(len(pairs)), like.new_zeros(len(pairs)), dots)
        for k, (i, j) in enumerate(pairs):
            found.inner[k] = self.inner(i, j)
            if found.settle_difference(k, (i, j)):
                found.difference2[k] = sum((self.tile(i, a) - self.tile(j, a)).square().sum() for a in self._tiles())
        if total is not None:
            for i in range(n):
                if bool(torch.isfinite(norm2[i])):
                    self._add(i, total)
        return found

    def inner(self, i: int, j: int) -> Tensor:
        """The exact inner product of two examples' gradients."""
        (ids_i, e_i), (ids_j, e_j) = self.looked_up(i), self.looked_up(j)
        value = dot((ids_i.unsqueeze(1) == ids_j).to(e_i.dtype), e_i @ e_j.T)
        if self.head is None:
            return value
        (left_i, right_i), (left_j, right_j) = self.head.factors(i), self.head.factors(j)
        value = value + inner((left_i, right_i), (left_j, right_j))
        value = value + (left_j[:, ids_i] * (right_j @ e_i.T)).sum()
        return value + (left_i[:, ids_j] * (right_i @ e_j.T)).sum()

    def tile(self, i: int, rows: range) -> Float[Tensor, "rows d"]:
        """Some rows of example i's gradient, formed."""
        ids, grads = self.looked_up(i)
        out = grads.new_zeros(len(rows), grads.shape[1])
        inside = (ids >= rows.start) & (ids < rows.stop)
        out.index_add_(0, ids[inside] - rows.start, grads[inside])
        if self.head is not None:
            left, right = self.head.factors(i)
            out.addmm_(left[:, rows.start : rows.stop].T, right)
        return out

    def _tiles(self) -> list[range]:
        return [range(a, min(a + _TILE_ROWS, self.rows)) for a in range(0, self.rows, _TILE_ROWS)]

    def _dot(self, i: int, reference: Tensor) -> Tensor:
        ids, grads = self.looked_up(i)
        value = (reference[ids] * grads).sum()
        if self.head is not None:
            left, right = self.head.factors(i)
            value = value + ((left @ reference) * right).sum()
        return value

    def _add(self, i: int, total: Tensor) -> None:
        ids, grads = self.looked_up(i)
        total.index_add_(0, ids, grads)
        if self.head is not None:
            left, right = self.head.factors(i)
            total.addmm_(left.T, right)
