"""How sure is a number: cosines, intervals and p-values that respect clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

LEVEL = 0.95  # of every interval
NORMAL = 1.96  # standard errors on each side of a number that such an interval has
COSINE = (-1.0, 1.0)  # the range of a cosine
EXHAUSTIVE = (
    14  # clusters up to which all sign patterns are tried: 2^13 patterns and their mirror images take milliseconds
)
DRAWS = 10_000  # random permutations; the Monte-Carlo error of p = 0.05 is then 0.002
CHUNK = 1_000  # sign patterns held at a time: 12 MB for 3,000 clusters
TIE = 16  # units of rounding; without it, sums that are equal but added in another order would not count as ties
ROUNDING = 1e-12  # a squared norm below this share of what it was summed from is rounding: its direction means nothing


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and its p-value; NaN where undefined or not asked for."""

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


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
    out = np.zeros((n_clusters, *values.shape[1:]))
    if len(values):
        order = np.argsort(clusters, kind="stable")
        present, starts = np.unique(clusters[order], return_index=True)
        out[present] = np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)
    return out


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
    low = high = math.nan
    if n > 1:
        error = math.sqrt((n - 1) / n * float(((replicates - value) ** 2).sum()))
        half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
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
    defined, codes, n_clusters = _defined(values, clusters)
    if not len(defined):
        return Estimate(math.nan)
    value = float(defined.mean())
    if n_clusters == 1:
        return Estimate(value)
    sums = cluster_sums(defined, codes, n_clusters)
    counts = np.bincount(codes, minlength=n_clusters)
    return jackknife(value, (sums.sum() - sums) / (len(defined) - counts), bounds=bounds)


