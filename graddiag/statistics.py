"""How sure is a number: cosines, intervals and p-values that respect clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.special import stdtr, stdtrit

from graddiag.permutations import sign_flips

LEVEL = 0.95  # of every interval
_UPPER = 0.5 + LEVEL / 2
NORMAL = 1.96  # standard errors on each side of a number that such an interval has
COSINE = (-1.0, 1.0)  # the range of a cosine
ROUNDING = 1e-12  # a squared norm below this share of what it was summed from is rounding: its direction means nothing


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and its p-value; NaN where undefined or not asked for."""

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    def keys(self, stem: str, *, p: bool = True) -> dict[str, float | None]:
        """The flat keys `STEM`, `STEM/low`, `STEM/high` and, unless told otherwise, `STEM/p`; None where undefined."""
        found = {stem: self.value, f"{stem}/low": self.low, f"{stem}/high": self.high}
        return {k: optional(v) for k, v in (found | ({f"{stem}/p": self.p} if p else {})).items()}


def optional(value: float) -> float | None:
    """The value, or None where it is not finite: what JSON can hold."""
    return value if math.isfinite(value) else None


def cosine(
    inner: Float[np.ndarray, "*#s"], norm_a: Float[np.ndarray, "*#s"], norm_b: Float[np.ndarray, "*#s"]
) -> Float[np.ndarray, "*s"]:
    """`inner / (norm_a norm_b)`, in [-1, 1], NaN where a norm is zero; what rounding lifts above 1 is cut off."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(inner / norm_a / norm_b, dtype=np.float64)
    value[(norm_a == 0) | (norm_b == 0)] = np.nan
    return np.clip(value, *COSINE, out=value)


def mean(values: Float[np.ndarray, "*s"]) -> float:
    """Mean of the defined values; NaN where there is none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else math.nan


def share_negative(values: Float[np.ndarray, " n"]) -> float:
    """Share of the defined values that are below zero, 0..1; NaN where there is none."""
    return mean(np.where(np.isfinite(values), (values < 0).astype(np.float64), np.nan))


def cluster_sums(
    values: Float[np.ndarray, "n ..."], clusters: Int[np.ndarray, " n"], n_clusters: int
) -> Float[np.ndarray, "c ..."]:
    """Sums of the rows of each cluster 0 .. n_clusters - 1; zero for a cluster without rows."""
    if not len(values):
        return np.zeros((n_clusters, *values.shape[1:]))
    if values.ndim == 1:
        return np.bincount(clusters, weights=values, minlength=n_clusters)
    wide = values.reshape(len(values), -1)
    ones = (np.ones(len(values)), (clusters, np.arange(len(values))))
    sums = csr_array(ones, shape=(n_clusters, len(values))) @ wide
    return np.asarray(sums, dtype=np.float64).reshape(n_clusters, *values.shape[1:])


