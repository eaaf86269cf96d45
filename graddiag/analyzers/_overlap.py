"""How far do the subspaces of two centred shifts overlap, and how far would they if nothing held them together?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._directions import agreement, leading
from graddiag.analyzers._replicated import Replicated, present_clusters
from graddiag.analyzers._states import States, centred
from graddiag.permutations import TIE, Null


@dataclass(frozen=True)
class Draws:
    """What every site is drawn with, so that draw number i is one and the same experiment at all sites: the order in
    which the tuned rows of each set meet its aligned ones [b, n], and the seed of random directions."""

    orders: tuple[Int[np.ndarray, "b _"], ...]
    seed: int

    @staticmethod
    def of(sizes: Sequence[int], n: int, seed: int) -> Draws:
        """`n` random matchings of the rows of sets of these sizes."""
        rng = np.random.default_rng(seed)
        shuffled = (rng.permuted(np.tile(np.arange(size), (n, 1)), axis=1) for size in sizes)
        return Draws(tuple(shuffled), seed)

    @property
    def n(self) -> int:
        """How many."""
        return len(self.orders[0])


def overlap(a: States, b: States, k: tuple[int, int]) -> Replicated:
    """`tr(P_A P_B) / min(k)` of the leading directions of both centred changes, and without each cluster in turn."""
    whole = [leading(centred(s.change), n) for s, n in zip((a, b), k, strict=True)]
    replicates = []
    for cluster in present_clusters(a.codes, b.codes).tolist():
        spaces = [_without(s, cluster, n, w) for s, n, w in zip((a, b), k, whole, strict=True)]
        replicates.append(agreement(*spaces))
    return Replicated(agreement(*whole), np.array(replicates, dtype=np.float64))


def _without(states: States, cluster: int, k: int, whole: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
    kept = states.codes != cluster
    if kept.all():
        return whole
    return leading(centred(states.change[kept]), k) if kept.sum() > k else np.full_like(whole, np.nan)


def matching_null(a: States, b: States, k: tuple[int, int], draws: Draws) -> Float[np.ndarray, " b"]:
    """The overlap once the tuned rows of each set are matched with its aligned rows by chance, before differencing."""
    tuned, aligned = ([centred(x) for x in side] for side in ((a.tuned, b.tuned), (a.aligned, b.aligned)))
    out = []
    for orders in zip(*draws.orders, strict=True):
        mixed = [t[order] - x for t, x, order in zip(tuned, aligned, orders, strict=True)]
        out.append(agreement(*(leading(m, n) for m, n in zip(mixed, k, strict=True))))
    return np.array(out, dtype=np.float64)


@dataclass(frozen=True)
class Chance:
    """What directions drawn by chance give: their overlap, and the share that those drawn for one set have in the
    squares of the other's centred changes, [b] each, under the pair (drawn for, read on)."""

    overlap: Float[np.ndarray, " b"]
    explained: Mapping[tuple[int, int], Float[np.ndarray, " b"]]


def random_null(width: int, k: tuple[int, int], draws: Draws) -> Float[np.ndarray, " b"]:
    """The overlap of two spaces whose directions are drawn alike in all directions."""
    rng = np.random.default_rng([draws.seed, 1])
    spaces = ([_orthonormal(rng.normal(size=(width, n))) for n in k] for _ in range(draws.n))
    return np.array([agreement(a, b) for a, b in spaces], dtype=np.float64)


