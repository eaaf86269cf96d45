"""How far do the gradients of one set agree with each other?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._agreement_sums import AgreementSums
from graddiag.analyzers._cosines import rows64
from graddiag.analyzers._projection_error import Influence, Spread, layouts, ratio_influence, spread
from graddiag.analyzers._row_sums import Groups, RowSums, inverse_norms
from graddiag.analyzers._two_samples import places_apart
from graddiag.answers import cluster_codes
from graddiag.grams import Grams
from graddiag.signals import Signals
from graddiag.statistics import COSINE, ROUNDING, Estimate, cluster_sums, jackknife

_NONE = Estimate(math.nan)


@dataclass(frozen=True)
class Agreement:
    """How far the gradients of a set agree, all blocks as one vector; NaN where undefined.

    `noise_scale` is `tr(Sigma) / ||G||^2` (McCandlish et al. 2018, arXiv 1812.06162), in examples: the batch size from
    which more examples stop to sharpen a step. `||G||^2` is the mean product of rows in different clusters and
    `tr(Sigma)` the mean squared norm minus it, both unbiased; NaN, not measurable, where `||G||^2` is not above 0.
    `stiffness` is the mean cosine over i != j, `sign_stiffness` that of its sign (Fort et al. 2019, arXiv 1901.09491).
    `projection_se` has the standard error by the projection of the first two, under their names. A sign has none: it
    does not change smoothly with a place's weight, and a cosine near 0 flips whole; `projection/error` says how near 0
    a single projected cosine must be for that.
    """

    noise_scale: Estimate
    stiffness: Estimate
    sign_stiffness: Estimate
    projection_se: Mapping[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Estimate]:
        """The numbers by name."""
        names = ("noise_scale", "stiffness", "sign_stiffness")
        return dict(zip(names, (self.noise_scale, self.stiffness, self.sign_stiffness), strict=True))


def agreement(table: Signals, grams: Grams | None = None) -> Agreement:
    """From the products of the finite rows, of all blocks as one vector; `grams` are those that are known already."""
    groups = Groups.of_one(np.unique(cluster_codes(table)[table.finite], return_inverse=True)[1])
    sums = AgreementSums.of(table, groups, grams)
    noise_scale = _noise_scale(sums.plain, groups)
    some = RowSums.counting(sums.plain.squares > 0, groups)
    stiffness, signs = (_mean_product(s, some, groups) for s in (sums.unit, sums.signs))
    errors = _errors(table, sums, groups)
    values = {"noise_scale": noise_scale.value, "stiffness": stiffness.value}
    kept = {name: errors[name] if math.isfinite(v) else math.nan for name, v in values.items()}
    return Agreement(noise_scale, stiffness, signs, kept)


def _errors(table: Signals, sums: AgreementSums, groups: Groups) -> dict[str, float]:
    """Standard errors by the projection; 0 where gradients are not projected."""
    lay = layouts(table.space)
    spreads = dict.fromkeys(("noise_scale", "stiffness"), Spread())
    random = [b for b in table.blocks if not lay[b].is_whole]
    if random:
        influences = AgreementInfluences.of(sums, groups)
    for block in random:
        at = influences.at(rows64(table, block))
        spreads = {name: s + spread(at[name], lay[block]) for name, s in spreads.items()}
    return {name: s.standard_error for name, s in spreads.items()}


@dataclass(frozen=True)
class AgreementInfluences:
    """Derivatives of both numbers at the products of all rows with each other, to be read off the rows of every block.

    `totals` are the mean squared norm and the mean product of rows in different clusters. `lengths` is one over the
    norm of each row, 0 for a row that is zero; `cosines` the mean cosine of each row with the others, over the number
    of rows that are not zero.
    """

    codes: Int[np.ndarray, " m"]
    totals: Float[np.ndarray, " 2"]
    lengths: Float[np.ndarray, " m"]
    cosines: Float[np.ndarray, " m"]

    @staticmethod
    def of(sums: AgreementSums, groups: Groups) -> AgreementInfluences:
        """Those of the products over all blocks of the number."""
        plain, codes = sums.plain, groups.clusters
        counts = np.bincount(codes)
        pairs = float(len(codes) ** 2 - (counts**2).sum()) or math.nan
        apart = float((plain.whole - plain.inside).sum()) / pairs
        totals = np.array([plain.squares.sum() / (len(codes) or math.nan), apart])
        n = int((plain.squares > 0).sum())
        cosines = (sums.unit.whole[:, 0] - sums.unit.squares) / (n * (n - 1) or math.nan)
        return AgreementInfluences(codes, totals, inverse_norms(plain.squares), cosines)

    def at(self, rows: Float[np.ndarray, "m k"]) -> dict[str, Influence]:
        """The influence of each place of one block on both numbers."""
        counts, squares = np.bincount(self.codes), rows**2
        apart = places_apart(cluster_sums(rows, self.codes, len(counts)), counts)
        noise_scale = ratio_influence(squares.sum(axis=0) / (len(rows) or math.nan), apart, self.totals)
        n = int((self.lengths > 0).sum())
        own, of_cosines = np.stack([np.ones(len(rows)), self.cosines]) * self.lengths**2 @ squares
        cross = (self.lengths @ rows) ** 2 - own
        stiffness = Influence(cross / (n * (n - 1) or math.nan) - of_cosines, own / (n or math.nan))
        return {"noise_scale": noise_scale, "stiffness": stiffness}


def _noise_scale(plain: RowSums, groups: Groups) -> Estimate:
    squares, counts = cluster_sums(plain.squares, groups.clusters, groups.n_clusters), groups.counts(0)
    signal = plain.apart(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = (squares.sum() - np.append(0.0, squares)) / (counts.sum() - np.append(0, counts))
        values = np.where(signal > ROUNDING * total, total / signal - 1, np.nan)
    return jackknife(float(values[0]), values[1:], bounds=(0.0, math.inf)) if np.isfinite(values[0]) else _NONE


def _mean_product(values: RowSums, some: RowSums, groups: Groups) -> Estimate:
    """The mean over pairs of different rows, with its interval over clusters; `some` counts those that are defined."""
    sums, counts = (_left_over(v, groups) for v in (values, some))
    found = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=found, where=counts > 0)
    return jackknife(float(found[0]), found[1:], bounds=COSINE) if np.isfinite(found[0]) else _NONE


def _left_over(values: RowSums, groups: Groups) -> Float[np.ndarray, " d"]:
    """Sum over pairs of different rows, then without the rows of each cluster in turn."""
    whole, inside = (v[:, 0] - values.squares for v in (values.whole, values.inside))
    by_row, within = (cluster_sums(v, groups.clusters, groups.n_clusters) for v in (whole, inside))
    return np.append(by_row.sum(), by_row.sum() - 2 * by_row + within)
