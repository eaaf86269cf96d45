"""One number, and what it is without each cluster in turn: numbers of several sites can then be averaged as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.statistics import Estimate, jackknife


@dataclass(frozen=True)
class Replicated:
    """A number and its delete-one-cluster replicates [c]; NaN where undefined."""

    value: float
    replicates: Float[np.ndarray, " c"]

    def estimate(self, bounds: tuple[float, float], *, p: float = math.nan) -> Estimate:
        """The number with its jackknife interval, cut at `bounds`."""
        if not math.isfinite(self.value):
            return Estimate(math.nan)
        found = jackknife(self.value, self.replicates, bounds=bounds)
        return Estimate(found.value, found.low, found.high, p)

    def minus(self, other: Replicated) -> Replicated:
        """The difference of two numbers with the same clusters."""
        return Replicated(self.value - other.value, self.replicates - other.replicates)

    @staticmethod
    def mean(parts: Sequence[Replicated]) -> Replicated:
        """The mean of those that are defined, with the same clusters in all; NaN where none is."""
        known = [p for p in parts if math.isfinite(p.value)]
        if not known:
            return Replicated(math.nan, np.zeros(0))
        replicates = np.mean([p.replicates for p in known], axis=0)
        return Replicated(float(np.mean([p.value for p in known])), np.asarray(replicates, dtype=np.float64))


def present_clusters(*codes: Int[np.ndarray, " _"]) -> Int[np.ndarray, " c"]:
    """The numbers of all clusters that rows of some set are in."""
    return np.unique(np.concatenate(codes))
