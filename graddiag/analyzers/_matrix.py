"""Which rows resemble which: the cosine of every row with every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._rows import cosines_of
from graddiag.errors import DataError, UsageError
from graddiag.grams import Grams, whole_products
from graddiag.signals import Signals, check_gradients, check_same_space

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


def cosine_matrix(tables: Sequence[Signals], *, limit: int = ROWS_PER_SIDE, grams: Grams | None = None) -> CosineMatrix:
    """Cosines of all rows, or of `limit` evenly spaced ones where a table has more; `grams` are products of the tables'
    rows that are known already.

    Raises DataError where there is no table, none of gradients, or their spaces differ, UsageError for a limit below 1.
    """
    if not tables:
        raise DataError("There is no table to compare. Give at least one.")
    if limit < 1:
        raise UsageError(f"A matrix of {limit} rows per side cannot be shown. Use a limit of 1 or more.")
    check_gradients(tables[0].space, tables[0].provenance.data)
    for other in tables[1:]:
        check_same_space(tables[0].space, other.space, tables[0].provenance.data, other.provenance.data)
    orders = [_order(t) for t in tables]
    at = [_evenly(order, limit) for order in orders]
    if grams is None:
        total = whole_products([t.take(rows) for t, rows in zip(tables, at, strict=True)], None)
    else:
        total = _chosen(grams.whole(tables), tables, at)
    return CosineMatrix(
        names=tuple(t.provenance.data for t in tables),
        ids=tuple(t.ids[i] for t, rows in zip(tables, at, strict=True) for i in rows),
        clusters=tuple(t.clusters[i] for t, rows in zip(tables, at, strict=True) for i in rows),
        sides=np.repeat(np.arange(len(at)), [len(rows) for rows in at]),
        values=cosines_of(total),
        shown=tuple(len(rows) for rows in at),
        available=tuple(len(order) for order in orders),
    )


def _chosen(
    products: Float[np.ndarray, "m m"], tables: Sequence[Signals], at: Sequence[Int[np.ndarray, " _"]]
) -> Float[np.ndarray, "a a"]:
    """The products of chosen rows, from those of all finite rows of the tables in order."""
    starts = np.cumsum([0, *(int(t.finite.sum()) for t in tables[:-1])])
    places = [s + np.cumsum(t.finite)[rows] - 1 for s, t, rows in zip(starts, tables, at, strict=True)]
    chosen = np.concatenate(places)
    return np.asarray(products[np.ix_(chosen, chosen)])


def _order(table: Signals) -> Int[np.ndarray, " n"]:
    kept = np.flatnonzero(table.finite).tolist()
    return np.array(sorted(kept, key=lambda i: (table.clusters[i], table.ids[i])), dtype=np.int64)


def _evenly(order: Int[np.ndarray, " n"], limit: int) -> Int[np.ndarray, " m"]:
    if len(order) <= limit:
        return order
    return order[np.linspace(0, len(order) - 1, limit).round().astype(np.int64)]
