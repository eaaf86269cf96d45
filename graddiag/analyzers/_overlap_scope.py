"""The numbers of an overlap, at one site or on average over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._overlap import Chance, Contrast, against
from graddiag.analyzers._replicated import Replicated
from graddiag.statistics import COSINE, Estimate, optional

SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)  # of two shares


@dataclass(frozen=True)
class SiteReading:
    """All that was computed at one site, with replicates and draws; sets are 0 (A) and 1 (B)."""

    k: tuple[int, int]
    overlap: Replicated
    angles: tuple[float, ...]
    matching: Float[np.ndarray, " b"]
    random: Float[np.ndarray, " b"]
    chance: Chance
    mean_cosine: Replicated
    transfer: Mapping[tuple[int, int], Replicated]
    contrasts: Mapping[str, Contrast]


@dataclass(frozen=True)
class Against:
    """What a number is on average under a null, and the share of draws, the real one included, that reach it."""

    mean: float
    p: float


@dataclass(frozen=True)
class Transferred:
    """The share of a set's centred squares along another's directions, on held-out rows; `states` is the mean of that
    along as many directions drawn like the states, a comparison and no test."""

    share: Estimate
    states: float


@dataclass(frozen=True)
class BesideControl:
    """The overlap of a control with B, and by how much that of A is larger, with the p of relabelled clusters."""

    overlap: Estimate
    beyond: Estimate


@dataclass(frozen=True)
class SubspaceScope:
    """The overlap at one site, or the means over several (then `angles` is empty).

    `overlap` is 0..1. The estimated directions are noisy, which pulls it down; the jackknife interval over the clusters
    of both sets, given k, is that of the noisy overlap, not of the one that endless rows would have. Three nulls, each
    one-sided (p: share of draws that reach the overlap), each of another question:

    - `matching`: the tuned rows of each set meet its aligned rows by chance, before differencing. (Rows of the
      difference in another order span the same space.) Exact if a row's state under one model says nothing of that
      under the other, given the means. States of one row never are so independent, and a mismatched difference is
      governed by how states differ between rows: what is drawn is the overlap of the *states'* main directions in the
      two sets. So where both sets share dominant directions (a few huge activations, the format of the answers), this
      null is near 1 and p near 1 whatever the shifts do: nothing is claimed falsely, and little can be found. A small p
      says that the shifts share more than the states do. The mean shift is the same in every matching, so that nothing
      on a shared mean can be tested this way: it is subtracted.
    - `states`: both spaces drawn at random, their directions normal with the covariance of the aligned model's states.
      It does not need all k of the states' main directions to be shared, so it can find a subspace beside huge
      activations. But a change of the weights moves every text along what it makes of the states' main directions: sets
      that share those share that, and p is small for any two of them.
    - `random`: directions drawn alike in all directions. Every model's
      shifts are far from that, for the same reason; given because it is often reported.

    So a small p of the last two is no finding, and none of the three says that the shared directions have to do with
    harm. That is what `controls` are for: the overlap of A with B against that of harmless rows with B, under exchanged
    labels of whole clusters of A and the control. Exact where A and the control are alike but for their labels, shared
    activations, weights and means included. It speaks of these rows: two controls, each with directions of its own by
    chance, can differ in overlap too, and noise alone can make a difference, so look at the overlaps themselves.

    `mean_cosine` is that of the two expected shifts, without noise. `transfer[(x, y)]` is the share of y's centred
    shift along the directions of x, on held-out rows; (y, y) is what y's own directions explain there: the most that
    those of another set can be expected to.
    """

    k: tuple[float, float]
    overlap: Estimate
    angles: tuple[float, ...]
    matching: Against
    states: Against
    random: Against
    mean_cosine: Estimate
    transfer: Mapping[tuple[int, int], Transferred]
    controls: Mapping[str, BesideControl]

    def keys(self, names: tuple[str, str]) -> dict[str, float | None]:
        """The flat keys, for sets of these names."""
        pair = f"{names[0]}:{names[1]}"
        found = _with_interval(f"subspace/overlap:{pair}", self.overlap) | {
            f"subspace/overlap:{pair}/p": self.matching.p,
            f"subspace/overlap:{pair}/null": self.matching.mean,
            f"subspace/overlap:{pair}/states_p": self.states.p,
            f"subspace/overlap:{pair}/states": self.states.mean,
            f"subspace/overlap:{pair}/random_p": self.random.p,
            f"subspace/overlap:{pair}/random": self.random.mean,
            f"subspace/smallest_angle:{pair}": self.angles[0] if self.angles else math.nan,
            f"subspace/largest_angle:{pair}": self.angles[-1] if self.angles else math.nan,
        }
        found |= {f"subspace/k:{name}": n for name, n in zip(names, self.k, strict=True)}
        found |= _with_interval(f"subspace/mean_cosine:{pair}", self.mean_cosine)
        for (x, y), t in self.transfer.items():
            key = f"subspace/transfer:{names[x]}:{names[y]}"
            found |= _with_interval(key, t.share) | {f"{key}/states": t.states}
        for name, c in self.controls.items():
            found |= _with_interval(f"subspace/overlap:{name}:{names[1]}", c.overlap)
            key = f"subspace/overlap_beyond:{name}:{pair}"
            found |= _with_interval(key, c.beyond) | {f"{key}/p": c.beyond.p}
        return {key: optional(v) for key, v in found.items()}


def _with_interval(key: str, e: Estimate) -> dict[str, float]:
    return {key: e.value, f"{key}/low": e.low, f"{key}/high": e.high}


def mean_scope(readings: Sequence[SiteReading]) -> SubspaceScope:
    """The scope of one site, or of the mean over several."""

    return SubspaceScope(
        k=(float(np.mean([r.k[0] for r in readings])), float(np.mean([r.k[1] for r in readings]))),
        overlap=_mean(readings, lambda r: r.overlap).estimate(SHARE),
        angles=readings[0].angles if len(readings) == 1 else (),
        matching=_tested(readings, lambda r: r.overlap, lambda r: r.matching),
        states=_tested(readings, lambda r: r.overlap, lambda r: r.chance.overlap),
        random=_tested(readings, lambda r: r.overlap, lambda r: r.random),
        mean_cosine=_mean(readings, lambda r: r.mean_cosine).estimate(COSINE),
        transfer={at: _transferred(readings, at) for at in readings[0].transfer},
        controls={name: _beside([r.contrasts[name] for r in readings]) for name in readings[0].contrasts},
    )


def _mean(readings: Sequence[SiteReading], part: Callable[[SiteReading], Replicated]) -> Replicated:
    return Replicated.mean([part(r) for r in readings])


def _tested(
    readings: Sequence[SiteReading],
    part: Callable[[SiteReading], Replicated],
    null: Callable[[SiteReading], Float[np.ndarray, " b"]],
) -> Against:
    return _against([(part(r).value, null(r)) for r in readings])


def _transferred(readings: Sequence[SiteReading], at: tuple[int, int]) -> Transferred:
    known = [r for r in readings if math.isfinite(r.transfer[at].value)]
    drawn = [float(r.chance.explained[at].mean()) for r in known]
    share = _mean(readings, lambda r: r.transfer[at]).estimate(SHARE)
    return Transferred(share, float(np.mean(drawn)) if drawn else math.nan)


def _against(parts: Sequence[tuple[float, Float[np.ndarray, " b"]]]) -> Against:
    known = [(v, n) for v, n in parts if math.isfinite(v) and np.isfinite(n).all()]
    if not known:
        return Against(math.nan, math.nan)
    drawn = np.asarray(np.mean([n for _, n in known], axis=0), dtype=np.float64)
    return Against(float(drawn.mean()), against(float(np.mean([v for v, _ in known])), drawn).p)


def _beside(contrasts: Sequence[Contrast]) -> BesideControl:
    against_labels = _against([(c.relabelled[0], c.relabelled[1:]) for c in contrasts])
    beyond = Replicated.mean([c.beyond for c in contrasts])
    return BesideControl(
        Replicated.mean([c.control for c in contrasts]).estimate(SHARE), beyond.estimate(DIFFERENCE, p=against_labels.p)
    )
