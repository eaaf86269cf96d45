"""Which inner products do rows have with each other: computed once per block for a whole report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from graddiag.errors import UsageError
from graddiag.signals import Signals
from graddiag.tiles import columns, fits

COLUMNS = 8_192  # converted to double precision at a time: unprojected rows of a large block would not fit twice
MEMORY = 512 * 2**20  # bytes; 200 blocks of 570 rows, fewer than the rows themselves take at 2,048 numbers each


def gram(tables: Sequence[Signals], block: str) -> Float[np.ndarray, "m m"]:
    """Inner products of the projected gradients in one block, of the finite rows of the tables in order.

    Takes `8 m^2` bytes, twice that for rows of more than 8,192 numbers, and `8 m` for each of so many columns.
    """
    rows = columns(tables, block, 0, COLUMNS)
    out = rows @ rows.T
    for start in range(COLUMNS, tables[0].gradients[block].shape[1], COLUMNS):
        rows = columns(tables, block, start, start + COLUMNS)
        out += rows @ rows.T
    return np.asarray(out)


@dataclass(frozen=True)
class Grams:
    """Inner products of the finite rows of several tables in order, all with all: of all blocks as one vector
    (`total`, [m, m]), and of single blocks.

    `kept` holds those of as many blocks as fit into the memory that was allowed, `8 m^2` bytes each; those of the
    others are made again whenever they are asked for. Whatever the number of blocks, beside that memory up to `32 m^2`
    bytes and the rows of one block are held: 0.3 GB for 3,000 rows.
    """

    tables: tuple[Signals, ...]
    total: Float[np.ndarray, "m m"]
    kept: Mapping[str, Float[np.ndarray, "m m"]]

    @staticmethod
    def of(tables: Sequence[Signals], *, memory: int = MEMORY) -> Grams:
        """Those of tables in one space; `memory` in bytes."""
        m = sum(int(t.finite.sum()) for t in tables)
        total = np.zeros((m, m))
        kept: dict[str, Float[np.ndarray, "m m"]] = {}
        for block in tables[0].blocks:
            products = gram(tables, block)
            total += products
            if (len(kept) + 1) * products.nbytes <= memory:
                products.setflags(write=False)
                kept[block] = products
        total.setflags(write=False)
        return Grams(tuple(tables), total, kept)

    @staticmethod
    def that_fit(tables: Sequence[Signals]) -> Grams | None:
        """Those of the tables; None where there are too many rows: what needs them then goes through tiles."""
        return Grams.of(tables) if fits(sum(int(t.finite.sum()) for t in tables)) else None

    def block(self, tables: Sequence[Signals], block: str) -> Float[np.ndarray, "a a"]:
        """What `gram` gives for some of these tables. Raises UsageError for a table that is not here."""
        at = self._at(tables)
        return self._part(self.kept[block], at) if block in self.kept else gram(tables, block)

    def whole(self, tables: Sequence[Signals]) -> Float[np.ndarray, "a a"]:
        """The sum over blocks, of some of these tables. Raises UsageError for a table that is not here."""
        return self._part(self.total, self._at(tables))

    def _at(self, tables: Sequence[Signals]) -> list[slice]:
        """Where the rows of each stand; a table is known by identity."""
        ends = np.cumsum([int(t.finite.sum()) for t in self.tables]).tolist()
        where = {id(t): slice(a, b) for t, a, b in zip(self.tables, [0, *ends], ends, strict=False)}
        missing = [t.provenance.data for t in tables if id(t) not in where]
        if missing:
            names = ", ".join(t.provenance.data for t in self.tables)
            raise UsageError(
                f"These products are of the rows of {names}, not of {', '.join(missing)}. Make them with "
                "Grams.of from the very tables that are analysed, or leave them out."
            )
        return [where[id(t)] for t in tables]

    @staticmethod
    def _part(matrix: Float[np.ndarray, "m m"], at: list[slice]) -> Float[np.ndarray, "a a"]:
        if all(a.stop == b.start for a, b in pairwise(at)):  # neighbours: no copy
            at = [slice(at[0].start, at[-1].stop)]
            return matrix[at[0], at[0]]
        return np.block([[matrix[a, b] for b in at] for a in at])


def block_products(tables: Sequence[Signals], block: str, known: Grams | None) -> Float[np.ndarray, "m m"]:
    """`gram` of the tables in one block, from what is known already if anything is."""
    return gram(tables, block) if known is None else known.block(tables, block)


def whole_products(tables: Sequence[Signals], known: Grams | None) -> Float[np.ndarray, "m m"]:
    """`gram` of the tables, summed over blocks; never more than one block's is held beside the sum."""
    return Grams.of(tables, memory=0).total if known is None else known.whole(tables)