def states_null(a: States, b: States, k: tuple[int, int], draws: Draws) -> Chance:
    """Two spaces whose directions are drawn like the states themselves: normal, with the covariance that the states of
    the aligned model have within the two sets, as Elsayed et al. (2016, Nature Communications 7, 13239) draw them."""
    rng = np.random.default_rng([draws.seed, 2])
    rows = np.concatenate([centred(s.aligned) for s in (a, b)])
    changes = [centred(s.change) for s in (a, b)]
    totals = [float((c**2).sum()) for c in changes]
    found, shares = [], np.full((2, 2, draws.n), np.nan)
    for i in range(draws.n):
        spaces = [_orthonormal(rows.T @ rng.normal(size=(len(rows), n))) for n in k]
        found.append(agreement(*spaces))
        for at, space in enumerate(spaces):
            for on, (change, total) in enumerate(zip(changes, totals, strict=True)):
                shares[at, on, i] = ((change @ space) ** 2).sum() / total if total and k[at] else math.nan
    return Chance(np.array(found, dtype=np.float64), {(x, y): shares[x, y] for x in (0, 1) for y in (0, 1)})


def _orthonormal(columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
    return np.asarray(np.linalg.qr(columns)[0])


@dataclass(frozen=True)
class Contrast:
    """The overlap of a control with B, what the overlap of A with B is beyond it, and that under relabellings of the
    clusters of A and the control [b], the real one first."""

    control: Replicated
    beyond: Replicated
    relabelled: Float[np.ndarray, " b"]


def contrast(a: States, b: States, control: States, k: tuple[int, int], draws: Draws) -> Contrast:
    """Is the overlap of A with B larger than that of a control with B? The control gets as many directions as A.

    Each set's mean is subtracted before clusters are relabelled: that the two move differently as a whole is no overlap
    of what is left.
    """
    at_b = leading(centred(b.change), k[1])
    rows = np.concatenate([centred(a.change), centred(control.change)])
    sides = np.repeat([1, -1], [len(a.codes), len(control.codes)])
    values = [_relabelled(rows, s, at_b, k[0]) for s in _sides(sides, a.codes, control.codes, draws)]
    return Contrast(*_with_replicates(a, b, control, k), np.array(values, dtype=np.float64))


def _sides(
    sides: Int[np.ndarray, " n"], mine: Int[np.ndarray, " a"], other: Int[np.ndarray, " c"], draws: Draws
) -> Iterator[Int[np.ndarray, " n"]]:
    """The sides of all rows as they are, then by chance: clusters of one side share out their labels anew, a cluster
    with rows of both (1 and -1) changes them or not."""
    yield sides
    rng = np.random.default_rng([draws.seed, 3])
    present, codes = np.unique(np.concatenate([mine, other]), return_inverse=True)
    both = np.isin(present, np.intersect1d(mine, other))
    own = np.where(np.isin(present, mine), 1, -1)
    for _ in range(draws.n):
        labels = own.copy()
        labels[~both] = rng.permutation(own[~both])
        tossed = 2 * rng.integers(0, 2, len(present)) - 1
        yield np.where(both[codes], sides * tossed[codes], labels[codes])


def _relabelled(
    rows: Float[np.ndarray, "n d"], sides: Int[np.ndarray, " n"], at_b: Float[np.ndarray, "d m"], k: int
) -> float:
    if min((sides == 1).sum(), (sides == -1).sum()) <= k:
        return math.nan
    mine, other = (agreement(leading(centred(rows[sides == s]), k), at_b) for s in (1, -1))
    return mine - other


def _with_replicates(a: States, b: States, control: States, k: tuple[int, int]) -> tuple[Replicated, Replicated]:
    clusters = present_clusters(a.codes, b.codes, control.codes)
    mine, other = (_spread(overlap(s, b, k), present_clusters(s.codes, b.codes), clusters) for s in (a, control))
    return other, mine.minus(other)


def _spread(found: Replicated, own: Int[np.ndarray, " c"], clusters: Int[np.ndarray, " m"]) -> Replicated:
    """The same number with replicates for more clusters: without one that it does not have, it is what it is."""
    replicates = np.full(len(clusters), found.value)
    replicates[np.searchsorted(clusters, own)] = found.replicates
    return Replicated(found.value, replicates)


def against(value: float, null: Float[np.ndarray, " b"]) -> Null:
    """The null with the real value first, one-sided: larger is more extreme."""
    return Null(np.concatenate([[value], null]), TIE * float(np.finfo(np.float64).eps), distances=False)
