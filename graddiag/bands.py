"""How sure is a whole curve: a band that holds all of it at once, clusters being the unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2, t

from graddiag.statistics import LEVEL, cluster_mean

BAND_DRAWS = 2_000  # the Monte-Carlo error of the 5 % quantile of the smallest p is then a tenth of it
MIN_ROWS = 5  # at a point: fewer say more about themselves than about it


@dataclass(frozen=True)
class Band:
    """A mean per point of a curve, and its simultaneous 95 % band; NaN where it is undefined.

    `n[t]` rows have the point. The band is undefined at points of fewer than 5 rows or 2 clusters, and those are not
    among the points that it covers.
    """

    mean: Float[np.ndarray, " t"]
    low: Float[np.ndarray, " t"]
    high: Float[np.ndarray, " t"]
    n: Int[np.ndarray, " t"]


def simultaneous_band(values: Float[np.ndarray, "n t"], clusters: Int[np.ndarray, " n"], *, seed: int = 0) -> Band:
    """Means over rows at each point, NaN for a row without it, and a band that covers all points at once.

    The half-width is `t_{C_t - 1}(1 - a / 2) se_t`, with the delete-one-cluster jackknife's standard error and the C_t
    clusters that reach the point: for one point, the interval of `cluster_mean`. `a` is the 5 % quantile of the
    smallest two-sided p over points in 2,000 draws of a clustered multiplier bootstrap with standard normal
    multipliers (Montiel Olea and Plagborg-Moller 2019 on the sup-t band; Chernozhukov, Chetverikov and Kato 2013 on
    the multipliers). Each draw has one random scale too, as a t has, so that few clusters widen the band.
    """
    present = np.isfinite(values)
    n = present.sum(axis=0)
    mean = np.divide(np.where(present, values, 0).sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0)
    low, high = np.full(len(n), np.nan), np.full(len(n), np.nan)
    codes = np.unique(clusters, return_inverse=True)[1]
    reach = np.zeros((int(codes.max(initial=-1)) + 1, len(n)), dtype=bool)
    np.logical_or.at(reach, codes, present)
    n_clusters = reach.sum(axis=0)
    known = np.flatnonzero((n >= MIN_ROWS) & (n_clusters > 1))
    if len(known):
        parts = np.zeros((len(reach), len(known)))
        np.add.at(parts, codes, np.where(present, values - mean, 0.0)[:, known])
        freedom = n_clusters[known] - 1
        half = np.array([_half(values[:, k], codes) for k in known]) * _widening(parts, freedom, seed=seed)
        low[known], high[known] = mean[known] - half, mean[known] + half
    return Band(mean, low, high, n)


def _half(values: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]) -> float:
    """The half-width of a single interval."""
    single = cluster_mean(values, codes)
    return (single.high - single.low) / 2


def _widening(parts: Float[np.ndarray, "c t"], freedom: Int[np.ndarray, " t"], *, seed: int) -> Float[np.ndarray, " t"]:
    """How much wider than a single interval the band is at each point; `parts` are the clusters' shares of the mean."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt((parts**2).sum(axis=0))
    unit = np.divide(parts, scale, out=np.zeros_like(parts), where=scale > 0)
    normal = np.abs(rng.standard_normal((BAND_DRAWS, len(parts))) @ unit)
    spread = rng.random((BAND_DRAWS, 1))  # one for all points: they share their clusters
    some, at = np.unique(freedom, return_inverse=True)
    scales = np.sqrt(chi2.ppf(spread, some) / some)[:, at]
    smallest = (2 * t.sf(normal / scales, freedom)).min(axis=1)
    level = np.quantile(smallest, 1 - LEVEL)
    return np.asarray(np.maximum(t.isf(level / 2, freedom) / t.isf((1 - LEVEL) / 2, freedom), 1.0))
