"""Experiments whose truth is known, drawn as arrays, and how often each claim of graddiag is made in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from graddiag.analyzers._rows import Rows, corrected_cosines, cosine_with_fixed
from graddiag.analyzers._safety_direction import split_half
from graddiag.permutations import (
    familywise_p,
    partner_permutations,
    permuted_partners,
    sign_flips,
    sign_flips_each,
    sign_flips_of_norm,
)
from graddiag.rules import FEW_CLUSTERS
from graddiag.statistics import COSINE, Estimate, cluster_mean, cluster_sums, jackknife

SIZES = (12, 40, 120)  # pairs
CLUSTER = 4  # rows of a cluster
ICC = 0.3  # intra-cluster correlation
DIM = 20  # numbers of a drawn gradient
BLOCKS = 100
BLOCK_DIM = 3  # numbers of a drawn gradient in each of many blocks
COMMON = 0.5  # share of the variance that all blocks have in common
PLANTED = 0.5  # cosine of the means that is put in
DRAWS = 999  # permutations: (1 + 49) / 1000 is exactly 5 %
ERRORS = 3.3  # Monte-Carlo standard errors that a rate may be off: one cell in 1,000 by chance

Outcome = Literal["nominal", "safe", "bad"]
Kind = Literal["rejected", "covered", "any block"]
NOMINAL: dict[Kind, float] = {"rejected": 0.05, "covered": 0.95, "any block": 0.05}


@dataclass(frozen=True)
class Design:
    """How rows are drawn; without `alike`, rows of a cluster have nothing in common."""

    n: int
    alike: bool
    heavy: bool

    def clusters(self, size: int) -> np.ndarray:
        """The cluster of each row, where `size` rows make one."""
        return np.arange(self.n) // size

    def draw(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Variance 1, mean 0, symmetric, [n, *shape]."""
        own = self._noise(rng, self.n, *shape)
        if not self.alike:
            return own
        shared = self._noise(rng, self.n // CLUSTER, *shape)[self.clusters(CLUSTER)]
        return math.sqrt(ICC) * shared + math.sqrt(1 - ICC) * own

    def _noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        return rng.standard_t(3, size=shape) / math.sqrt(3) if self.heavy else rng.normal(size=shape)

    def in_blocks(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Correlated blocks, [n, BLOCKS, size]."""
        each, common = self.draw(rng, BLOCKS, size), self.draw(rng, 1, size)
        return np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * each


@dataclass(frozen=True)
class Cell:
    """How often a claim was made in experiments in which it is false (covered: true). `tried` are those in which the
    number was measurable."""

    statistic: str
    kind: Kind
    source: str
    n: int
    alike: bool
    heavy: bool
    clusters: int
    tried: int
    drawn: int
    hits: int

    @property
    def rate(self) -> float:
        """Of the experiments in which the number was measurable."""
        return self.hits / self.tried if self.tried else math.nan

    @property
    def outcome(self) -> Outcome:
        """Within 3.3 Monte-Carlo standard errors of nominal, or off to the safe side, or to the bad one."""
        nominal = NOMINAL[self.kind]
        if not self.tried:  # nothing was ever claimed
            return "safe"
        off = (self.rate - nominal) / math.sqrt(nominal * (1 - nominal) / self.tried)
        bad = -off if self.kind == "covered" else off
        return "bad" if bad > ERRORS else "safe" if bad < -ERRORS else "nominal"

    @property
    def holds(self) -> bool:
        """Nominal with 10 clusters or more, never on the bad side with fewer."""
        return self.outcome == "nominal" or (self.outcome == "safe" and self.clusters < FEW_CLUSTERS)


Experiment = Callable[[np.random.Generator], dict[Kind, bool | None]]  # None: not measurable, nothing is claimed


def covers(e: Estimate, truth: float) -> bool | None:
    """Whether the interval holds the truth; None where there is none."""
    return None if math.isnan(e.low) else bool(e.low <= truth <= e.high)


def rejects(p: float) -> bool | None:
    """Whether p is at most 5 %; None where there is none."""
    return None if math.isnan(p) else bool(p <= NOMINAL["rejected"])


def mean_of_differences(design: Design, size: int) -> Experiment:
    """The loss gap, the difference in alignment: a mean of differences over pairs."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        values = design.draw(rng)
        p = sign_flips(cluster_sums(values, clusters, int(clusters[-1]) + 1), draws=DRAWS).p
        return {"covered": covers(cluster_mean(values, clusters), 0.0), "rejected": rejects(p)}

    return once


def framing(design: Design, size: int) -> Experiment:
    """The mean framing gradient, and its cosine with a direction with which it has nothing to do."""
    clusters = design.clusters(size)
    safety = np.random.default_rng(0).normal(size=DIM)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.draw(rng, DIM), clusters, int(clusters[-1]) + 1)
        gram = sums @ sums.T
        toward = cosine_with_fixed(gram, sums @ safety, float(safety @ safety), np.bincount(clusters))
        return {"rejected": rejects(sign_flips_of_norm(gram, draws=DRAWS).p), "covered": covers(toward, 0.0)}

    return once


def pairing(design: Design, size: int) -> Experiment:
    """Paired cosines of partners that are no more alike than other rows of their cluster."""
    partners = permuted_partners(design.clusters(size), draws=DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        return {"rejected": rejects(partner_permutations(_cosines(design, rng), partners).p)}

    return once


def _cosines(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Of left with right rows, which share what their cluster has in common."""
    both = design.draw(rng, 2 * DIM)
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (both[:, :DIM], both[:, DIM:]))
    return np.asarray(left @ right.T)


def cosine_of_means(design: Design, size: int) -> Experiment:
    """The cosine of two mean gradients, corrected for noise; partners are alike."""
    codes = design.clusters(size)
    at = np.arange(design.n)
    rows = Rows(design.n, design.n, at, at, codes, codes, int(codes[-1]) + 1, np.eye(design.n, dtype=bool))
    means = np.zeros((2, DIM))
    means[:, 0], means[1, :2] = 1.0, (PLANTED, math.sqrt(1 - PLANTED**2))

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        noise = design.draw(rng, 3, DIM) * SPREAD
        both = np.concatenate([means[k] + (noise[:, k] + noise[:, 2]) / math.sqrt(2) for k in (0, 1)])
        found = corrected_cosines(both @ both.T, rows)
        return {"covered": covers(jackknife(float(found[0]), found[1:], bounds=COSINE), PLANTED)}

    return once


def safety_split_half(design: Design, size: int) -> Experiment:
    """How well the direction of a mean gradient of length 1 is known, with noise of variance 1 in each number."""
    clusters = design.clusters(size)
    shared = ICC / (design.n // CLUSTER) if design.alike else 0.0
    noise = DIM * (shared + (1 - ICC if design.alike else 1.0) / design.n)
    mean = np.eye(DIM)[0]

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        rows = mean + design.draw(rng, DIM)
        return {"covered": covers(split_half(rows @ rows.T, clusters), 1 / (1 + noise))}

    return once


SPREAD = 0.4  # of a row's noise in each number, beside a mean gradient of length 1: its length is 1.8


def many_numbers(design: Design, size: int) -> Experiment:
    """The difference in alignment in many blocks."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.in_blocks(rng, 1)[:, :, 0], clusters, int(clusters[-1]) + 1)
        return {"any block": rejects(familywise_p(sign_flips_each(sums, draws=DRAWS)).min())}

    return once


def many_framings(design: Design, size: int) -> Experiment:
    """The mean framing gradient in many blocks."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.in_blocks(rng, BLOCK_DIM), clusters, int(clusters[-1]) + 1)
        nulls = [sign_flips_of_norm(sums[:, b] @ sums[:, b].T, draws=FEW_DRAWS) for b in range(BLOCKS)]
        return {"any block": rejects(familywise_p(nulls).min())}

    return once


def many_pairings(design: Design, size: int) -> Experiment:
    """Paired cosines in many blocks."""
    partners = permuted_partners(design.clusters(size), draws=FEW_DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        left, right = (design.in_blocks(rng, BLOCK_DIM) for _ in range(2))
        left, right = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (left, right))
        nulls = [partner_permutations(left[:, b] @ right[:, b].T, partners) for b in range(BLOCKS)]
        return {"any block": rejects(familywise_p(nulls).min())}

    return once


FEW_DRAWS = 199  # permutations in many blocks: (1 + 9) / 200 is exactly 5 %

# Partners can only be permuted inside clusters of several rows: those there are, also where rows are not alike.
STATISTICS: dict[str, tuple[Callable[[Design, int], Experiment], bool]] = {
    "mean difference": (mean_of_differences, False),
    "framing": (framing, False),
    "pairing": (pairing, True),
    "cosine of means": (cosine_of_means, False),
    "safety split half": (safety_split_half, False),
    "difference, 100 blocks": (many_numbers, False),
    "framing, 100 blocks": (many_framings, False),
    "pairing, 100 blocks": (many_pairings, True),
}


def designs() -> Iterator[Design]:
    """All of them."""
    for n in SIZES:
        for alike in (False, True):
            for heavy in (False, True):
                yield Design(n, alike, heavy)


def cells(statistic: str, design: Design, repeats: int, seed: int) -> list[Cell]:
    """One cell for each claim that a statistic makes."""
    make, needs_clusters = STATISTICS[statistic]
    size = CLUSTER if design.alike or needs_clusters else 1
    once, rng = make(design, size), np.random.default_rng(seed)
    found = [once(rng) for _ in range(repeats)]
    where = Where(statistic, "drawn", design, design.n // size)
    return [tally(where, kind, [f[kind] for f in found]) for kind in found[0]]


@dataclass(frozen=True)
class Where:
    """What a cell is about."""

    statistic: str
    source: str
    design: Design
    clusters: int


def tally(where: Where, kind: Kind, answers: Sequence[bool | None]) -> Cell:
    """The cell of many experiments."""
    known = [a for a in answers if a is not None]
    counts = {"tried": len(known), "drawn": len(answers), "hits": sum(known)}
    d = where.design
    return Cell(where.statistic, kind, where.source, d.n, d.alike, d.heavy, where.clusters, **counts)


@dataclass(frozen=True)
class Check:
    """A number that must reach another."""

    what: str
    found: float
    wanted: str
    holds: bool


def planted_shift(repeats: int, *, n: int = 40, seed: int = 0) -> Check:
    """How often a shift is found at which Student's t test has a power of 80 %: sign flips may lose 2 % of that."""
    freedom, at = n - 1, float(stats.t.ppf(0.975, n - 1))
    shift = float(optimize.brentq(lambda d: stats.nct.sf(at, freedom, d * math.sqrt(n)) - 0.8, 0.1, 2.0))
    rng = np.random.default_rng(seed)
    found = float(np.mean([sign_flips(rng.normal(shift, 1, size=n), draws=DRAWS).p <= 0.05 for _ in range(repeats)]))
    least = 0.8 - 0.02 - ERRORS * math.sqrt(0.16 / repeats)
    return Check(f"a shift of {shift:.3f} standard deviations is found in {n} pairs", found, "0.8", found >= least)
