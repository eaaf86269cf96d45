"""How well is the direction of the mean safety gradient known, and what would a random direction do?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graddiag.analyzers._cosines import mean_gradient, rows64
from graddiag.analyzers._row_sums import Groups, RowSums, block_sums
from graddiag.answers import cluster_codes
from graddiag.grams import Grams
from graddiag.signals import Signals
from graddiag.statistics import COSINE, ROUNDING, Estimate, cluster_sums, jackknife, optional

SPLIT_HALF, RANDOM = "safety_split_half", "random_sd"  # how the keys end
CLUSTERS, LARGEST = "safety_clusters", "safety_largest_cluster"


@dataclass(frozen=True)
class SafetyDirection:
    """Of the projected safety gradients: how far their mean agrees with itself, overall and per block; and for each set
    the standard deviation of its mean cosine with a random direction that has the safety mean's norm in every block.

    `n_clusters` is how many clusters the finite safety rows make (those that are named, else one for each answer), and
    `largest` the share of the rows in the largest of them.
    """

    overall: Estimate
    blocks: Mapping[str, Estimate]
    random_sd: Mapping[str, float]
    n_clusters: int
    largest: float

    @staticmethod
    def of(safety: Signals, tables: Mapping[str, Signals], grams: Grams | None = None) -> SafetyDirection:
        """Those of the finite rows; `grams` are products of the safety rows that are known already."""
        codes = np.unique(cluster_codes(safety)[safety.finite], return_inverse=True)[1]
        groups = Groups.of_one(codes)
        total = RowSums.zero(groups)
        blocks = {}
        for block in safety.blocks:
            sums = block_sums(safety, block, groups, grams)
            total += sums
            blocks[block] = split_half(sums, groups)
        random = {name: random_direction_sd(table, safety) for name, table in tables.items()}
        counts = np.bincount(codes)
        largest = float(counts.max() / counts.sum())
        return SafetyDirection(split_half(total, groups), blocks, random, len(counts), largest)

    def summary(self, prefix: str) -> dict[str, float | None]:
        """The flat keys, overall."""
        random = {f"{prefix}/{name}/{RANDOM}": optional(v) for name, v in self.random_sd.items()}
        return estimate_keys(prefix, self.overall) | random | self.cluster_keys(prefix)

    def cluster_keys(self, prefix: str) -> dict[str, int | float | None]:
        """The flat keys of what the safety set is made of."""
        return {f"{prefix}/{CLUSTERS}": self.n_clusters, f"{prefix}/{LARGEST}": self.largest}

    def block_summary(self, prefix: str, block: str) -> dict[str, float | None]:
        """The flat keys of one block."""
        return estimate_keys(prefix, self.blocks[block])


def estimate_keys(prefix: str, e: Estimate) -> dict[str, float | None]:
    """The flat keys of how far the safety set agrees with itself."""
    values = {"": e.value, "/low": e.low, "/high": e.high}
    return {f"{prefix}/{SPLIT_HALF}{end}": optional(v) for end, v in values.items()}


def split_half(sums: RowSums, groups: Groups) -> Estimate:
    """The cosine to be expected of the mean of these rows with that of as many others, drawn in the same way.

    `A / (A (1 - h) + B h)`, A the mean product of rows in different clusters, B that of rows in one cluster (each with
    itself too), `h = sum n_c^2 / n^2`: what split halves of the clusters give on average once Spearman and Brown have
    made up for their being halves. Its root is by how much noise in the safety set shortens every cosine with its mean.
    NaN where rows have one cluster or are zero, or opposite clusters leave less of a mean than noise alone would.

    The interval is the jackknife's of the ratio of signal to noise in the mean, `A / (h (B - A))`, which knows no upper
    limit: near 1 the number itself is skewed, and its own interval misses too often under heavy tails. Undefined where
    the clusters do not differ at all (then the number is 1), or differ no longer when one is left out.
    """
    apart, counts = sums.apart(groups), groups.counts(0)
    by_cluster = cluster_sums(sums.inside[:, 0], groups.clusters, groups.n_clusters)
    inside = np.append(by_cluster.sum(), by_cluster.sum() - by_cluster)
    pairs = np.append((counts**2).sum(), (counts**2).sum() - counts**2)
    share = float((counts**2).sum()) / counts.sum() ** 2
    least = ROUNDING * float(sums.squares.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = (inside / pairs - apart) * share
        noise[noise <= least] = np.nan
        ratios = apart / noise
    if math.isnan(ratios[0]):
        return Estimate(1.0 if apart[0] > least else math.nan)
    if ratios[0] <= -1:
        return Estimate(math.nan)
    e = jackknife(float(ratios[0]), ratios[1:])
    return Estimate(_agreement(e.value), _agreement(e.low), _agreement(e.high))


def _agreement(ratio: float) -> float:
    """The cosine to be expected of two means with this ratio of signal to noise, cut at -1."""
    if ratio <= -1:
        return COSINE[0]
    return max(ratio / (1 + ratio), COSINE[0]) if math.isfinite(ratio) else math.nan


def random_direction_sd(table: Signals, safety: Signals) -> float:
    """Standard deviation of the mean cosine of a table's rows with one random direction, uniform in each block.

    `sqrt(sum_b ||m_b||^2 w_b / D_b)`: m_b the mean in block b of the rows at unit length, w_b the block's share of the
    squared norm of the mean safety gradient, D_b its number of parameters. 1.96 of them hold 95 % of directions.
    """
    shapes = {b.name: math.prod(b.shape) for b in safety.space.blocks}
    squares = np.sum([np.einsum("nk,nk->n", g, g) for g in (rows64(table, b) for b in table.blocks)], axis=0)
    toward = {b: float((mean_gradient(safety, b) ** 2).sum()) for b in table.blocks}
    whole, some = sum(toward.values()), squares > 0
    if not some.any() or whole <= 0:
        return math.nan
    lengths = np.divide(1.0, np.sqrt(squares), out=np.zeros_like(squares), where=some) / some.sum()
    unit = {b: lengths @ rows64(table, b) for b in table.blocks}
    return math.sqrt(sum(float(m @ m) * toward[b] / whole / shapes[b] for b, m in unit.items()))