def jackknife(
    value: float, replicates: Float[np.ndarray, " c"], *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """The delete-one-cluster jackknife interval of a statistic.

    `replicates[c]` is the statistic without cluster c. Half-width `t(C - 1) sqrt((C - 1)/C sum_c (replicate_c -
    value)^2)`: the variance CV3 of MacKinnon, Nielsen and Webb (2023, arXiv 2301.04527). NaN where C < 2 or a
    replicate is undefined, or where the interval lies wholly outside `bounds`, at which value and interval are cut: an
    interval of no width would read as certainty.
    """
    n = len(replicates)
    if n < 2:
        return _with_interval(value, math.nan, bounds)
    return _with_interval(
        value, float(stdtrit(n - 1, _UPPER)) * math.sqrt(jackknife_variance(value, replicates)), bounds
    )


def jackknife_of_two(
    value: float,
    first: Float[np.ndarray, " c"],
    second: Float[np.ndarray, " k"],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The interval of a statistic of two independent samples, each of which is left a cluster out in turn.

    The variances of `jackknife` add; t has the degrees of freedom of Welch and Satterthwaite, no fewer than the smaller
    sample's. NaN where a sample has one cluster, and where `jackknife` is.
    """
    error, df = _error_of_two(value, first, second)
    half = math.nan if math.isnan(error) else float(stdtrit(df, _UPPER)) * error
    return _with_interval(value, half, bounds)


def contrast_of_two(value: float, first: Float[np.ndarray, " c"], second: Float[np.ndarray, " k"]) -> Estimate:
    """`jackknife_of_two`, and the two-sided p of the same t against 0.

    1 where the statistic is 0 under every deletion; NaN where it is another number under all of them, up to rounding,
    since nothing then tells its error.
    """
    error, df = _error_of_two(value, first, second)
    p = 1.0 if error == value == 0 else math.nan
    if error > ROUNDING * abs(value):
        p = float(2 * stdtr(df, -abs(value) / error))
    return replace(jackknife_of_two(value, first, second), p=p)


def _error_of_two(value: float, first: Float[np.ndarray, " c"], second: Float[np.ndarray, " k"]) -> tuple[float, float]:
    """The standard error and the degrees of freedom of its t."""
    freedom = np.array([len(first) - 1, len(second) - 1], dtype=np.float64)
    if freedom.min() < 1:
        return math.nan, math.nan
    variances = np.array([jackknife_variance(value, first), jackknife_variance(value, second)])
    total = float(variances.sum())
    shares = variances / total if total > 0 else np.array([0.5, 0.5])  # of no variance at all: any t will do
    return math.sqrt(total), 1 / float((shares**2 / freedom).sum())


def jackknife_variance(value: float, replicates: Float[np.ndarray, " c"]) -> float:
    """The squared standard error by which `jackknife` widens."""
    n = len(replicates)
    return (n - 1) / n * float(((replicates - value) ** 2).sum())


def _with_interval(value: float, half: float, bounds: tuple[float, float]) -> Estimate:
    low = high = math.nan
    if value + half > bounds[0] and value - half < bounds[1]:
        low, high = float(np.clip(value - half, *bounds)), float(np.clip(value + half, *bounds))
    return Estimate(float(np.clip(value, *bounds)), low, high)


def cluster_mean(
    values: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean of the defined values, with its jackknife interval over clusters; no p."""
    return jackknife(*_mean_without_each(values, clusters), bounds=bounds)


def difference_of_means(
    first: Float[np.ndarray, " n"],
    first_clusters: Int[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    second_clusters: Int[np.ndarray, " m"],
) -> Estimate:
    """The mean of one sample less that of another, independent one, with interval and p by `contrast_of_two`."""
    a, without_a = _mean_without_each(first, first_clusters)
    b, without_b = _mean_without_each(second, second_clusters)
    return contrast_of_two(a - b, without_a - b, a - without_b)


def _mean_without_each(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[float, Float[np.ndarray, " c"]]:
    """The mean of the defined values, and without each of their clusters in turn; of a single one, nothing is left."""
    defined, codes, n_clusters = _defined(values, clusters)
    if not len(defined):
        return math.nan, np.zeros(0)
    value = float(defined.mean())
    if n_clusters == 1:
        return value, np.full(1, math.nan)
    sums = cluster_sums(defined, codes, n_clusters)
    counts = np.bincount(codes, minlength=n_clusters)
    return value, (sums.sum() - sums) / (len(defined) - counts)


def wilson(values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> Estimate:
    """The share of ones among 0 and 1, with Wilson's interval (1927, JASA 22, 209); no p.

    Unlike a jackknife's it has a width where all are alike. A cluster counts as one observation, however many rows it
    has: on the safe side where its rows are not all alike. NaN of no value.
    """
    defined, _, n = _defined(values, clusters)
    if not n:
        return Estimate(math.nan)
    share, z = float(defined.mean()), NORMAL
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def mean_difference(
    values: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Estimate:
    """The mean of paired differences, with its jackknife interval and the p of sign flips of whole clusters."""
    defined, codes, n_clusters = _defined(values, clusters)
    p = sign_flips(cluster_sums(defined, codes, n_clusters), seed=seed).p
    return replace(cluster_mean(values, clusters, bounds=bounds), p=p)


def _defined(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"], int]:
    """The finite values, their clusters numbered without gaps, and how many clusters there are."""
    kept = np.isfinite(values)
    present, codes = np.unique(clusters[kept], return_inverse=True)
    return values[kept].astype(np.float64), codes, len(present)
