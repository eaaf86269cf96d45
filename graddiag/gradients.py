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

from graddiag.ghost import Gram, GramCache, dot, forming_cost, inner, inner_cost, norm_cost

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

    def settle_difference(self, k: int, pair: tuple[int, int]) -> bool:
        """Sets `||g_l - g_r||^2` of pair k from norms and inner product; whether that cancels too many digits."""
        a, b = self.norm2[pair[0]], self.norm2[pair[1]]
        self.difference2[k] = a + b - 2 * self.inner[k]
        return bool(self.difference2[k] < _CANCELS**2 * torch.maximum(a, b))


@dataclass
class Workspace:
    """What is used again within a batch and from batch to batch: buffers (fresh memory of that size goes back to the
    system at each use), and the Gram matrices of the inputs seen last."""

    buffers: dict[tuple[tuple[int, int], int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)
    inputs: GramCache = field(default_factory=GramCache)

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
        workspace: Workspace,
    ) -> Products:
        """Each gradient is formed once, into a buffer; or not at all where nothing but norms and products of pairs is
        asked for and the ghost identity is cheaper."""
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
            if found.reference_dot is not None and reference is not None:
                found.reference_dot[i] = dot(w, reference)
            if total is not None and bool(torch.isfinite(found.norm2[i])):
                total.add_(w)
            return w

        must_form = reference is not None or total is not None
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
