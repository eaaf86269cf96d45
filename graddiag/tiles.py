"""Rows of some tables, all of them but few of their places at a time: what adds over places needs no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.signals import Signals

WHOLE = 2**30  # bytes that square matrices of all rows may take: four of 5,792 rows
TILE = 2**26  # bytes of one tile in double precision, of which a few are held at a time


def fits(n: int) -> bool:
    """Whether square matrices of n rows are held whole: four of them in double precision, `32 n^2` bytes."""
    return 32 * n * n <= WHOLE


def columns(tables: Sequence[Signals], block: str, start: int, stop: int) -> Float[np.ndarray, "m k"]:
    """Some places of the finite rows of the tables in order, in double precision."""
    parts = [t.gradients[block][:, start:stop][t.finite] for t in tables]
    out = np.empty((sum(len(p) for p in parts), parts[0].shape[1]))
    return np.concatenate(parts, out=out)


@dataclass(frozen=True)
class Tiles:
    """The finite rows of tables in one space, in order: [m, k] for some places of each of some blocks in turn."""

    tables: tuple[Signals, ...]
    blocks: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        """Finite rows of all tables."""
        return sum(int(t.finite.sum()) for t in self.tables)

    def __iter__(self) -> Iterator[Float[np.ndarray, "m k"]]:
        width = max(TILE // (8 * max(self.n_rows, 1)), 1)
        for block in self.blocks:
            size = self.tables[0].gradients[block].shape[1]
            for start in range(0, size, width):
                yield columns(self.tables, block, start, start + width)
