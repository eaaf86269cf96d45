"""How far does one shift go along another whose direction was fitted on other rows?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.statistics import ROUNDING, cluster_sums

SPLITS = 20  # ways to halve the clusters: the spread that the choice of halves adds is a fifth of a single one's


@dataclass(frozen=True)
class HeldOut:
    """Two shifts of the same rows along the unit vector v of the second one's mean, fitted on half of the clusters.

    `along` is the mean over rows of `<first, v>`, `fitted` that of `<second, v>`, each row read along the v of the half
    that it is not in, averaged over 20 ways to halve the clusters: with all clusters (entry 0), then without each in
    turn. NaN where a half has no rows, or no direction.
    """

    along: Float[np.ndarray, " d"]
    fitted: Float[np.ndarray, " d"]


def halves(n_clusters: int, *, seed: int = 0, splits: int = SPLITS) -> Float[np.ndarray, "s c"]:
    """Ways to halve the clusters: 1 where a cluster is in the first half, which has half of them, rounded down."""
    chosen = np.tile(np.arange(n_clusters) < n_clusters // 2, (splits, 1)).astype(np.float64)
    return np.asarray(np.random.default_rng(seed).permuted(chosen, axis=1))


def held_out(
    across: Float[np.ndarray, "c c"],
    gram: Float[np.ndarray, "c c"],
    counts: Int[np.ndarray, " c"],
    first_half: Float[np.ndarray, "s c"],
) -> HeldOut:
    """The two means from products of cluster sums: `across[c, k]` of the first shift in c with the second in k, `gram`
    of the second with itself; `counts` are the rows of each cluster."""
    n = counts.sum() - np.append(0, counts).astype(np.float64)
    other = 1 - first_half
    sides = ((first_half, other), (other, first_half))
    least = ROUNDING * gram.trace()
    sums = np.zeros((2, len(first_half), len(n)))
    for fit, read in sides:
        square = _products(gram, fit, fit)
        length = np.sqrt(np.where(square > least, square, np.nan))
        sums[0] += _products(across, read, fit) / length
        sums[1] += _products(gram, read, fit) / length
    means = np.divide(sums.mean(axis=1), n, out=np.full((2, len(n)), np.nan), where=n > 0)
    return HeldOut(along=means[0], fitted=means[1])


def _products(
    matrix: Float[np.ndarray, "c c"], rows: Float[np.ndarray, "s c"], columns: Float[np.ndarray, "s c"]
) -> Float[np.ndarray, "s d"]:
    """`rows matrix columns^T` of each split: with all clusters, then without each in turn."""
    by_row, by_column = rows * (columns @ matrix.T), columns * (rows @ matrix)
    total = by_row.sum(axis=1, keepdims=True)
    return np.concatenate([total, total - by_row - by_column + rows * columns * matrix.diagonal()], axis=1)


def sums_of(values: Float[np.ndarray, "n d"], clusters: Int[np.ndarray, " n"]) -> Float[np.ndarray, "c d"]:
    """Sums of the rows of each cluster; clusters are numbered without gaps."""
    return cluster_sums(values, clusters, int(clusters.max(initial=-1)) + 1)
