"""Where do the rows of both sides stand in one Gram matrix, and which of them are partners or share a cluster?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.analyzers._row_sums import Groups, RowSums
from graddiag.analyzers._two_samples import Sample
from graddiag.comparison import Comparison
from graddiag.statistics import COSINE, ROUNDING, Estimate, cluster_sums, cosine, jackknife


@dataclass(frozen=True)
class Rows:
    """The finite rows of the left side, then those of the right, as they stand in a Gram matrix.

    Pair p is the row `left_at[p]` of the left side and `right_at[p]` of the right. A row's cluster is named by its own
    table, that of a paired right row by its left partner.
    """

    n_left: int
    n_right: int
    left_at: Int[np.ndarray, " p"]
    right_at: Int[np.ndarray, " p"]
    left_clusters: Int[np.ndarray, " l"]
    right_clusters: Int[np.ndarray, " r"]
    n_clusters: int

    @staticmethod
    def of(comparison: Comparison) -> Rows:
        """The rows of a comparison."""
        left, right = comparison.left, comparison.right
        left_kept, right_kept = np.flatnonzero(left.finite), np.flatnonzero(right.finite)
        names = list(right.clusters)
        for a, b in zip(comparison.left_index, comparison.right_index, strict=True):
            names[b] = left.clusters[a]
        left_names, right_names = [left.clusters[i] for i in left_kept], [names[i] for i in right_kept]
        code = {name: k for k, name in enumerate(dict.fromkeys(left_names + right_names))}
        left_at = np.searchsorted(left_kept, comparison.left_index)
        right_at = np.searchsorted(right_kept, comparison.right_index)
        return Rows(
            n_left=len(left_kept),
            n_right=len(right_kept),
            left_at=left_at,
            right_at=right_at,
            left_clusters=np.array([code[c] for c in left_names], dtype=np.int64),
            right_clusters=np.array([code[c] for c in right_names], dtype=np.int64),
            n_clusters=len(code),
        )

    @property
    def groups(self) -> Groups:
        """The side (0 left, 1 right) and the cluster of each row."""
        codes = np.concatenate([self.left_clusters, self.right_clusters])
        return Groups(np.repeat([0, 1], [self.n_left, self.n_right]), codes, 2, self.n_clusters)

    @property
    def more_left(self) -> Int[np.ndarray, " c"]:
        """How many more left than right rows each cluster has."""
        return np.asarray(self.groups.counts(0) - self.groups.counts(1))

    def of_partners(self, paired: Float[np.ndarray, " p"]) -> Float[np.ndarray, " m"]:
        """The number of each row's pair; 0 for a row without a partner."""
        out = np.zeros(self.n_left + self.n_right)
        out[self.left_at] = out[self.n_left + self.right_at] = paired
        return out

    def sides(
        self, matrix: Float[np.ndarray, "m m"]
    ) -> tuple[Float[np.ndarray, "l l"], Float[np.ndarray, "r r"], Float[np.ndarray, "l r"]]:
        """Left with left, right with right, left with right."""
        n = self.n_left
        return matrix[:n, :n], matrix[n:, n:], matrix[:n, n:]


