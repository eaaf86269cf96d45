"""Where do the rows of both sides stand in one Gram matrix, and which of them are partners or share a cluster?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.comparison import Comparison
from graddiag.statistics import COSINE, ROUNDING, Estimate, cluster_sums, cosine, jackknife


@dataclass(frozen=True)
class Rows:
    """The finite rows of the left side, then those of the right, as they stand in a Gram matrix.

    Pair p is the row `left_at[p]` of the left side and `right_at[p]` of the right; `partners` says the same for all
    rows. A row's cluster is named by its own table, that of a paired right row by its left partner.
    """

    n_left: int
    n_right: int
    left_at: Int[np.ndarray, " p"]
    right_at: Int[np.ndarray, " p"]
    left_clusters: Int[np.ndarray, " l"]
    right_clusters: Int[np.ndarray, " r"]
    n_clusters: int
    partners: Bool[np.ndarray, "l r"]

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
        partners = np.zeros((len(left_kept), len(right_kept)), dtype=bool)
        partners[left_at, right_at] = True
        return Rows(
            n_left=len(left_kept),
            n_right=len(right_kept),
            left_at=left_at,
            right_at=right_at,
            left_clusters=np.array([code[c] for c in left_names], dtype=np.int64),
            right_clusters=np.array([code[c] for c in right_names], dtype=np.int64),
            n_clusters=len(code),
            partners=partners,
        )

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


def mean_gradient_cosine(gram: Float[np.ndarray, "m m"], rows: Rows) -> float:
    """Cosine of the two sides' mean gradients; NaN where a mean is zero up to rounding."""
    left, right, across = rows.sides(gram)
    squares = []
    for side in (left, right):
        total = float(side.sum())
        squares.append(total if total > ROUNDING * len(side) * float(side.trace()) else 0.0)
    norms = np.sqrt(squares)
    return float(cosine(np.array([across.sum()]), norms[:1], norms[1:])[0])


def label_products(gram: Float[np.ndarray, "m m"], rows: Rows) -> Float[np.ndarray, "c c"]:
    """Products of `E_c`, the sum of a cluster's left rows minus that of its right rows, the mean of all rows subtracted
    from each: what `relabelling` asks for.

    Where every cluster has as many left as right rows that mean cancels, and E_c is the sum of the differences of
    pairs. An E_c that is zero up to rounding is zero.
    """
    codes = np.concatenate([rows.left_clusters, rows.right_clusters])
    sides = np.repeat([1.0, -1.0], [rows.n_left, rows.n_right])
    even = not cluster_sums(sides, codes, rows.n_clusters).any()
    signed = (gram if even else centre(gram)) * sides[:, None] * sides[None, :]
    out = cluster_sums(cluster_sums(signed, codes, rows.n_clusters).T, codes, rows.n_clusters)
    squares = cluster_sums(gram.diagonal(), codes, rows.n_clusters)
    gone = out.diagonal() <= ROUNDING * np.bincount(codes, minlength=rows.n_clusters) * squares
    out[gone], out[:, gone] = 0.0, 0.0
    return out


def cosine_with_fixed(
    gram: Float[np.ndarray, "c c"], inner: Float[np.ndarray, " c"], square: float, counts: Int[np.ndarray, " c"]
) -> Estimate:
    """Cosine of a mean of rows with one vector that is taken as known; NaN where the mean is zero up to rounding.

    `gram` has the products of the cluster sums, `inner` theirs with the vector, `square` its squared norm, `counts` the
    rows of each cluster. The interval is that of the mean product with the vector, over both norms: it excludes 0 just
    as often as that of a mean does. (The jackknife of the cosine itself excludes 0 too often where the mean is mostly
    noise, since the mean's norm moves along with the product.) Its width is that at a cosine of 0: too wide near 1.
    """
    length = float(gram.sum())
    if length <= ROUNDING * len(gram) * gram.trace() or square <= 0:
        return Estimate(math.nan)
    n, total = counts.sum(), inner.sum()
    scale = n / math.sqrt(length) / math.sqrt(square)
    replicates = (total - inner) / (n - counts) if len(counts) > 1 else np.zeros(0)
    return jackknife(float(total / n * scale), replicates * scale, bounds=COSINE)


def corrected_cosines(gram: Float[np.ndarray, "m m"], rows: Rows) -> Float[np.ndarray, " d"]:
    """Cosine of the two expected gradients: with all clusters (entry 0), then without each in turn; not cut at 1.

    `||mu||^2 ~ (||sum g||^2 - sum_c ||sum_{i in c} g_i||^2) / (n^2 - sum n_c^2)`, the mean inner product of rows in
    different clusters, and likewise across the sides: products inside a cluster carry its noise. NaN where a squared
    norm is not above zero or no two rows are in different clusters.
    """
    means = apart_means(gram, rows)
    return np.asarray(means[2] / np.sqrt(means[0]) / np.sqrt(means[1]))


def apart_means(gram: Float[np.ndarray, "m m"], rows: Rows) -> Float[np.ndarray, "3 d"]:
    """Mean products of rows in different clusters: left with left, right with right, across, as in
    `corrected_cosines`."""
    left, right = rows.left_clusters, rows.right_clusters
    codes = ((left, left), (right, right), (left, right))
    means = np.stack(
        [apart_with_deletions(m, a, b, rows.n_clusters) for m, (a, b) in zip(rows.sides(gram), codes, strict=True)]
    )
    for k, side in enumerate(rows.sides(gram)[:2]):
        means[k, means[k] <= ROUNDING * side.trace() / len(side)] = np.nan
    return means


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
