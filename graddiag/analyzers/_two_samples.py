"""Which way does one expected gradient point relative to another, where each is known from a sample of its own?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.statistics import COSINE, ROUNDING, Estimate, jackknife_of_two


@dataclass(frozen=True)
class Sample:
    """Of the sums of rows of each cluster: their squared norms `inside`, their products `toward` with the sum of all
    rows, and the `counts` of rows. Those of several blocks add up."""

    inside: Float[np.ndarray, " c"]
    toward: Float[np.ndarray, " c"]
    counts: Int[np.ndarray, " c"]

    @staticmethod
    def of(sums: Float[np.ndarray, "c d"], counts: Int[np.ndarray, " c"]) -> Sample:
        """That of the sums of rows of each cluster in one block."""
        return Sample(np.einsum("cd,cd->c", sums, sums), sums @ sums.sum(axis=0), counts)

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.inside + other.inside, self.toward + other.toward, self.counts)

    @property
    def square(self) -> float:
        """Squared norm of the sum of all rows."""
        return float(self.toward.sum())

    def square_apart(self) -> Float[np.ndarray, " d"]:
        """Squared norm of the expected gradient: with all clusters (entry 0), then without each in turn.

        `(||sum g||^2 - sum_c ||sum_{i in c} g_i||^2) / (n^2 - sum n_c^2)`, the mean product of rows in different
        clusters; NaN where that is not above zero, or no two rows are in different clusters.
        """
        squares = (self.counts.astype(np.float64) ** 2).sum()
        out = _apart(self.inside, 2 * self.toward, self.counts)
        least = ROUNDING * self.inside.sum() / squares if squares else math.nan
        return np.where(out > least, out, np.nan)


@dataclass(frozen=True)
class TwoSamples:
    """Two sets of rows that have nothing to do with each other, as products of which blocks can be added.

    `across` has the products of the cluster sums of the first with the sum of all rows of the second, `back` those of
    the second's with the sum of the first.
    """

    first: Sample
    second: Sample
    across: Float[np.ndarray, " c"]
    back: Float[np.ndarray, " k"]

    @staticmethod
    def of(
        first: Float[np.ndarray, "c d"],
        second: Float[np.ndarray, "k d"],
        first_counts: Int[np.ndarray, " c"],
        second_counts: Int[np.ndarray, " k"],
    ) -> TwoSamples:
        """Those of the sums of rows of each cluster in one block."""
        samples = Sample.of(first, first_counts), Sample.of(second, second_counts)
        return TwoSamples(*samples, first @ second.sum(axis=0), second @ first.sum(axis=0))

    def __add__(self, other: TwoSamples) -> TwoSamples:
        samples = self.first + other.first, self.second + other.second
        return TwoSamples(*samples, self.across + other.across, self.back + other.back)

    def cosine(self) -> Estimate:
        """The cosine of the two expected gradients, without the noise of the means.

        The mean product across over the roots of both `square_apart`; nothing is left out across, since no row of one
        sample tells anything about a row of the other. Its interval is that of the delete-one-cluster jackknife over
        both samples. NaN, not measurable, where a squared norm is not above zero; without interval where it no longer
        is once a cluster is left out.
        """
        first, second = self.first.square_apart(), self.second.square_apart()
        if not math.isfinite(first[0] * second[0]):
            return Estimate(math.nan)
        n, m, total = self.first.counts, self.second.counts, self.across.sum()
        value = float(total / n.sum() / m.sum() / math.sqrt(first[0]) / math.sqrt(second[0]))
        replicates = []
        for counts, sums, own, other, others in (
            (n, self.across, first, second, m),
            (m, self.back, second, first, n),
        ):
            left = (counts.sum() - counts).astype(np.float64)
            means = np.divide(total - sums, left, out=np.full(len(left), np.nan), where=left > 0) / others.sum()
            replicates.append(means / np.sqrt(own[1:]) / math.sqrt(other[0]))
        return jackknife_of_two(value, replicates[0], replicates[1], bounds=COSINE)


def products_apart(products: Float[np.ndarray, "c c"], counts: Int[np.ndarray, " c"]) -> Float[np.ndarray, " d"]:
    """Mean product of rows in different clusters, from the products of the sums of rows of each: with all clusters
    (entry 0), then without each in turn; NaN where no two rows are in different clusters.

    `products[c, k]` may be of two numbers of a row, one for c and another for k: the noise that a row has in both is
    then in none of the products that count.
    """
    return _apart(products.diagonal(), products.sum(axis=1) + products.sum(axis=0), counts)


def _apart(
    inside: Float[np.ndarray, " c"], both: Float[np.ndarray, " c"], counts: Int[np.ndarray, " c"]
) -> Float[np.ndarray, " d"]:
    """`products_apart` from the diagonal, and the sum of each row and its column."""
    at = counts.astype(np.float64)
    total, n = float(both.sum()) / 2, float(at.sum())
    apart = np.append(total, total - both + inside) - np.append(inside.sum(), inside.sum() - inside)
    squares = (at**2).sum()
    pairs = np.append(n, n - at) ** 2 - np.append(squares, squares - at**2)
    out = np.full(len(apart), np.nan)
    np.divide(apart, pairs, out=out, where=pairs > 0)
    return out


def places_apart(sums: Float[np.ndarray, "c d"], counts: Int[np.ndarray, " c"]) -> Float[np.ndarray, " d"]:
    """What each place adds to the squared norm of the expected gradient; NaN where all rows are in one cluster."""
    pairs = float(counts.sum() ** 2 - (counts**2).sum())
    products = np.asarray(sums.sum(axis=0) ** 2 - (sums**2).sum(axis=0))
    return products / pairs if pairs else np.full(len(products), np.nan)
