"""Which rows resemble which: the cosine of every row with every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._gram import gram
from graddiag.analyzers._rows import cosines_of
from graddiag.errors import DataError, UsageError
from graddiag.signals import Signals, check_same_space

ROWS_PER_SIDE = 200  # more cells than that are smaller than a pixel of a printed figure


@dataclass(frozen=True)
class CosineMatrix:
    """Projected whole-vector cosines of rows, by side, then cluster, then id; NaN for a zero gradient.

    `sides[i]` is the number of row i's table in `names`; `shown[s]` of the `available[s]` finite rows of a table are
    here.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    sides: Int[np.ndarray, " m"]
    values: Float[np.ndarray, "m m"]
    shown: tuple[int, ...]
    available: tuple[int, ...]

    @property
    def selection(self) -> tuple[str, ...]:
        """One sentence for each table of which not all rows are shown."""
        counts = zip(self.names, self.shown, self.available, strict=True)
        return tuple(f"{name}: {a} of {b} rows, evenly spaced" for name, a, b in counts if a < b)


def cosine_matrix(tables: Sequence[Signals], *, limit: int = ROWS_PER_SIDE) -> CosineMatrix:
    """Cosines of all rows, or of `limit` evenly spaced ones where a table has more.

    Raises DataError where there is no table or their spaces differ, UsageError for a limit below 1.
    """
    if not tables:
        raise DataError("There is no table to compare. Give at least one.")
    if limit < 1:
        raise UsageError(f"A matrix of {limit} rows per side cannot be shown. Use a limit of 1 or more.")
    for other in tables[1:]:
        check_same_space(tables[0].space, other.space, tables[0].provenance.data, other.provenance.data)
    orders = [_order(t) for t in tables]
    chosen = [t.take(_evenly(order, limit)) for t, order in zip(tables, orders, strict=True)]
    total = sum(gram(chosen, block) for block in tables[0].blocks)
    return CosineMatrix(
        names=tuple(t.provenance.data for t in tables),
        ids=tuple(i for t in chosen for i in t.ids),
        clusters=tuple(c for t in chosen for c in t.clusters),
        sides=np.repeat(np.arange(len(chosen)), [len(t) for t in chosen]),
        values=cosines_of(np.asarray(total)),
        shown=tuple(len(t) for t in chosen),
        available=tuple(len(order) for order in orders),
    )


def _order(table: Signals) -> Int[np.ndarray, " n"]:
    kept = np.flatnonzero(table.finite).tolist()
    return np.array(sorted(kept, key=lambda i: (table.clusters[i], table.ids[i])), dtype=np.int64)


def _evenly(order: Int[np.ndarray, " n"], limit: int) -> Int[np.ndarray, " m"]:
    if len(order) <= limit:
        return order
    return order[np.linspace(0, len(order) - 1, limit).round().astype(np.int64)]
