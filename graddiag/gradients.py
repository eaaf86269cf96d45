"""Per-example gradients of one block in the form in which they arise, and their exact products without ever being
stored.

Three forms cover every parameter: a sum of outer products (linear weights), an array per example (biases, norms,
whatever was recomputed), and rows of a table (embeddings), the last with the outer products of a tied head added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CANCELS = 0.05  # ||d|| / ||g|| below which n_l + n_r - 2 <l, r> loses too many digits (as its inverse square)
_TILE_ROWS = 4096  # rows of a table that are formed at once where a difference must not cancel


@dataclass(frozen=True)
class Products:
    """Of one batch in one block: squared norms [b], `<g_l, g_r>` and `||g_l - g_r||^2` [pairs], `<g, reference>`
    [b]."""

    norm2: Float[Tensor, " b"]
    inner: Float[Tensor, " pairs"]
    difference2: Float[Tensor, " pairs"]
    reference_dot: Float[Tensor, " b"] | None


@dataclass
class Workspace:
    """Buffers that are used again for every example: fresh memory of this size goes back to the system at each use."""

    buffers: dict[tuple[tuple[int, int], int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def get(self, shape: tuple[int, int], slot: int, like: Tensor) -> Tensor:
        """A buffer with unspecified content."""
        key = (shape, slot, like.dtype, like.device)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self.buffers[key]


class Gradients(ABC):
    """The gradients of the examples of one batch in one block."""

    @abstractmethod
    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, ...] | None = None,
        total: Float[Tensor, ...] | None = None,
        workspace: Workspace,
    ) -> Products:
        """All products of the batch; `total`, if given, has the finite gradients added to it."""

    @abstractmethod
    def tile(self, i: int, rows: range) -> Float[Tensor, ...]:
        """Some rows of example i's gradient, formed, in float32 or better."""


def wide(x: Tensor) -> Tensor:
    """In float32 or better: products of half precision are formed there."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Outer(Gradients):
    """`left_i^T right_i` over an example's own rows: for a linear weight, its output gradients and its inputs.

    `at` says at which position of the batch a row stands; None: row t is position t.
    """

    left: Float[Tensor, "b t d0"]
    right: Float[Tensor, "b t d1"]
    lengths: tuple[int, ...]
    at: Int[Tensor, "b t"] | None = None

    @property
    def positions(self) -> Int[Tensor, "b t"]:
        """The position of each row, whether stated or not."""
        n, rows = self.left.shape[:2]
        return torch.arange(rows, device=self.left.device).expand(n, rows) if self.at is None else self.at

    def factors(self, i: int) -> tuple[Float[Tensor, "t d0"], Float[Tensor, "t d1"]]:
        """The two factors of example i."""
        return wide(self.left[i, : self.lengths[i]]), wide(self.right[i, : self.lengths[i]])

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
        workspace: Workspace,
    ) -> Products:
        """Each gradient is formed once, into a buffer; a norm alone takes
        `||L^T R||^2 = sum (L L^T) * (R R^T)` where that is cheaper."""
        n, like = len(self.lengths), wide(self.left[:0])
        norm2 = like.new_zeros(n)
        dots = None if reference is None else like.new_zeros(n)
        inner, difference2 = like.new_zeros(len(pairs)), like.new_zeros(len(pairs))

        def one(i: int, slot: int) -> Tensor:
            left, right = self.factors(i)
            w = torch.mm(left.T, right, out=workspace.get((left.shape[1], right.shape[1]), slot, left))
            norm2[i] = _dot(w, w)
            if dots is not None and reference is not None:
                dots[i] = _dot(w, reference)
            if total is not None and bool(torch.isfinite(norm2[i])):
                total.add_(w)
            return w

        paired = {i for pair in pairs for i in pair}
        for k, (i, j) in enumerate(pairs):
            a, b = one(i, 0), one(j, 1)
            inner[k] = _dot(a, b)
            difference2[k] = norm2[i] + norm2[j] - 2 * inner[k]
            if difference2[k] < _CANCELS**2 * torch.maximum(norm2[i], norm2[j]):
                difference2[k] = _dot(a.sub_(b), a)
        for i in set(range(n)) - paired:
            if reference is None and total is None and self._ghost_is_cheaper(i):
                left, right = self.factors(i)
                norm2[i] = ((left @ left.T) * (right @ right.T)).sum().clamp(min=0)
            else:
                one(i, 0)
        return Products(norm2, inner, difference2, dots)

    def _ghost_is_cheaper(self, i: int) -> bool:
        d0, d1 = self.left.shape[2], self.right.shape[2]
        return self.lengths[i] * (d0 + d1) < d0 * d1


@dataclass(frozen=True)
class Dense(Gradients):
    """One array per example: biases, norms, and parameters whose module was run again example by example."""

    values: Float[Tensor, b * shape]

    def tile(self, i: int, rows: range) -> Float[Tensor, ...]:
        """Some rows of example i's gradient."""
        return wide(self.values[i, rows.start : rows.stop])

    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "*shape"] | None = None,
        total: Float[Tensor, "*shape"] | None = None,
        workspace: Workspace,
    ) -> Products:
        """Products of the arrays."""
        flat = wide(self.values).flatten(1)
        norm2 = flat.square().sum(1)
        left, right = flat[[i for i, _ in pairs]], flat[[j for _, j in pairs]]
        if total is not None:
            total.add_(flat[torch.isfinite(norm2)].sum(0).reshape(total.shape))
        dots = None if reference is None else flat @ reference.flatten().to(flat.dtype)
        return Products(norm2, (left * right).sum(1), (left - right).square().sum(1), dots)


@dataclass(frozen=True)
class Lookup(Gradients):
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
        workspace: Workspace,
    ) -> Products:
        """Products without the table, which is as long as the vocabulary; a difference that would cancel, in tiles."""
        n, like = len(self.lengths), wide(self.output_grads[:0])
        norm2 = torch.stack([self.inner(i, i) for i in range(n)]).clamp(min=0)
        inner, difference2 = like.new_zeros(len(pairs)), like.new_zeros(len(pairs))
        for k, (i, j) in enumerate(pairs):
            inner[k] = self.inner(i, j)
            difference2[k] = norm2[i] + norm2[j] - 2 * inner[k]
            if difference2[k] < _CANCELS**2 * torch.maximum(norm2[i], norm2[j]):
                difference2[k] = sum((self.tile(i, a) - self.tile(j, a)).square().sum() for a in self._tiles())
        dots = None
        if reference is not None:
            dots = torch.stack([self._dot(i, reference) for i in range(n)])
        if total is not None:
            for i in range(n):
                if bool(torch.isfinite(norm2[i])):
                    self._add(i, total)
        return Products(norm2, inner, difference2, dots)

    def inner(self, i: int, j: int) -> Tensor:
        """The exact inner product of two examples' gradients."""
        (ids_i, e_i), (ids_j, e_j) = self.looked_up(i), self.looked_up(j)
        value = ((ids_i.unsqueeze(1) == ids_j).to(e_i.dtype) * (e_i @ e_j.T)).sum()
        if self.head is None:
            return value
        (left_i, right_i), (left_j, right_j) = self.head.factors(i), self.head.factors(j)
        value = value + ((left_i @ left_j.T) * (right_i @ right_j.T)).sum()
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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
