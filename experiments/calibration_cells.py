"""How experiments are drawn, and how often a claim was made in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graddiag.rules import FEW_CLUSTERS
from graddiag.statistics import Estimate

SIZES = (12, 40, 120)  # pairs
CLUSTER = 4  # rows of a cluster
ICC = 0.3  # intra-cluster correlation
BLOCKS = 100
COMMON = 0.5  # share of the variance that all blocks have in common
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


def covers(e: Estimate, truth: float) -> bool | None:
    """Whether the interval holds the truth; None where there is none."""
    return None if math.isnan(e.low) else bool(e.low <= truth <= e.high)


def rejects(p: float) -> bool | None:
    """Whether p is at most 5 %; None where there is none."""
    return None if math.isnan(p) else bool(p <= NOMINAL["rejected"])


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
