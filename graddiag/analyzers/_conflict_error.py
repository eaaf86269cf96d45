"""What does each place of the rows do to the cosines between two sides?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from graddiag.analyzers._projection_error import Influence, cosine_influence
from graddiag.analyzers._rows import Rows, apart_means, cosines_of
from graddiag.statistics import cluster_sums

Places = Float[np.ndarray, "_ k"]  # the rows of both sides in one block


@dataclass(frozen=True)
class _MeanCosine:
    """A mean of cosines over chosen pairs of rows.

    `cross` sums the products of unit rows over those pairs, place by place. `cosines[i]` is the sum over the pairs of
    row i of their cosines, `counts[i]` the number of those pairs, each halved and over the number of all pairs.
    """

    cross: Callable[[Places], Float[np.ndarray, " k"]]
    n: float
    cosines: Float[np.ndarray, " m"]
    counts: Float[np.ndarray, " m"]

    def influence(self, unit: Places) -> Influence:
        squares = unit**2
        return Influence(self.cross(unit) / self.n - self.cosines @ squares, self.counts @ squares)


@dataclass(frozen=True)
class ConflictInfluences:
    """Derivatives at the numbers of one Gram matrix, to be read off the rows of every block that is part of it."""

    rows: Rows
    norms: Float[np.ndarray, " m"]
    means: dict[str, _MeanCosine]
    totals: Float[np.ndarray, " 3"]
    apart: Float[np.ndarray, " 3"]
    centered: bool

    @staticmethod
    def of(
        products: Float[np.ndarray, "m m"], rows: Rows, same_cluster: Bool[np.ndarray, "l r"], *, centered: bool
    ) -> ConflictInfluences:
        """Those of a Gram matrix, centred already where it is to be."""
        left, right, across = rows.sides(cosines_of(products))
        n, matched = rows.n_left, rows.partners
        apart = [~np.eye(k, dtype=bool) for k in (n, rows.n_right)]
        means = {
            "within_left": _mean(left, apart[0], (0, 0), rows, lambda u: _within(u[:n])),
            "within_right": _mean(right, apart[1], (n, n), rows, lambda u: _within(u[n:])),
            "across": _mean(across, ~matched, (0, n), rows, lambda u: u[:n].sum(0) * u[n:].sum(0) - _paired(u, rows)),
            "same_cluster": _mean(
                across, same_cluster, (0, n), rows, lambda u: _inside(u[:n], u[n:], rows)[2] - _paired(u, rows)
            ),
            "paired": _mean(across, matched, (0, n), rows, lambda u: _paired(u, rows)),
        }
        sums = [float(part.sum()) for part in rows.sides(products)]
        middle = apart_means(products, rows)[:, 0]
        norms = np.sqrt(products.diagonal())
        return ConflictInfluences(rows, norms, means, np.array([sums[2], *sums[:2]]), middle[[2, 0, 1]], centered)

    def at(self, places: Places) -> dict[str, Influence]:
        """The influence of each place of one block on every number."""
        if self.centered:
            places = places - places.mean(axis=0)
        some = self.norms[:, None] > 0
        places = np.where(some, places, 0.0)
        unit = np.divide(places, self.norms[:, None], out=np.zeros_like(places), where=some)
        n = self.rows.n_left
        left, right = places[:n].sum(axis=0), places[n:].sum(axis=0)
        whole = np.stack([left * right, left**2, right**2])
        inside = _inside(places[:n], places[n:], self.rows)[[2, 0, 1]]
        with np.errstate(divide="ignore", invalid="ignore"):
            out = {name: m.influence(unit) for name, m in self.means.items()}
            apart = (whole - inside) / _pairs_apart(self.rows)[:, None]
        out["mean_gradient_cosine"] = cosine_influence(whole, self.totals)
        return out | {"corrected": cosine_influence(apart, self.apart)}


def _mean(
    cosines: Float[np.ndarray, "a b"],
    chosen: Bool[np.ndarray, "a b"],
    starts: tuple[int, int],
    rows: Rows,
    cross: Callable[[Places], Float[np.ndarray, " k"]],
) -> _MeanCosine:
    """The mean over the chosen pairs whose cosine is defined; `starts` are where its two sides begin among all rows."""
    chosen = chosen & np.isfinite(cosines)
    n = float(chosen.sum()) or math.nan
    values = np.where(chosen, cosines, 0.0)
    sums, counts = np.zeros((2, rows.n_left + rows.n_right))
    for axis, start in ((1, starts[0]), (0, starts[1])):
        at = slice(start, start + chosen.shape[1 - axis])
        sums[at] += values.sum(axis=axis) / (2 * n)
        counts[at] += chosen.sum(axis=axis) / (2 * n)
    return _MeanCosine(cross, n, sums, counts)


def _within(unit: Places) -> Float[np.ndarray, " k"]:
    return np.asarray(unit.sum(axis=0) ** 2 - (unit**2).sum(axis=0))


def _paired(unit: Places, rows: Rows) -> Float[np.ndarray, " k"]:
    return np.asarray((unit[rows.left_at] * unit[rows.n_left + rows.right_at]).sum(axis=0))


def _inside(left: Places, right: Places, rows: Rows) -> Float[np.ndarray, "3 k"]:
    """Products of rows that share a cluster, each with itself too: left with left, right with right, across."""
    a = cluster_sums(left, rows.left_clusters, rows.n_clusters)
    b = cluster_sums(right, rows.right_clusters, rows.n_clusters)
    return np.stack([(x * y).sum(axis=0) for x, y in ((a, a), (b, b), (a, b))])


def _pairs_apart(rows: Rows) -> Float[np.ndarray, " 3"]:
    """How many pairs of rows are in different clusters: across, left with left, right with right."""
    a = np.bincount(rows.left_clusters, minlength=rows.n_clusters)
    b = np.bincount(rows.right_clusters, minlength=rows.n_clusters)
    return np.array([x.sum() * y.sum() - (x * y).sum() for x, y in ((a, b), (a, a), (b, b))], dtype=np.float64)