def cosines_of(gram: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Cosines from inner products; NaN in the row and column of a zero gradient."""
    norms = np.sqrt(gram.diagonal())
    return cosine(gram, norms[:, None], norms[None, :])


def centre(gram: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """The Gram matrix once the mean of all rows is subtracted from each; a row equal to the mean becomes zero."""
    row_means = gram.mean(axis=1)
    out: Float[np.ndarray, "m m"] = gram - row_means[:, None] - row_means[None, :] + row_means.mean()
    gone = out.diagonal() <= ROUNDING * gram.diagonal().max()
    out[gone], out[:, gone] = 0.0, 0.0
    return out


def mean_gradient_cosine(sums: RowSums, rows: Rows) -> float:
    """Cosine of the two sides' mean gradients; NaN where a mean is zero up to rounding."""
    squares = []
    for k, side in enumerate((slice(rows.n_left), slice(rows.n_left, None))):
        total, least = float(sums.whole[side, k].sum()), float(sums.squares[side].sum()) * len(sums.squares[side])
        squares.append(total if total > ROUNDING * least else 0.0)
    norms, across = np.sqrt(squares), sums.whole[: rows.n_left, 1].sum()
    return float(cosine(np.array([across]), norms[:1], norms[1:])[0])


def label_products(gram: Float[np.ndarray, "m m"], rows: Rows) -> Float[np.ndarray, "c c"]:
    """Products of `E_c`, the sum of a cluster's left rows minus that of its right rows, the mean of all rows subtracted
    from each: what `relabelling` asks for.

    Where every cluster has as many left as right rows that mean cancels, and E_c is the sum of the differences of
    pairs. An E_c that is zero up to rounding is zero.
    """
    codes = np.concatenate([rows.left_clusters, rows.right_clusters])
    sides = np.repeat([1.0, -1.0], [rows.n_left, rows.n_right])
    signed = (centre(gram) if rows.more_left.any() else gram) * sides[:, None] * sides[None, :]
    out = cluster_sums(cluster_sums(signed, codes, rows.n_clusters).T, codes, rows.n_clusters)
    return without_rounding(out, gram.diagonal(), rows)


def without_rounding(
    products: Float[np.ndarray, "c c"], squares: Float[np.ndarray, " m"], rows: Rows
) -> Float[np.ndarray, "c c"]:
    """Products of E_c as in `label_products`, zero for one that is zero up to rounding of its rows' squared norms."""
    gone = are_rounding(products.diagonal(), squares, rows)
    products[gone], products[:, gone] = 0.0, 0.0
    return products


def are_rounding(sums: Float[np.ndarray, " c"], squares: Float[np.ndarray, " m"], rows: Rows) -> Bool[np.ndarray, " c"]:
    """Which clusters' squared norm of E_c is that of rounding, given the squared norms of all rows."""
    codes = rows.groups.clusters
    inside = cluster_sums(squares, codes, rows.n_clusters)
    return np.asarray(sums <= ROUNDING * np.bincount(codes, minlength=rows.n_clusters) * inside)


def cosine_with_fixed(sample: Sample, inner: Float[np.ndarray, " c"], square: float) -> Estimate:
    """Cosine of a mean of rows with one vector that is taken as known; NaN where the mean is zero up to rounding.

    `inner` are the products of the sample's cluster sums with the vector, `square` its squared norm. The interval is
    that of the mean product with the vector, over both norms: it excludes 0 just as often as that of a mean does. (The
    jackknife of the cosine itself excludes 0 too often where the mean is mostly noise, since the mean's norm moves
    along with the product.) Its width is that at a cosine of 0: too wide near 1.
    """
    length, counts = sample.square, sample.counts
    if length <= ROUNDING * len(counts) * sample.inside.sum() or square <= 0:
        return Estimate(math.nan)
    n, total = counts.sum(), inner.sum()
    scale = n / math.sqrt(length) / math.sqrt(square)
    replicates = (total - inner) / (n - counts) if len(counts) > 1 else np.zeros(0)
    return jackknife(float(total / n * scale), replicates * scale, bounds=COSINE)


def corrected_cosines(sums: RowSums, rows: Rows) -> Float[np.ndarray, " d"]:
    """Cosine of the two expected gradients: with all clusters (entry 0), then without each in turn; not cut at 1.

    `||mu||^2 ~ (||sum g||^2 - sum_c ||sum_{i in c} g_i||^2) / (n^2 - sum n_c^2)`, the mean inner product of rows in
    different clusters, and likewise across the sides: products inside a cluster carry its noise. NaN where a squared
    norm is not above zero or no two rows are in different clusters.
    """
    left, right, across = apart_means(sums, rows)
    return np.asarray(across / np.sqrt(left) / np.sqrt(right))


def apart_means(sums: RowSums, rows: Rows) -> Float[np.ndarray, "3 d"]:
    """Mean products of rows in different clusters: left with left, right with right, across, as in
    `corrected_cosines`."""
    groups = rows.groups
    within = [sums.apart_from_zero(groups, side) for side in (0, 1)]
    return np.stack([*within, sums.apart(groups, 0, 1)])


def apart_with_deletions(
    products: Float[np.ndarray, "a b"], codes_a: Int[np.ndarray, " a"], codes_b: Int[np.ndarray, " b"], n_clusters: int
) -> Float[np.ndarray, " d"]:
    """Mean product of rows in different clusters: with all clusters, then without each in turn; NaN if none."""
    different = codes_a[:, None] != codes_b[None, :]
    sums = _with_deletions(np.where(different, products, 0.0), codes_a, codes_b, n_clusters)
    counts = _with_deletions(different.astype(np.float64), codes_a, codes_b, n_clusters)
    out = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out


def _with_deletions(
    apart: Float[np.ndarray, "a b"], codes_a: Int[np.ndarray, " a"], codes_b: Int[np.ndarray, " b"], n_clusters: int
) -> Float[np.ndarray, " d"]:
    """Sum of a matrix that is zero inside clusters, and what is left when a cluster's rows and columns are deleted."""
    by_row = cluster_sums(apart.sum(axis=1), codes_a, n_clusters)
    by_column = cluster_sums(apart.sum(axis=0), codes_b, n_clusters)
    total = by_row.sum()
    return np.concatenate([[total], total - by_row - by_column])
