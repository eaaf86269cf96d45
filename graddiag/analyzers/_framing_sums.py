"""What do pairs and safety rows add up to in each block, of which the framing gradient's numbers are made?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._cosines import mean_gradient, rows64
from graddiag.analyzers._projection_error import Influence, cosine_influence, ratio_influence
from graddiag.analyzers._two_samples import TwoSamples, places_apart
from graddiag.comparison import Comparison
from graddiag.signals import Signals
from graddiag.statistics import cluster_sums


@dataclass(frozen=True)
class Places:
    """At each place of the rows in one block: the sum of d over pairs, its squares summed, the mean safety gradient,
    and the squares of both expected gradients."""

    d: Float[np.ndarray, " k"]
    squares: Float[np.ndarray, " k"]
    toward: Float[np.ndarray, " k"]
    d_apart: Float[np.ndarray, " k"]
    toward_apart: Float[np.ndarray, " k"]

    def influences(self, total: Sums) -> dict[str, Influence]:
        """Of each place on the consistency and on the cosines with safety, whose sums over blocks are `total`."""
        d2, toward2, product = self.d**2, self.toward**2, self.d * self.toward
        length, inner = total.samples.first.square, total.with_safety.sum()
        n = float(total.samples.first.counts.sum()) or math.nan
        means = [inner / n, *(float(s.square_apart()[0]) for s in (total.samples.first, total.samples.second))]
        return {
            "consistency": ratio_influence(d2, self.squares, np.array([length, total.squares])),
            "safety_cosine": cosine_influence(
                np.stack([product, d2, toward2]), np.array([inner, length, total.safety_square])
            ),
            "safety_cosine_corrected": cosine_influence(
                np.stack([product / n, self.d_apart, self.toward_apart]), np.array(means)
            ),
        }


@dataclass(frozen=True)
class Sums:
    """Sums over pairs of which blocks can be added: what cluster sums of d and of the safety rows have in common."""

    samples: TwoSamples
    squares: float
    with_safety: Float[np.ndarray, " c"]
    safety_square: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.samples + other.samples,
            self.squares + other.squares,
            self.with_safety + other.with_safety,
            self.safety_square + other.safety_square,
        )


def block_sums(
    comparison: Comparison, safety: Signals | None, block: str
) -> tuple[Float[np.ndarray, "c k"], Sums, Places]:
    """The sums of d over the pairs of each cluster, their products, and what stands at each place."""
    left, right = comparison.left.gradients[block], comparison.right.gradients[block]
    d = np.subtract(left[comparison.left_index], right[comparison.right_index], dtype=np.float64)
    counts = np.bincount(comparison.clusters, minlength=len(comparison.cluster_names))
    by_cluster = cluster_sums(d, comparison.clusters, len(counts))
    toward, safe, safe_counts = _safety_sums(safety, block, d.shape[1])
    samples = TwoSamples.of(by_cluster, safe, counts, safe_counts)
    squares = np.asarray((d**2).sum(axis=0))
    sums = Sums(samples, float(squares.sum()), by_cluster @ toward, float(toward @ toward))
    apart = places_apart(by_cluster, counts), places_apart(safe, safe_counts)
    return by_cluster, sums, Places(np.asarray(d.sum(axis=0)), squares, toward, *apart)


def _safety_sums(
    safety: Signals | None, block: str, dim: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "c k"], Int[np.ndarray, " c"]]:
    """The mean of the finite safety rows, the sums of each of their clusters, and how many rows those have."""
    if safety is None:
        return np.zeros(dim), np.zeros((0, dim)), np.zeros(0, dtype=np.int64)
    kept = [c for c, k in zip(safety.clusters, safety.finite, strict=True) if k]
    codes = np.unique(np.array(kept), return_inverse=True)[1]
    counts = np.bincount(codes)
    return mean_gradient(safety, block), cluster_sums(rows64(safety, block), codes, len(counts)), counts
