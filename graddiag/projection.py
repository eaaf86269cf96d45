"""How a gradient becomes a short row: kept whole, or multiplied from both sides with random matrices."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Dense, Gradients, Lookup, Outer
from graddiag.row_layout import row_layout, two_sides
from graddiag.signals import Block, digest_of

KINDS = ("exact", "logra", "sjlt", "dense", "lowrank")
READY = ("exact", "logra")
_PROBE = Block("probe", (48, 40))  # the block whose projection is hashed, so that two spaces can be told apart


@runtime_checkable
class Projector(Protocol):
    """Maps the gradient of one example in one block to a row of length `size(block)`.

    Law: over seeds, the expected inner product of two rows is the inner product of the two gradients.
    """

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        ...

    @property
    def dim(self) -> int:
        """Numbers per row and block, 0 where nothing is projected."""
        ...

    @property
    def seed(self) -> int:
        """Which random matrices."""
        ...

    def size(self, block: Block) -> int:
        """Length of a row."""
        ...

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """One row per example."""
        ...


@dataclass(frozen=True)
class Exact:
    """The gradient itself, flattened in the parameter's own shape and order."""

    kind: str = field(default="exact", init=False)
    dim: int = field(default=0, init=False)
    seed: int = field(default=0, init=False)

    def size(self, block: Block) -> int:
        """Number of elements of the block."""
        return math.prod(block.shape)

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """Each example's gradient, flattened, [b, elements of the block]."""
        if isinstance(gradients, Outer):
            return torch.bmm(gradients.left.transpose(1, 2), gradients.right).flatten(1)
        if isinstance(gradients, Lookup):
            n, whole = len(gradients.lengths), range(block.shape[0])
            return torch.stack([gradients.tile(i, whole).flatten() for i in range(n)])
        assert isinstance(gradients, Dense)
        return gradients.values.flatten(1)


@dataclass(frozen=True)
class LoGra:
    """Two-sided random projection `vec(P_out W P_in^T)` of a gradient W, of at most `dim` numbers (LoGra, arXiv
    2405.13954).

    Each factor has i.i.d. Gaussian entries of variance one over its number of rows, so that `E[P^T P]` is the
    identity and inner products are unbiased; a factor that would not shorten its side is the identity itself. A
    parameter of one dimension is projected from its one side; of three dimensions, the first two count as one. The
    entries come from a counter-based generator keyed by (seed, block, side): they do not depend on device, thread or
    order.
    """

    dim: int = 256
    seed: int = 0
    kind: str = field(default="logra", init=False)

    def __post_init__(self) -> None:
        if self.dim < 1 or math.isqrt(self.dim) ** 2 != self.dim:
            near = max(1, round(math.sqrt(max(self.dim, 1)))) ** 2
            raise UsageError(
                f"--dim {self.dim} is not a square, and a two-sided projection has sqrt(dim) a side. Use {near}."
            )

    def size(self, block: Block) -> int:
        """Length of a row: at most `dim`, less where a side of the block is shorter than `sqrt(dim)`."""
        return row_layout(self.kind, self.dim, block.shape).size

    def factor(self, block: Block, side: int) -> Float[np.ndarray, "p d"] | None:
        """The matrix of one side (0 output, 1 input), or None for the identity."""
        p, d = row_layout(self.kind, self.dim, block.shape).kept[side], two_sides(block.shape)[side]
        return None if p == d else _gaussian(self.seed, block.name, "output" if side == 0 else "input", p, d)

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """`(L P_out^T)^T (R P_in^T)` of each example, flattened: the gradient itself is not formed."""
        if isinstance(gradients, Outer):
            left = self._shorten(block, 0, gradients.left)
            return torch.bmm(left.transpose(1, 2), self._shorten(block, 1, gradients.right)).flatten(1)
        if isinstance(gradients, Lookup):
            left = self._chosen(block, gradients)
            rows = torch.bmm(left.transpose(1, 2), self._shorten(block, 1, gradients.output_grads)).flatten(1)
            return rows if gradients.head is None else rows + self.rows(block, gradients.head)
        assert isinstance(gradients, Dense)
        sides = two_sides(block.shape)
        values = gradients.values.reshape(-1, *sides)
        if len(sides) == 1:
            return self._shorten(block, 0, values)
        half = self._shorten(block, 1, values)  # [b, d_out, p_in]
        return self._shorten(block, 0, half.transpose(1, 2)).transpose(1, 2).flatten(1)

    def on(self, block: Block, side: int, like: Tensor) -> Float[Tensor, "d p"] | None:
        """The transposed factor on the device and in the dtype of `like`."""
        return _on_device(self, block, side, like.device, like.dtype)

    def _shorten(self, block: Block, side: int, x: Tensor) -> Tensor:
        factor = self.on(block, side, x)
        return x if factor is None else x @ factor

    def _chosen(self, block: Block, gradients: Lookup) -> Float[Tensor, "b t p"]:
        """The factor's rows of the ids, zero beyond an example's end."""
        grads = gradients.output_grads
        factor = self.on(block, 0, grads)
        if factor is None:
            return torch.nn.functional.one_hot(gradients.ids, block.shape[0]).to(grads.dtype)
        return factor[gradients.ids]


def make_projector(kind: str, dim: int, seed: int) -> Projector:
    """The projector of a kind. Raises UsageError for an unknown kind, or one that is not there yet."""
    if kind not in KINDS:
        raise UsageError(f"There is no projection {kind!r}. Allowed: {', '.join(KINDS)}.")
    if kind not in READY:
        raise UsageError(f"The projection {kind!r} is not there yet. Use {' or '.join(READY)}.")
    return Exact() if kind == "exact" else LoGra(dim, seed)


def probe_digest(projector: Projector) -> str:
    """A digest of what the projector does to a fixed gradient: equal digests, equal projections."""
    shape = _PROBE.shape
    left = torch.linspace(-1, 1, shape[0], dtype=torch.float64).reshape(1, 1, -1)
    right = torch.linspace(-1, 1, shape[1], dtype=torch.float64).reshape(1, 1, -1)
    row = projector.rows(_PROBE, Outer(left, right, (1,))).numpy()
    return digest_of([",".join(f"{x:.9g}" for x in row.ravel())])


@lru_cache(maxsize=4096)
def _on_device(p: LoGra, block: Block, side: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    factor = p.factor(block, side)
    return None if factor is None else torch.from_numpy(factor).T.contiguous().to(device=device, dtype=dtype)


def _gaussian(seed: int, name: str, side: str, p: int, d: int) -> Float[np.ndarray, "p d"]:
    key = hashlib.sha256(f"{seed}\0{name}\0{side}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.standard_normal((p, d)) / math.sqrt(p)
