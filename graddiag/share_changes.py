"""How did a share of answers change between two models that were asked the same prompts?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

from graddiag.permutations import sign_flips
from graddiag.relabelling import Relabellings
from graddiag.statistics import NORMAL, Estimate, cluster_sums, mean

Changes = tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]
"""Prompt by prompt 1 where only the later model's answer counts, -1 where only the earlier one's, else 0; clusters."""


def share_change(changes: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """The mean of changes -1, 0 and 1, an interval, and the exact p of prompts whose answers differ.

    The interval is that of Bonett and Price (2012, Journal of Educational and Behavioral Statistics 37, 479): one
    prompt more is counted as lost and one as gained, so that it has a width where all prompts are alike. A cluster
    counts as one observation, on the safe side where its prompts are not all alike. p turns the signs of whole
    clusters, which without clusters is McNemar's exact test; 1 where nothing differs. NaN of no prompt, p of one
    cluster.
    """
    names, codes = np.unique(clusters, return_inverse=True)
    n = len(names)
    if not n:
        return Estimate(math.nan)
    gained, lost = (n * float(np.mean(changes == side)) + 1 for side in (1, -1))
    middle, either = (gained - lost) / (n + 2), (gained + lost) / (n + 2)
    half = NORMAL * math.sqrt(max(either - middle**2, 0.0) / (n + 2))
    p = _flipped(cluster_sums(changes, codes, n), seed) if n > 1 else math.nan
    return Estimate(mean(changes), max(-1.0, middle - half), min(1.0, middle + half), p)


def _flipped(sums: Float[np.ndarray, " c"], seed: int) -> float:
    """p of sign flips; of clusters alike in size, by the binomial distribution: exact whatever their number."""
    moved = sums[sums != 0]
    if len(set(np.abs(moved))) > 1:
        return sign_flips(moved, seed=seed).p
    return float(binomtest(int((moved > 0).sum()), len(moved)).pvalue) if len(moved) else 1.0


def difference_of_changes(first: Changes, second: Changes, *, seed: int = 0) -> Estimate:
    """The change of one set's share less that of another set's, -2..2, whose prompts are independent samples.

    The interval is that of `apart`. p shares the clusters out anew among the sets (`Relabellings`): small where one
    set's prompts change otherwise than the other's. NaN where a set has no prompt.
    """
    difference = apart(share_change(*first), share_change(*second))
    return replace(difference, p=_relabelled(first, second, seed)) if math.isfinite(difference.value) else difference


def apart(a: Estimate, b: Estimate) -> Estimate:
    """One number less another, independent one, with the interval that their two intervals give (Zou and Donner 2008,
    Statistics in Medicine 27, 1693); no p."""
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    return Estimate(value, low, value + math.hypot(a.high - a.value, b.value - b.low))


def _relabelled(first: Changes, second: Changes, seed: int) -> float:
    codes = [np.unique(clusters, return_inverse=True)[1] for _, clusters in (first, second)]
    sizes = [np.bincount(c) for c in codes]
    middle = float(np.concatenate([first[0], second[0]]).mean())
    sums = [np.bincount(c, weights=rows - middle) for c, (rows, _) in zip(codes, (first, second), strict=True)]
    moved = np.concatenate([sums[0], -sums[1]])
    none = [np.zeros_like(s) for s in sizes]
    ways = Relabellings.of(np.concatenate([sizes[0], none[1]]), np.concatenate([none[0], sizes[1]]), seed=seed)
    return ways.null(np.outer(moved, moved)).p
