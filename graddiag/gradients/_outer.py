"""A sum of outer products: linear weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graddiag.ghost import Gram, dot, forming_cost, inner, inner_cost, norm_cost
from graddiag.gradients._base import Formable, Formed, Products, Workspace, wide


@dataclass(frozen=True)
class Outer(Formable):
    """`left_i^T right_i` over an example's own rows: for a linear weight, its output gradients and its inputs.

    The rows of example i are `starts[i]` to `lengths[i]`; by default they start at 0. `at` says at which position of
    the batch a row stands; None: row t is position t.
    """

    left: Float[Tensor, "b t d0"]
    right: Float[Tensor, "b t d1"]
    lengths: tuple[int, ...]
    starts: tuple[int, ...] = ()
    at: Int[Tensor, "b t"] | None = None

    @property
    def positions(self) -> Int[Tensor, "b t"]:
        """The position of each row, whether stated or not."""
        n, rows = self.left.shape[:2]
        return torch.arange(rows, device=self.left.device).expand(n, rows) if self.at is None else self.at

    def factors(self, i: int) -> tuple[Float[Tensor, "t d0"], Float[Tensor, "t d1"]]:
        """The two factors of example i."""
        _, start, stop = self._rows(i)
        return wide(self.left[i, start:stop]), wide(self.right[i, start:stop])

    def tile(self, i: int, rows: range) -> Float[Tensor, "rows d1"]:
        """Some rows of example i's gradient, formed."""
        left, right = self.factors(i)
        return left[:, rows.start : rows.stop].T @ right

    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "d0 d1"] | None = None,
        total: Float[Tensor, "d0 d1"] | None = None,
        formed: Formed | None = None,
        workspace: Workspace,
    ) -> Products:
        """Each gradient is formed once, into a buffer, for all that needs it; or not at all where nothing but norms and
        products of pairs is asked for and the ghost identity is cheaper."""
        n, like = len(self.lengths), wide(self.left[:0])
        found = Products(
            like.new_zeros(n),
            like.new_zeros(len(pairs)),
            like.new_zeros(len(pairs)),
            None if reference is None else like.new_zeros(n),
        )

        def one(i: int, slot: int) -> Tensor:
            w = self.formed(i, workspace, slot)
            found.norm2[i] = dot(w, w)
            if formed is not None:
                formed(i, w)
            if found.reference_dot is not None and reference is not None:
                found.reference_dot[i] = dot(w, reference)
            if total is not None and bool(torch.isfinite(found.norm2[i])):
                total.add_(w)
            return w

        must_form = any(x is not None for x in (reference, total, formed))
        for k, (i, j) in enumerate(pairs):
            if must_form or not self._pair_prefers_ghost(i, j, workspace):
                self._pair(found, k, (i, j), one(i, 0), one(j, 1))
            else:
                self._ghost_pair(found, k, (i, j), workspace)
        for i in set(range(n)) - {i for pair in pairs for i in pair}:
            if must_form or not self._norm_prefers_ghost(i, workspace):
                one(i, 0)
            else:
                found.norm2[i] = self._ghost_norm2(i, workspace)
        return found

    def formed(self, i: int, workspace: Workspace, slot: int = 0) -> Float[Tensor, "d0 d1"]:
        """The gradient of example i, in a buffer that the next one of the same slot overwrites."""
        left, right = self.factors(i)
        return torch.mm(left.T, right, out=workspace.get((left.shape[1], right.shape[1]), slot, left))

    def _rows(self, i: int) -> tuple[int, int, int]:
        return i, self.starts[i] if self.starts else 0, self.lengths[i]

    def _pair(self, found: Products, k: int, pair: tuple[int, int], a: Tensor, b: Tensor) -> None:
        found.inner[k] = dot(a, b)
        if found.settle_difference(k, pair):
            found.difference2[k] = dot(a.sub_(b), a)

    def _ghost_pair(self, found: Products, k: int, pair: tuple[int, int], workspace: Workspace) -> None:
        for i in pair:
            found.norm2[i] = self._ghost_norm2(i, workspace)
        found.inner[k] = inner(self.factors(pair[0]), self.factors(pair[1]))
        if found.settle_difference(k, pair):
            a, b = self.formed(pair[0], workspace, 0), self.formed(pair[1], workspace, 1)
            found.difference2[k] = dot(a.sub_(b), a)

    def _ghost_norm2(self, i: int, workspace: Workspace) -> Tensor:
        left, right = self.factors(i)
        if not len(left):
            return left.new_zeros(())
        return Gram.of(left).times(workspace.inputs.of(self.right, self._rows(i), right)).clamp(min=0)

    def _norm_cost(self, i: int, workspace: Workspace) -> float:
        d0, d1 = self.left.shape[2], self.right.shape[2]
        _, start, stop = self._rows(i)
        known = workspace.inputs.knows(self.right)
        return norm_cost(stop - start, d0, 0 if known else d1, wide(self.left[:0]))

    def _norm_prefers_ghost(self, i: int, workspace: Workspace) -> bool:
        _, start, stop = self._rows(i)
        return self._norm_cost(i, workspace) < forming_cost(stop - start, self.left.shape[2], self.right.shape[2])

    def _pair_prefers_ghost(self, i: int, j: int, workspace: Workspace) -> bool:
        d0, d1 = self.left.shape[2], self.right.shape[2]
        n_i, n_j = (stop - start for _, start, stop in (self._rows(i), self._rows(j)))
        ghost = (
            self._norm_cost(i, workspace)
            + self._norm_cost(j, workspace)
            + inner_cost(n_i, n_j, d0, d1, wide(self.left[:0]))
        )
        return ghost < forming_cost(n_i, d0, d1) + forming_cost(n_j, d0, d1)
