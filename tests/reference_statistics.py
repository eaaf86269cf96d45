"""The same numbers, slow and obviously right: one vector at a time, double loops, every cluster really deleted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

Rows = Sequence[np.ndarray] | np.ndarray
Labels = Sequence[str]


def cos(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two vectors; NaN where one is zero."""
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else math.nan


def mean(values: Sequence[float]) -> float:
    """The mean of those that are defined."""
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def within(rows: Rows) -> float:
    """Mean cosine over i != j."""
    return mean([cos(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])


def across(left: Rows, right: Rows, left_ids: Labels, right_ids: Labels) -> float:
    """Mean cosine of rows on different sides that are no partners."""
    pairs = itertools.product(zip(left, left_ids, strict=True), zip(right, right_ids, strict=True))
    return mean([cos(a, b) for (a, i), (b, j) in pairs if i != j])


def same_cluster(sides: tuple[Rows, Rows], ids: tuple[Labels, Labels], clusters: tuple[Labels, Labels]) -> float:
    """Mean cosine of rows on different sides, in one cluster, that are no partners."""
    out = []
    for i, a in enumerate(sides[0]):
        for j, b in enumerate(sides[1]):
            if clusters[0][i] == clusters[1][j] and ids[0][i] != ids[1][j]:
                out.append(cos(a, b))
    return mean(out)


def apart(left: Rows, right: Rows, left_clusters: Labels, right_clusters: Labels) -> float:
    """Mean inner product of rows in different clusters."""
    out = []
    for a, c in zip(left, left_clusters, strict=True):
        for b, d in zip(right, right_clusters, strict=True):
            if c != d:
                out.append(float(a @ b))
    return mean(out)


def corrected(left: Rows, right: Rows, left_clusters: Labels, right_clusters: Labels) -> float:
    """Cosine of the expected gradients from products of rows in different clusters only."""
    square_left = apart(left, left, left_clusters, left_clusters)
    square_right = apart(right, right, right_clusters, right_clusters)
    if not (square_left > 0 and square_right > 0):
        return math.nan
    return apart(left, right, left_clusters, right_clusters) / math.sqrt(square_left * square_right)


def jackknife(statistic: Callable[[set[str]], float], clusters: set[str]) -> tuple[float, float]:
    """The interval of a statistic of the rows whose cluster is in a set."""
    n = len(clusters)
    if n < 2:
        return math.nan, math.nan
    value = statistic(clusters)
    variance = (n - 1) / n * sum((statistic(clusters - {c}) - value) ** 2 for c in clusters)
    half = t.ppf(0.975, n - 1) * math.sqrt(variance)
    return value - half, value + half


def mean_with_interval(values: Sequence[float], clusters: Labels) -> tuple[float, float, float]:
    """The mean and its jackknife interval."""

    def of(some: set[str]) -> float:
        return mean([v for v, c in zip(values, clusters, strict=True) if c in some])

    return of(set(clusters)), *jackknife(of, set(clusters))


def sign_flip_p(sums: Sequence[np.ndarray]) -> float:
    """The share of all sign patterns with a sum at least as long as the real one."""
    real = np.linalg.norm(np.sum(sums, axis=0))
    patterns = list(itertools.product((-1, 1), repeat=len(sums)))
    lengths = [np.linalg.norm(sum(s * d for s, d in zip(p, sums, strict=True))) for p in patterns]
    return float(np.mean([x >= real - 1e-12 for x in lengths]))


def label_distances(left: Rows, right: Rows, clusters: tuple[Labels, Labels]) -> list[float]:
    """The squared distance of the two means, as the labels are (first) and under every other way to name sides: a
    cluster with rows of both sides changes them or does not, those of one side share out their labels."""
    rows = [
        *zip(left, clusters[0], "L" * len(left), strict=True),
        *zip(right, clusters[1], "R" * len(right), strict=True),
    ]
    names = list(dict.fromkeys(c for _, c, _ in rows))
    sides = {name: {side for _, c, side in rows if c == name} for name in names}
    both, alone = ([n for n in names if len(sides[n]) == k] for k in (2, 1))
    n_left = sum(sides[n] == {"L"} for n in alone)

    def distance(turned: set[str]) -> float:
        of = {"L": [], "R": []}
        for row, c, side in rows:
            of[{"L": "R", "R": "L"}[side] if c in turned else side].append(row)
        difference = np.mean(of["L"], axis=0) - np.mean(of["R"], axis=0)
        return float(difference @ difference)

    out = [distance(set())]
    for coins in itertools.product((False, True), repeat=len(both)):
        for lefts in itertools.combinations(alone, n_left):
            changed = {n for n in alone if (n in lefts) != (sides[n] == {"L"})}
            out.append(distance(changed | set(itertools.compress(both, coins))))
    return out


def label_p(distances: Sequence[float]) -> float:
    """The share of relabellings with means at least as far apart as the real ones, which come first."""
    return float(np.mean([d >= distances[0] - 1e-12 for d in distances[1:]]))


def partner_p(cosines: np.ndarray, clusters: Labels) -> float:
    """The share of all pairings inside clusters whose mean is at least as far from the mean of all as the real one."""
    groups = [[i for i, c in enumerate(clusters) if c == name] for name in dict.fromkeys(clusters)]
    means = []
    for choice in itertools.product(*(itertools.permutations(g) for g in groups)):
        at = dict(zip(itertools.chain(*groups), itertools.chain(*choice), strict=True))
        means.append(mean([float(cosines[i, j]) for i, j in at.items()]))
    real, middle = mean([float(x) for x in np.diagonal(cosines)]), mean(means)
    return sum(abs(m - middle) >= abs(real - middle) - 1e-12 for m in means) / len(means)


def consistency(differences: Rows) -> float:
    """`n ||mean d||^2 / mean ||d||^2`."""
    n = len(differences)
    middle = np.mean(differences, axis=0)
    return float(n * (middle @ middle) / (sum(float(d @ d) for d in differences) / n))


def cluster_totals(rows: Rows, clusters: Labels) -> list[np.ndarray]:
    """The sum of the rows of each cluster."""
    return [
        sum((r for r, c in zip(rows, clusters, strict=True) if c == name), np.zeros_like(rows[0]))
        for name in dict.fromkeys(clusters)
    ]


def interaction(
    first: Sequence[float], first_clusters: Labels, second: Sequence[float], second_clusters: Labels
) -> tuple[float, float, float, float]:
    """The mean of one sample less that of another, Welch's interval from really deleted clusters, and p of the same
    t."""
    value = mean(first) - mean(second)
    variances, freedom = [], []
    for values, clusters in ((first, first_clusters), (second, second_clusters)):
        found = list(dict.fromkeys(clusters))
        left = [mean([v for v, k in zip(values, clusters, strict=True) if k != c]) for c in found]
        variances.append((len(found) - 1) / len(found) * sum((x - mean(values)) ** 2 for x in left))
        freedom.append(len(found) - 1)
    error = math.sqrt(sum(variances))
    df = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True))
    half = t.ppf(0.975, df) * error
    return value, value - half, value + half, 2 * t.sf(abs(value) / error, df)
