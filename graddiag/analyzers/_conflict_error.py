"""What does each place of the rows do to the cosines between two sides?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from graddiag.analyzers._projection_error import Influence, cosine_influence, ratio_influence
from graddiag.analyzers._row_sums import inverse_norms
from graddiag.analyzers._rows import Rows, apart_means
from graddiag.analyzers._side_products import MeanCosine, SideProducts
from graddiag.relabelling import Relabellings
from graddiag.tiles import fits

TILE = 256  # places at a time: those of some hundred rows stay in the processor's cache
Places = Float[np.ndarray, "_ k"]  # the rows of both sides in one block


@dataclass(frozen=True)
class LabelWeights:
    """How `conflict/label_distance` weighs the products of the sums `E_c` that relabelling turns round: `real` is the
    factor of their sum in the distance of the sides as they are, `middle[c, d]` that of the product of E_c and E_d in
    the mean over relabellings; None where there are too many clusters, and relabelled sums take its place."""

    real: float
    middle: Float[np.ndarray, "c c"] | None
    labels: Relabellings

    @staticmethod
    def of(labels: Relabellings) -> LabelWeights:
        """Those of some relabellings."""
        middle = None
        if fits(labels.signs.shape[1]):
            signs = labels.signs.astype(np.float64)
            middle = signs.T @ (signs * labels.scale[:, None]) / len(signs)
        return LabelWeights(float(labels.scale[0]), middle, labels)

    def influence(self, sums: Float[np.ndarray, "c k"], totals: Float[np.ndarray, " 2"]) -> Influence:
        """That of the relative distance, given E_c at each place of a block."""
        upper = self.real * sums.sum(axis=0) ** 2
        if self.middle is None:
            return ratio_influence(upper, self.labels.mean_squares(sums), totals)
        return ratio_influence(upper, np.einsum("ck,ck->k", self.middle @ sums, sums), totals)

    def totals(self, products: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " 2"]:
        """The distance as it is, and its mean over relabellings."""
        assert self.middle is not None, "products of clusters are there only where such a matrix fits"
        return np.array([self.real * products.sum(), (self.middle * products).sum()])


@dataclass(frozen=True)
class ConflictInfluences:
    """Derivatives at the numbers of one scope, to be read off the rows of every block that is part of it.

    `lengths` is one over the norm of each row, 0 for a row that is zero: rows are never divided by their norms, which
    would take another array as large for each block and scope. `sums` has, for each side, what sums the rows of each
    cluster: as they are, and below that at unit length, [2 c, rows of the side].
    """

    rows: Rows
    lengths: Float[np.ndarray, " m"]
    sums: tuple[csr_array, csr_array]
    means: dict[str, MeanCosine]
    totals: Float[np.ndarray, " 3"]
    apart: Float[np.ndarray, " 3"]
    labels: LabelWeights
    label_totals: Float[np.ndarray, " 2"]
    centered: bool

    @staticmethod
    def of(products: SideProducts, rows: Rows, labels: LabelWeights, *, centered: bool) -> ConflictInfluences:
        """Those of the products of one scope, of centred rows already where they are to be."""
        n, plain = rows.n_left, products.plain
        lengths = inverse_norms(plain.squares)
        n_clusters = rows.n_clusters
        side_sums = (
            _summing(lengths[:n], rows.left_clusters, n_clusters),
            _summing(lengths[n:], rows.right_clusters, n_clusters),
        )
        totals = np.array([plain.whole[:n, 1].sum(), plain.whole[:n, 0].sum(), plain.whole[n:, 1].sum()])
        apart_totals = apart_means(plain, rows)[[2, 0, 1], 0]
        means, of_labels = products.means(rows), products.label_totals
        return ConflictInfluences(rows, lengths, side_sums, means, totals, apart_totals, labels, of_labels, centered)

    def at(self, block: Iterable[Places]) -> dict[str, Influence]:
        """The influence of each place of one block, some places at a time, on every number."""
        starts = ((places, start) for places in block for start in range(0, places.shape[1], TILE))
        tiles = [self._tile(places[:, start : start + TILE]) for places, start in starts]
        parts = {name: [tile[name] for tile in tiles] for name in tiles[0]}
        return {
            name: Influence(np.concatenate([i.moves for i in p]), np.concatenate([i.shares for i in p]))
            for name, p in parts.items()
        }

    def _tile(self, places: Places) -> dict[str, Influence]:
        if self.centered:
            places = places - places.mean(axis=0)
        if not self.lengths.all():
            places = np.where(self.lengths[:, None] > 0, places, 0.0)
        n = self.rows.n_left
        by_cluster = np.stack([self.sums[0] @ places[:n], self.sums[1] @ places[n:]])  # [2, 2 c, k]
        plain, unit = by_cluster[:, : self.rows.n_clusters], by_cluster[:, self.rows.n_clusters :]
        (left, right), ways = plain.sum(axis=1), ((0, 1), (0, 0), (1, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            out = self._mean_influences(places, unit)
            whole = np.stack([left * right, left**2, right**2])
            inside = np.stack([np.einsum("ck,ck->k", plain[a], plain[b]) for a, b in ways])
            apart = (whole - inside) / _pairs_apart(self.rows)[:, None]
        out["mean_gradient_cosine"] = cosine_influence(whole, self.totals)
        signed = plain[0] - plain[1] - np.outer(self.rows.more_left, (left + right) / len(places))
        out["label_distance"] = self.labels.influence(signed, self.label_totals)
        return out | {"corrected": cosine_influence(apart, self.apart)}

    def _mean_influences(self, places: Places, unit: Float[np.ndarray, "2 c k"]) -> dict[str, Influence]:
        """Those of the means of cosines: of rows at unit length, the product of both summed over the pairs, less what
        each place has of the rows' squared norms; `unit` has the sums of unit rows by side and cluster."""
        rows, n, u = self.rows, self.rows.n_left, self.lengths
        (left, right), squares = unit.sum(axis=1), places * places
        partners = u[rows.left_at] * u[n + rows.right_at]
        paired = np.einsum("p,pk,pk->k", partners, places[_at(rows.left_at, 0)], places[_at(rows.right_at, n)])
        cross = {
            "within_left": left**2 - u[:n] ** 2 @ squares[:n],
            "within_right": right**2 - u[n:] ** 2 @ squares[n:],
            "across": left * right - paired,
            "same_cluster": np.einsum("ck,ck->k", unit[0], unit[1]) - paired,
            "paired": paired,
        }
        weights = np.concatenate([[self.means[k].cosines, self.means[k].counts] for k in cross]) * u**2
        of_squares = (weights @ squares).reshape(len(cross), 2, -1)
        return {
            name: Influence(value / self.means[name].n - cosines, shares)
            for (name, value), (cosines, shares) in zip(cross.items(), of_squares, strict=True)
        }


def _summing(lengths: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"], n_clusters: int) -> csr_array:
    """What sums rows by cluster, as they are and at unit length."""
    at = np.tile(np.arange(len(codes)), 2)
    weights = np.concatenate([np.ones(len(codes)), lengths])
    return csr_array((weights, (np.concatenate([codes, n_clusters + codes]), at)), shape=(2 * n_clusters, len(codes)))


def _at(rows: Int[np.ndarray, " p"], start: int) -> slice | Int[np.ndarray, " p"]:
    """Where some rows stand among all; a slice, which copies nothing, where they follow each other."""
    follow = len(rows) > 0 and bool((np.diff(rows) == 1).all())
    return slice(start + int(rows[0]), start + int(rows[-1]) + 1) if follow else start + rows


def _pairs_apart(rows: Rows) -> Float[np.ndarray, " 3"]:
    """How many pairs of rows are in different clusters: across, left with left, right with right."""
    a = np.bincount(rows.left_clusters, minlength=rows.n_clusters)
    b = np.bincount(rows.right_clusters, minlength=rows.n_clusters)
    return np.array([x.sum() * y.sum() - (x * y).sum() for x, y in ((a, b), (a, a), (b, b))], dtype=np.float64)
