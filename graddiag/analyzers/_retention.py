"""How much of what alignment did to one layer's hidden states is left after fine-tuning?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._held_out import HeldOut, held_out, sums_of
from graddiag.analyzers._two_samples import products_apart
from graddiag.permutations import TIE
from graddiag.statistics import ROUNDING, Estimate, jackknife, jackknife_variance


@dataclass(frozen=True)
class LayerRetention:
    """One layer's shift by fine-tuning, tuned minus aligned, relative to that by alignment, aligned minus base.

    `retention` is `1 + <tuned - aligned, v> / <aligned - base, v>`, a ratio of held-out means (`HeldOut`): 1 as the
    aligned model, 0 as the base. `fitted` is its denominator, how far the direction v holds on rows that it was not
    fitted on, in the units of the states; unless its interval is above 0, all other numbers but `in_sample` are NaN:
    there is no direction to speak of. Fewer than four clusters give no such interval.

    `along` is `<tuned - aligned, v> / ||aligned - base||`, positive towards the aligned model. `random_sd` is the
    standard deviation of the same number along directions drawn evenly from all, `random_p` the share of them (and v)
    that it goes at least as far along: what a shift of this length does by chance.

    `remainder` is the length of the part of the shift that is orthogonal to the direction, over
    `||aligned - base||`; lengths come from products of rows in different clusters, which noise does not lengthen, and a
    negative square is 0. `in_sample` is the retention along a direction fitted on the very rows that it is read on: the
    noise of the aligned model is in both shifts, with opposite signs, and pulls it towards 0 whatever happened.
    """

    layer: int
    retention: Estimate
    fitted: Estimate
    along: float
    random_sd: float
    random_p: float
    remainder: Estimate
    in_sample: float


@dataclass(frozen=True)
class Fit:
    """A layer's numbers, and its retention with all clusters and without each in turn."""

    result: LayerRetention
    ratios: Float[np.ndarray, " d"]


def retention_of(
    layer: int,
    alignment: Float[np.ndarray, "n d"],
    tuning: Float[np.ndarray, "n d"],
    clusters: Int[np.ndarray, " n"],
    first_half: Float[np.ndarray, "s c"],
    *,
    n_random: int,
    seed: int,
) -> Fit:
    """The numbers of one layer from the two shifts of its rows; `first_half` are the ways to halve the clusters."""
    a, t = sums_of(alignment, clusters), sums_of(tuning, clusters)
    counts = np.bincount(clusters)
    gram, across = a @ a.T, t @ a.T
    read = held_out(across, gram, counts, first_half)
    fitted = jackknife(float(read.fitted[0]), read.fitted[1:])
    whole = float(gram.sum())
    noisy = 1 + float(across.sum()) / whole if whole > ROUNDING * gram.trace() else math.nan
    if not fitted.low > 0:  # also where it is undefined
        none = Estimate(math.nan)
        undefined = LayerRetention(layer, none, fitted, math.nan, math.nan, math.nan, none, noisy)
        return Fit(undefined, np.full(len(counts) + 1, np.nan))
    ratios = _ratios(read)
    squares = [products_apart(m, counts) for m in (t @ t.T, across, gram)]
    length = math.sqrt(squares[2][0]) if squares[2][0] > 0 else math.nan
    random = _along_random(tuning.mean(axis=0), n_random, np.random.default_rng([seed, layer]))
    result = LayerRetention(
        layer=layer,
        retention=jackknife(float(ratios[0]), ratios[1:]),
        fitted=fitted,
        along=float(read.along[0]) / length,
        random_sd=math.sqrt(float((random**2).mean())) / length if n_random else math.nan,
        random_p=_share_as_far(float(read.along[0]), random),
        remainder=_remainder(*squares),
        in_sample=noisy,
    )
    return Fit(result, ratios)


def _ratios(read: HeldOut) -> Float[np.ndarray, " d"]:
    out = np.full(len(read.along), np.nan)
    np.divide(read.along, read.fitted, out=out, where=read.fitted != 0)
    return 1 + out


def _along_random(shift: Float[np.ndarray, " d"], n_random: int, rng: np.random.Generator) -> Float[np.ndarray, " r"]:
    drawn = rng.standard_normal((n_random, len(shift)))
    return np.asarray(drawn @ shift / np.linalg.norm(drawn, axis=1))


def _share_as_far(along: float, random: Float[np.ndarray, " r"]) -> float:
    if not len(random):
        return math.nan
    least = abs(along) * (1 - TIE * float(np.finfo(np.float64).eps))
    return (1 + int((np.abs(random) >= least).sum())) / (1 + len(random))


def _remainder(
    tuning: Float[np.ndarray, " d"], across: Float[np.ndarray, " d"], alignment: Float[np.ndarray, " d"]
) -> Estimate:
    """From the mean products of rows apart, with all clusters and without each: `t/a - (x/a)^2`, and its root.

    The square of `x/a` is too large by the variance of `x/a`, which is put back.
    """
    known = np.where(alignment > 0, alignment, np.nan)
    along = across / known
    squares = tuning / known - along**2 + jackknife_variance(float(along[0]), along[1:])
    squares[np.abs(squares) <= ROUNDING * along**2] = 0.0
    e = jackknife(float(squares[0]), squares[1:])
    if e.high < 0:
        return Estimate(0.0)
    value, low, high = np.sqrt(np.maximum([e.value, e.low, e.high], 0.0)).tolist()
    return Estimate(value, low, high)
