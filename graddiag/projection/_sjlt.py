"""A sparse one-sided projection: as fine as a dense one, for a few additions per number of the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Gradients
from graddiag.projection._draws import philox
from graddiag.projection._exact import Exact
from graddiag.projection._one_sided import Map, MapOf, matrix_shape, one_sided_rows, whole_map
from graddiag.row_layout import row_layout
from graddiag.signals import Block

# Non-zeros per number of the gradient. The variance is the same for any (see `Sjlt`), but not the tail: that two large
# numbers fall together has probability s / k and then costs 1 / s, so the error's excess kurtosis falls as 1 / s^2. A
# block's gradient has so many numbers that its error is normal with one, and each more costs as much again.
NONZEROS = 1
TILE = 2**20  # numbers of the gradient whose places are held at once: 2 MiB of places
HELD = 2**26  # numbers of a block whose places may all be held at once, as indices: half a GiB
_DRAWS_PER_TICK = 8  # numbers of 32 bits that one step of the generator's counter gives
KEPT_TILES = 256  # half a GiB of places at most; models with more of them draw them again for every batch


@dataclass(frozen=True)
class Sjlt:
    """Sparse Johnson-Lindenstrauss projection of the flattened gradient to `dim` numbers (Kane & Nelson 2014, arXiv
    1012.1577, their block construction).

    The places are s groups of k / s; every number of the gradient goes to one random place of each group with a random
    sign, times 1 / sqrt(s). s is the largest divisor of k up to `most_nonzeros`; with s = 1 this is CountSketch. Signs
    are independent, hence inner products unbiased, and two numbers meet in a group with probability s / k. So each of
    the s independent groups has the variance `(s / k) V` with `V = |g|^2 |h|^2 + <g, h>^2 - 2 sum_i g_i^2 h_i^2`, and
    their mean has `V / k`, whatever s.

    Places come from a counter-based generator keyed by (seed, block, row of the block): they do not depend on device,
    thread or order, and any row's can be had alone. A row is no beginning of a longer one, since the number of places
    decides where a number goes; with twice the places (and the same s) each of them is split in two, whose sum it is.
    """

    dim: int = 256
    seed: int = 0
    most_nonzeros: int = NONZEROS
    kind: str = field(default="sjlt", init=False)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UsageError(f"--dim {self.dim} leaves nothing of a gradient. Use 1 or more.")

    @property
    def nonzeros(self) -> int:
        """Groups of places, s."""
        return max(s for s in range(1, self.most_nonzeros + 1) if self.dim % s == 0)

    def size(self, block: Block) -> int:
        """Length of a row: `dim`, or the number of elements of a block that has no more."""
        return row_layout(self.kind, self.dim, block.shape).size

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """One row per example; a tile of one example's gradient is formed at a time."""
        if row_layout(self.kind, self.dim, block.shape).is_whole:
            return Exact().rows(block, gradients)
        return one_sided_rows(block, gradients, self.dim, self._map_of(block), tile_rows=_tile_rows(block))

    def of_formed(self, block: Block, like: Tensor) -> Map | None:
        """What makes a row of a gradient that is formed already; None where the row is the gradient itself, or so many
        places would be held at once that forming it again, tile by tile, is better."""
        if row_layout(self.kind, self.dim, block.shape).is_whole or math.prod(block.shape) > HELD:
            return None
        return whole_map(block, self.dim, self._map_of(block), like, tile_rows=_tile_rows(block))

    def _map_of(self, block: Block) -> MapOf:
        width = matrix_shape(block)[1]

        def map_of(rows: Sequence[int], like: Tensor) -> Map:
            places = torch.from_numpy(_places(self, block.name, _key(rows), width)).to(like.device).long()
            return lambda tile: self._added(places, tile.flatten())

        return map_of

    def _added(self, places: Int[Tensor, "s d"], x: Float[Tensor, " d"]) -> Float[Tensor, " k"]:
        """An even place takes what counts with +, the odd one after it what counts with -."""
        s = len(places)
        sums = x.new_zeros(s, 2 * self.dim // s)
        for group, at in zip(sums, places, strict=True):
            group.scatter_add_(0, at, x)
        return ((sums[:, 0::2] - sums[:, 1::2]) / math.sqrt(s)).flatten()


def _tile_rows(block: Block) -> int:
    return max(1, TILE // matrix_shape(block)[1])


def _key(rows: Sequence[int]) -> Sequence[int]:
    return rows if isinstance(rows, range) else tuple(rows)


@lru_cache(maxsize=KEPT_TILES)
def _places(p: Sjlt, name: str, rows: Sequence[int], width: int) -> Int[np.ndarray, "s d"]:
    """Twice the place within its group, plus the sign, of each number of these rows in each group."""
    s, groups = p.nonzeros, p.dim // p.nonzeros
    ticks = math.ceil(width * s / _DRAWS_PER_TICK)
    raw = np.concatenate([philox(p.seed, name, "sjlt", at=a * ticks).random_raw(4 * n * ticks) for a, n in _runs(rows)])
    bits = raw.view(np.uint32).reshape(len(rows), -1)[:, : width * s].reshape(-1, s).T  # 32 bits a number and group
    at = ((bits >> np.uint32(1)).astype(np.uint64) * np.uint64(groups)) >> np.uint64(31)
    dtype = np.dtype(np.int16 if 2 * groups <= np.iinfo(np.int16).max else np.int32)
    return np.ascontiguousarray((at * np.uint64(2) + (bits & np.uint32(1))).astype(dtype))


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Rows that follow one another, as where they begin and how many they are: each is drawn at once."""
    if isinstance(rows, range):
        return [(rows.start, len(rows))]
    return [(r, 1) for r in rows]
