"""What do rows have in common with the sums of others: from a Gram matrix, or from tiles of the rows themselves?

Mean products and cosines, within sides and across, inside clusters and apart, and each of them without any one cluster,
are sums of these: no matrix of all rows with each other is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.grams import Grams, block_products
from graddiag.signals import Signals
from graddiag.statistics import ROUNDING, cluster_sums
from graddiag.tiles import Tiles, fits


@dataclass(frozen=True)
class Groups:
    """The side of each row, and its cluster; a cluster may have rows of several sides."""

    sides: Int[np.ndarray, " m"]
    clusters: Int[np.ndarray, " m"]
    n_sides: int
    n_clusters: int

    @staticmethod
    def of_one(clusters: Int[np.ndarray, " m"]) -> Groups:
        """Those of a single side."""
        return Groups(np.zeros(len(clusters), dtype=np.int64), clusters, 1, int(clusters.max(initial=-1)) + 1)

    def counts(self, side: int) -> Int[np.ndarray, " c"]:
        """How many rows of a side each cluster has."""
        return np.bincount(self.clusters[self.sides == side], minlength=self.n_clusters)


@dataclass(frozen=True)
class RowSums:
    """Of each row: its squared norm, and its products with the sum of each side's rows (`whole`) and of those of them
    that are in its own cluster (`inside`), itself among them. Those of several blocks add up."""

    squares: Float[np.ndarray, " m"]
    whole: Float[np.ndarray, "m s"]
    inside: Float[np.ndarray, "m s"]

    @staticmethod
    def of_gram(gram: Float[np.ndarray, "m m"], groups: Groups) -> RowSums:
        """From the products of all rows with each other."""
        m = len(gram)
        whole, inside = np.zeros((2, m, groups.n_sides))
        for side in range(groups.n_sides):
            at = groups.sides == side
            by_cluster = cluster_sums(gram[at], groups.clusters[at], groups.n_clusters)  # [c, m]
            whole[:, side] = by_cluster.sum(axis=0)
            inside[:, side] = by_cluster[groups.clusters, np.arange(m)]
        return RowSums(gram.diagonal().copy(), whole, inside)

    @staticmethod
    def of_rows(places: Float[np.ndarray, "m k"], groups: Groups) -> RowSums:
        """What some places of the rows add."""
        whole, inside = np.zeros((2, len(places), groups.n_sides))
        for side in range(groups.n_sides):
            at = groups.sides == side
            by_cluster = cluster_sums(places[at], groups.clusters[at], groups.n_clusters)  # [c, k]
            whole[:, side] = places @ by_cluster.sum(axis=0)
            inside[:, side] = np.einsum("mk,mk->m", places, by_cluster[groups.clusters])
        return RowSums(np.einsum("mk,mk->m", places, places), whole, inside)

    @staticmethod
    def zero(groups: Groups) -> RowSums:
        """Those of no places."""
        m = len(groups.sides)
        return RowSums(np.zeros(m), np.zeros((m, groups.n_sides)), np.zeros((m, groups.n_sides)))

    @staticmethod
    def counting(some: Bool[np.ndarray, " m"], groups: Groups) -> RowSums:
        """How many of some rows there are instead of their products: those of rows that are all the number 1."""
        return RowSums.of_rows(some[:, None].astype(np.float64), groups)

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(self.squares + other.squares, self.whole + other.whole, self.inside + other.inside)

    def apart(self, groups: Groups, first: int = 0, second: int = 0) -> Float[np.ndarray, " d"]:
        """Mean product of a row of one side with one of the other in another cluster: with all clusters (entry 0), then
        without each in turn; NaN where there are no such rows."""
        at_first, at_second = groups.sides == first, groups.sides == second
        other = self.whole - self.inside
        codes, n = groups.clusters, groups.n_clusters
        by_row = cluster_sums(other[at_first, second], codes[at_first], n)
        by_column = cluster_sums(other[at_second, first], codes[at_second], n)
        a, b = groups.counts(first), groups.counts(second)
        sums, pairs = (
            np.append(row.sum(), row.sum() - row - column)
            for row, column in ((by_row, by_column), (a * (b.sum() - b), b * (a.sum() - a)))
        )
        out = np.full(len(sums), np.nan)
        np.divide(sums, pairs, out=out, where=pairs > 0)
        return out

    def apart_from_zero(self, groups: Groups, side: int) -> Float[np.ndarray, " d"]:
        """`apart` within a side: its squared expected norm; NaN where that is not above zero, but for rounding."""
        found, at = self.apart(groups, side, side), groups.sides == side
        found[found <= ROUNDING * self.squares[at].sum() / at.sum()] = np.nan
        return found


def block_sums(table: Signals, block: str, groups: Groups, grams: Grams | None = None) -> RowSums:
    """Those of a table's finite rows in one block; `grams` are products that are known already."""
    if fits(len(groups.sides)):
        return RowSums.of_gram(block_products([table], block, grams), groups)
    return sum((RowSums.of_rows(places, groups) for places in Tiles((table,), (block,))), RowSums.zero(groups))


def inverse_norms(squares: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """One over the norm of each row, 0 for a row that is zero."""
    norms = np.sqrt(squares)
    out = np.zeros(len(norms))
    np.divide(1.0, norms, out=out, where=norms > 0)
    return out