def mean_difference(
    values: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Estimate:
    """The mean of paired differences, with its jackknife interval and the p of sign flips of whole clusters."""
    defined, codes, n_clusters = _defined(values, clusters)
    p = sign_flip_p(cluster_sums(defined, codes, n_clusters), seed=seed)
    return replace(cluster_mean(values, clusters, bounds=bounds), p=p)


def smallest_p(n_clusters: int) -> float:
    """The smallest p that sign flips of so many clusters can give; NaN for fewer than two."""
    if n_clusters < 2:
        return math.nan
    return 2.0 ** (1 - n_clusters) if n_clusters <= EXHAUSTIVE else 1 / (1 + DRAWS)


def sign_flip_p(sums: Float[np.ndarray, "c ..."], *, seed: int = 0) -> float:
    """p of `||sum_c s_c D_c||` over signs s, D_c the sum of a cluster's differences; two-sided where D_c is a number.

    All signs where there are at most 14 clusters, else `(1 + hits) / (1 + 10,000)` over random signs from `seed`; ties
    are hits. NaN for fewer than two clusters; 1 where every difference is zero.
    """
    rows = (sums if sums.ndim > 1 else sums[:, None]).astype(np.float64)
    scale = float(np.sqrt((rows**2).sum(axis=1)).sum())
    return _flip_p(len(rows), rows, scale, lambda signs, d: np.sqrt(((signs @ d) ** 2).sum(axis=1)), seed=seed)


def sign_flip_norm_p(gram: Float[np.ndarray, "c c"], *, seed: int = 0) -> float:
    """The same p for `||sum_c s_c D_c||^2`, given only the inner products `gram` of the cluster sums D_c.

    The diagonal is the same under every pattern and is left out, which keeps the rounding small.
    """
    apart = gram - np.diag(gram.diagonal())
    scale = float(np.abs(apart).sum())
    return _flip_p(len(gram), apart, scale, lambda signs, g: np.einsum("bc,bc->b", signs @ g, signs), seed=seed)


def permuted_partners(clusters: Int[np.ndarray, " p"], *, seed: int = 0) -> Int[np.ndarray, "p b"]:
    """The real pairing (column 0) and 10,000 random ones inside clusters: in column b, left i meets right [i, b]."""
    rng = np.random.default_rng(seed)
    out = np.repeat(np.arange(len(clusters), dtype=np.int32)[:, None], 1 + DRAWS, axis=1)
    for c in np.unique(clusters):
        rows = np.flatnonzero(clusters == c)
        if len(rows) > 1:
            out[rows, 1:] = rng.permuted(out[rows, 1:], axis=0)
    return out


def partner_permutation_p(cosines: Float[np.ndarray, "p p"], partners: Int[np.ndarray, "p b"]) -> float:
    """p of the mean paired cosine, the mean of the diagonal, among the pairings of `permuted_partners`.

    Two-sided about the mean of the null: the share of pairings, the real one included, at least as far from it as the
    real one. Undefined cosines are left out of each mean. NaN where no pairing moves a row: every cluster has one.
    """
    defined = np.isfinite(cosines)
    if not defined.diagonal().any() or (partners == partners[:, :1]).all():
        return math.nan
    filled = np.where(defined, cosines, 0.0)
    null = _sums_over(filled, partners)
    if defined.all():
        null /= len(partners)
    else:
        counts = _sums_over(defined.astype(np.float64), partners)
        null = null[counts > 0] / counts[counts > 0]
    distance = np.abs(null - null.mean())
    tie = TIE * np.finfo(np.float64).eps * np.abs(filled).max()
    return float(np.mean(distance >= distance[0] - tie))


def _sums_over(matrix: Float[np.ndarray, "p p"], partners: Int[np.ndarray, "p b"]) -> Float[np.ndarray, " b"]:
    total = np.zeros(partners.shape[1])
    for row, at in zip(matrix, partners, strict=True):  # row by row: one row stays in the processor's cache
        total += row.take(at)
    return total


def false_discovery_q(p: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """The false discovery rate at which each of several p-values would just be called; undefined ones stay NaN.

    Benjamini and Hochberg (1995): `q_(i) = min_{j >= i} m p_(j) / j`, for independent or positively dependent tests.
    """
    out = np.full(len(p), np.nan)
    defined = np.flatnonzero(np.isfinite(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    ranked = p[order] * len(order) / np.arange(1, len(order) + 1)
    out[order] = np.minimum.accumulate(ranked[::-1])[::-1]
    return out


def _defined(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"], int]:
    """The finite values, their clusters numbered without gaps, and how many clusters there are."""
    kept = np.isfinite(values)
    present, codes = np.unique(clusters[kept], return_inverse=True)
    return values[kept].astype(np.float64), codes, len(present)


def _flip_p(
    n_clusters: int,
    data: Float[np.ndarray, "c k"],
    scale: float,
    statistic: Callable[[Float[np.ndarray, "b c"], Float[np.ndarray, "c k"]], Float[np.ndarray, " b"]],
    *,
    seed: int,
) -> float:
    if n_clusters < 2 or not math.isfinite(scale):
        return math.nan
    if scale == 0:
        return 1.0
    exhaustive = n_clusters <= EXHAUSTIVE
    # Random signs carry a Monte-Carlo error of 0.002 anyway: single precision halves their cost.
    dtype = np.float64 if exhaustive or data.shape[1] == 1 else np.float32
    data = (data / scale).astype(dtype)
    least = statistic(np.ones((1, n_clusters), dtype), data)[0] - TIE * np.finfo(dtype).eps
    hits = tried = 0
    for signs in _sign_patterns(n_clusters, seed):
        hits += int(np.count_nonzero(statistic(signs.astype(dtype) * 2 - 1, data) >= least))
        tried += len(signs)
    return hits / tried if exhaustive else (1 + hits) / (1 + tried)


def _sign_patterns(n_clusters: int, seed: int) -> Iterator[Bool[np.ndarray, "b c"]]:
    """All patterns with a fixed last sign (a mirror image has the same statistic), or random ones in chunks."""
    if n_clusters <= EXHAUSTIVE:
        yield (np.arange(2 ** (n_clusters - 1))[:, None] >> np.arange(n_clusters)) & 1 == 1
        return
    rng = np.random.default_rng(seed)
    width = math.ceil(n_clusters / 8)
    for _ in range(DRAWS // CHUNK):
        raw = np.frombuffer(rng.bytes(CHUNK * width), dtype=np.uint8).reshape(CHUNK, width)
        yield np.unpackbits(raw, axis=1, count=n_clusters).astype(bool)
