"""Products of gradients `L^T R` that are never formed, and when that is cheaper than forming them.

`<L_i^T R_i, L_j^T R_j> = sum (L_i L_j^T) * (R_i R_j^T)`: with T_i and T_j rows of width d0 and d1 it takes
T_i T_j (d0 + d1) products, forming takes T d0 d1 for each of the two. Of a norm's two symmetric matrices only the tiles
on and above the diagonal are computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

TILES = 4  # of a symmetric matrix, a side, at most
_NARROWEST = 512  # rows of a strip: on several threads, narrower products cost more than the half that they save
_TRIAL = (256, 1024, 1024)  # rows, d0, d1 of the trial: where both ways cost about the same
_TRIAL_ROUNDS = 5


@dataclass(frozen=True)
class Gram:
    """`X X^T` of the rows of a matrix [t, d]: strips of rows, each from its diagonal tile to the right end."""

    strips: tuple[Float[Tensor, "s w"], ...]

    @staticmethod
    def of(x: Float[Tensor, "t d"]) -> Gram:
        """The strips of a matrix."""
        step = max(1, -(-len(x) // strips(len(x))))
        return Gram(tuple(x[a : a + step] @ x[a:].T for a in range(0, len(x), step)))

    def trimmed(self) -> Gram:
        """The same with each strip cut in four: less of what is below the diagonal is kept, five eighths in all."""
        strips = self.strips
        for _ in range(2):
            strips = tuple(part for strip in strips for part in _cut(strip))
        return Gram(strips)

    def times(self, other: Gram) -> Tensor:
        """The sum over all entries of the product of two whole matrices: what is above the diagonal counts twice."""
        total = self.strips[0].new_zeros(())
        for a, b in zip(self.strips, other.strips, strict=True):
            n = len(a)
            total = total + 2 * dot(a, b) - dot(a[:, :n], b[:, :n])
        return total


def _cut(strip: Float[Tensor, "s w"]) -> tuple[Tensor, ...]:
    """A strip's upper and lower half, each from its diagonal to the right end."""
    n = len(strip) // 2
    return (strip[:n].clone(), strip[n:, n:].clone()) if n else (strip,)


@dataclass
class GramCache:
    """Grams of the inputs seen last: q, k and v have the same, and so have gate and up.

    The tensor is kept with its Gram matrices, so that its memory cannot be given to another one meanwhile.
    """

    whole: Tensor | None = None
    version: int = 0
    grams: dict[tuple[int, int, int], Gram] = field(default_factory=dict)

    def knows(self, whole: Float[Tensor, "b t d"]) -> bool:
        """Whether the Gram matrices at hand are those of this tensor."""
        return self.whole is not None and same(self.whole, whole) and self.version == whole._version

    def of(self, whole: Float[Tensor, "b t d"], rows: tuple[int, int, int], x: Float[Tensor, "t d"]) -> Gram:
        """The Gram matrix of `x`, which are the rows (example, first, last) of `whole`."""
        if not self.knows(whole):
            self.whole, self.version, self.grams = whole, whole._version, {}
        if rows not in self.grams:
            self.grams[rows] = Gram.of(x)
        return self.grams[rows]


def strips(rows: int) -> int:
    """How many strips a symmetric matrix of so many rows is computed in."""
    return min(TILES, max(1, rows // _NARROWEST))


def share(rows: int) -> float:
    """The part of a symmetric matrix that is computed."""
    return (strips(rows) + 1) / (2 * strips(rows))


def inner(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """The inner product of two gradients, from their factors."""
    return dot(a[0] @ b[0].T, a[1] @ b[1].T)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the product of two arrays of one shape."""
    return torch.dot(a.flatten(), b.flatten())


def forming_cost(rows: int, d0: int, d1: int) -> float:
    """Products that forming a gradient of `rows` rows takes."""
    return rows * d0 * d1


def norm_cost(rows: int, d0: int, d1: int, like: Tensor) -> float:
    """What a squared norm without forming costs, in units of `forming_cost`; d1 = 0 where that Gram matrix is known."""
    return price(like.device, like.dtype) * share(rows) * rows**2 * (d0 + d1)


def inner_cost(rows_a: int, rows_b: int, d0: int, d1: int, like: Tensor) -> float:
    """What an inner product without forming costs, in units of `forming_cost`."""
    return price(like.device, like.dtype) * rows_a * rows_b * (d0 + d1)


@lru_cache(maxsize=16)
def price(device: torch.device, dtype: torch.dtype) -> float:
    """How much longer one product of a ghost matrix takes than one of forming: measured once per process and device."""
    t, d0, d1 = _TRIAL
    left, right = (torch.full((t, d), 0.5, device=device, dtype=dtype) for d in (d0, d1))
    out = torch.empty(d0, d1, device=device, dtype=dtype)
    ghost = _best(lambda: Gram.of(left).times(Gram.of(right)), device) / (share(t) * t * t * (d0 + d1))
    return ghost / (_best(lambda: torch.mm(left.T, right, out=out), device) / (t * d0 * d1))


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs: what other processes take away makes a run longer, never shorter."""
    seconds = []
    for _ in range(_TRIAL_ROUNDS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that are both still there are the same numbers at the same place."""
    return _place(a) == _place(b)


def _place(x: Tensor) -> tuple[object, ...]:
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device
