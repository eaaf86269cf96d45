"""Do the rows of a comparison and their analysis fit into memory? Said before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import psutil

from graddiag.errors import ResourceError
from graddiag.grams import MEMORY
from graddiag.permutations import DRAWS
from graddiag.tiles import TILE, fits

_FLOAT, _DOUBLE = 4, 8  # bytes
_COPIES = 2  # of the largest table, while its shards are put together
_ARRAYS = 6  # of one block's rows in double precision: pairs subtracted, squared, summed by cluster
_TILES = 12  # held at a time, with what is made of them
_NULLS = 6  # of a block: flips, partners and labels, and as many that are standardised


@dataclass(frozen=True)
class Size:
    """How large a comparison is: rows of each set by role, numbers of a row in all blocks and in the largest one."""

    rows: Mapping[str, int]
    numbers: int
    largest: int
    blocks: int

    @property
    def table_bytes(self) -> int:
        """Of all rows, in single precision."""
        return _FLOAT * self.numbers * sum(self.rows.values())

    @property
    def analysis_bytes(self) -> int:
        """Of what the analysis takes beside the rows, at most: linear in the rows but for matrices of up to 1.5 GiB."""
        left, right = (self.rows.get(side, 0) for side in ("left", "right"))
        both = left + right
        some = both + self.rows.get("safety", 0)
        matrices = 32 * some**2 + MEMORY if fits(some) else 32 * both**2 if fits(both) else 0
        reading = _COPIES * _FLOAT * self.numbers * max(self.rows.values(), default=0)
        block = _ARRAYS * _DOUBLE * self.largest * both
        permutations = DRAWS * (_FLOAT * min(left, right) + 2 * both + _NULLS * _DOUBLE * self.blocks)
        return max(reading, block + matrices + _TILES * TILE + permutations)

    @property
    def total(self) -> int:
        """Bytes of the rows and their analysis."""
        return self.table_bytes + self.analysis_bytes

    def limited(self, n: int) -> Size:
        """That of the first n rows of each set."""
        return replace(self, rows={role: min(k, n) for role, k in self.rows.items()})

    def most(self, free: int) -> int:
        """The largest number of rows of each set that fits; 0 where none does."""
        low, high = 0, max(self.rows.values(), default=0)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.limited(middle).total <= free else (low, middle - 1)
        return low


def check_capacity(size: Size, free: int | None = None) -> None:
    """Raises ResourceError where the rows and their analysis do not fit into the memory that is `free` (bytes; now)."""
    available = psutil.virtual_memory().available if free is None else free
    if size.total <= available:
        return
    rows = ", ".join(f"{role} {n:,}" for role, n in size.rows.items())
    n = size.most(available)
    way = f"give --limit {n} ({n:,} rows of each set fit), or a smaller --dim or" if n else "use a smaller --dim or"
    kept, more, left = (n / 2**30 for n in (size.table_bytes, size.analysis_bytes, available))
    raise ResourceError(
        f"The rows ({rows}), {size.numbers:,} numbers each in {size.blocks} blocks, take {kept:.1f} GiB of memory, "
        f"their analysis up to {more:.1f} GiB more; {left:.1f} GiB are free. To go on, {way} fewer --blocks."
    )
