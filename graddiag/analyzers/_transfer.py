"""Do two sets move the same way, and do the directions of one explain the held-out rows of the other?"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from graddiag.analyzers._directions import leading
from graddiag.analyzers._replicated import Replicated, present_clusters
from graddiag.analyzers._rows import apart_with_deletions
from graddiag.analyzers._states import States, centred
from graddiag.statistics import ROUNDING, cluster_sums


def mean_cosine(a: States, b: States) -> Replicated:
    """The cosine of the two expected changes, from products of rows in different clusters only; not cut at 1.

    NaN, not measurable, where a corrected squared norm is not above zero.
    """
    clusters = present_clusters(a.codes, b.codes)
    sides = [(s.change, np.searchsorted(clusters, s.codes)) for s in (a, b)]
    means = []
    for (x, at_x), (y, at_y) in ((sides[0], sides[0]), (sides[1], sides[1]), (sides[0], sides[1])):
        means.append(apart_with_deletions(x @ y.T, at_x, at_y, len(clusters)))
    for k, (rows, _) in enumerate(sides):
        means[k][means[k] <= ROUNDING * float((rows**2).sum()) / len(rows)] = math.nan
    found = means[2] / np.sqrt(means[0]) / np.sqrt(means[1])
    return Replicated(float(found[0]), np.asarray(found[1:]))


def split_clusters(sets: tuple[States, States], seed: int) -> Bool[np.ndarray, " c"]:
    """Which clusters are in the first half, by number: of those in one set only, and of those in both, half each."""
    rng = np.random.default_rng([seed, 4])
    member = [np.unique(s.codes) for s in sets]
    out = np.zeros(int(max(m.max() for m in member)) + 1, dtype=bool)
    both = np.intersect1d(member[0], member[1])
    for group in (both, *(np.setdiff1d(m, both) for m in member)):
        mixed = rng.permutation(group)
        out[mixed[: (len(mixed) + 1) // 2]] = True
    return out


def transfer(fit: States, read: States, k: int, halves: Bool[np.ndarray, " c"]) -> Replicated:
    """Share of the squares of `read`'s centred changes along the first k directions of `fit`, on held-out rows.

    The directions come from one half of the clusters and are read on the rows of the other half, both ways; every row
    is read once, by directions that were fitted without its cluster. Replicates leave a cluster out of the reading, not
    of the fit. NaN where a half has no more rows than directions.
    """
    clusters = present_clusters(read.codes)
    sums = np.zeros((len(clusters), 2))
    for half in (True, False):
        fitted, held_out = fit.change[halves[fit.codes] == half], halves[read.codes] != half
        if not k or len(fitted) <= k or not held_out.any():
            return Replicated(math.nan, np.full(len(clusters), math.nan))
        rows, basis = centred(read.change[held_out]), leading(centred(fitted), k)
        squares = np.stack([((rows @ basis) ** 2).sum(axis=1), (rows**2).sum(axis=1)], axis=1)
        sums += cluster_sums(squares, np.searchsorted(clusters, read.codes[held_out]), len(clusters))
    return _share(sums)


def _share(sums: Float[np.ndarray, "c 2"]) -> Replicated:
    total = sums.sum(axis=0)
    left = total - sums
    value = float(total[0] / total[1]) if total[1] > 0 else math.nan
    replicates = np.divide(left[:, 0], left[:, 1], out=np.full(len(left), np.nan), where=left[:, 1] > 0)
    return Replicated(value, replicates)
