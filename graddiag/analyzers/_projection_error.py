"""How far may a number be off because its gradients were projected: from how its share varies over random places.

All rows share one projection, so its error does not average out over rows. But the random places of one side of a
projection are exchangeable: leaving one out in turn shows how much chance there is in any statistic of the rows, as
the jackknife does for samples (Efron and Stein 1981), without a single exact product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from graddiag.row_layout import RowLayout, row_layout
from graddiag.signals import Block, Space
from graddiag.statistics import LEVEL, NORMAL, optional

_UPPER = 0.5 + LEVEL / 2


@dataclass(frozen=True)
class Influence:
    """What each place of a block's rows does to a number, [k]: its derivative by the place's weight, and its share of
    the squared norms by which the number is divided (over all blocks of the number, shares add up to 1)."""

    moves: Float[np.ndarray, " k"]
    shares: Float[np.ndarray, " k"]

    def minus(self, other: Influence) -> Influence:
        """That of the difference of two numbers."""
        return Influence(self.moves - other.moves, (self.shares + other.shares) / 2)


@dataclass(frozen=True)
class Spread:
    """Variance of a number by its projection: over the places of the first and second side, what both sides count, and
    the variance of the first two. Blocks are projected independently: their spreads add."""

    first: float = 0.0
    second: float = 0.0
    twice: float = 0.0
    doubt: float = 0.0

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            self.first + other.first,
            self.second + other.second,
            self.twice + other.twice,
            self.doubt + other.doubt,
        )

    @property
    def standard_error(self) -> float:
        """Such that the number +- 1.96 of it covers the exact one in 95 % of projections; 0 where nothing is random.

        The variance is `first + second - twice`, but no less than either side's own, which it exceeds in expectation.
        Its own uncertainty (few places a side, heavy tails) is in the factor `t(df) / 1.96`, df by Satterthwaite from
        the kurtosis. NaN where undefined: the number itself is, or a side has a single random place.
        With 16 or fewer random places on a side and gradients that are nearly one outer product it covers less, about
        90 %: the error then hangs on one skewed draw a side.
        """
        both = self.first + self.second
        if not both > 0:
            return both  # 0 or NaN
        variance = max(both - self.twice, self.first, self.second)
        freedom = max(2 * variance**2 / self.doubt, 1.0)
        return math.sqrt(variance) * float(stdtrit(freedom, _UPPER)) / NORMAL


def layouts(space: Space) -> dict[str, RowLayout]:
    """How the rows of each block lie."""
    return {b.name: _layout(space, b) for b in space.blocks}


def _layout(space: Space, block: Block) -> RowLayout:
    return row_layout(space.projection, space.dim, block.shape)


def spread(influence: Influence, layout: RowLayout) -> Spread:
    """The delete-one-place jackknife over the random places of each side, to first order in a place's moves.

    With c = n / (n - 1) for n random places of a side, R_a what place a moves and H_a its share, leaving a out and
    scaling the others by c changes the number by `c (R_a - mean R) / (1 - c (H_a - mean H))`; the variance is
    `sum of squares / c`. Places that are not random stay, and a side that is kept whole adds nothing. What a pair of
    places does beyond its two sides, `m n / ((m - 1)(n - 1)) sum E^2` with E the residuals of the two-way table, is in
    both sides' variances and is counted once. Orthonormal places are drawn without replacement: all directions of a
    side together give the exact product, so that a side's variance is that of its unseen share.
    """
    moves, shares = influence.moves.reshape(layout.kept), influence.shares.reshape(layout.kept)
    random = [k - f for k, f in zip(layout.kept, layout.fixed, strict=True)]
    sides = []
    for side, (n, unseen) in enumerate(zip(random, layout.unseen, strict=True)):
        other = tuple(s for s in range(len(random)) if s != side)
        sides.append(_side(moves.sum(axis=other)[-n:], shares.sum(axis=other)[-n:], unseen) if n else (0.0, 0.0))
    twice = _interaction(moves[-random[0] :, -random[1] :]) if len(random) == 2 and all(random) else 0.0
    (first, doubt), (second, more) = sides if len(sides) == 2 else (sides[0], (0.0, 0.0))
    return Spread(first, second, twice * math.prod(layout.unseen), doubt + more)


def _side(moves: Float[np.ndarray, " n"], shares: Float[np.ndarray, " n"], unseen: float) -> tuple[float, float]:
    """The variance over one side's random places, and the variance of that variance."""
    n = len(moves)
    if n == 1:
        return math.nan, math.nan
    c = n / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a place that holds all of a norm leaves nothing: undefined
        change = c * (moves - moves.mean()) / (1 - c * (shares - shares.mean()))
        squares = (change - change.mean()) ** 2
        kurtosis = float((squares**2).mean() / squares.mean() ** 2) - 3
    variance = unseen * float((change**2).sum()) / c
    if variance == 0:
        return 0.0, 0.0
    return variance, variance**2 * (2 / (n - 1) + max(kurtosis, 0.0) / n)


def _interaction(moves: Float[np.ndarray, "m n"]) -> float:
    m, n = moves.shape
    if min(m, n) == 1:
        return 0.0
    rest = moves - moves.mean(axis=0) - moves.mean(axis=1, keepdims=True) + moves.mean()
    return float((rest**2).sum() * m * n / ((m - 1) * (n - 1)))


def cosine_influence(places: Float[np.ndarray, "3 k"], totals: Float[np.ndarray, " 3"]) -> Influence:
    """That of `x / sqrt(l r)`: x, l and r at each place of a block, and over all blocks of the number."""
    x, left, right = places
    inner, a, b = totals
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (left / a + right / b) / 2
        scale = np.sqrt(a) * np.sqrt(b)
        return Influence(x / scale - inner / scale * shares, shares)


def ratio_influence(
    upper: Float[np.ndarray, " k"], lower: Float[np.ndarray, " k"], totals: Float[np.ndarray, " 2"]
) -> Influence:
    """That of `q / t`: q and t at each place of a block, and over all blocks of the number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = lower / totals[1]
        return Influence(upper / totals[1] - totals[0] / totals[1] * shares, shares)


def mean_cosine_influence(
    rows: Float[np.ndarray, "n k"],
    squares: Float[np.ndarray, "n k"],
    norms: Float[np.ndarray, " n"],
    toward: Float[np.ndarray, " k"],
    cosines: Float[np.ndarray, " n"],
) -> Influence:
    """That of the mean of `cosines`, of rows with one vector: in one block, given the norms over all blocks.

    `squares` are those of the rows' numbers, `toward` is the vector over its own norm. Undefined cosines are left out,
    as they are of the mean; none may be of a row that is not finite.
    """
    kept = np.isfinite(cosines)
    if not kept.any():
        return Influence(np.full(rows.shape[1], np.nan), np.full(rows.shape[1], np.nan))
    safe = np.where(kept, norms, 1.0)
    lengths = kept / safe / kept.sum()
    each = lengths / safe
    values = np.where(kept, cosines, 0.0)
    own, of_cosines = np.stack([each, each * values]) @ squares
    shares = (own + toward**2) / 2
    return Influence((lengths @ rows) * toward - (of_cosines + values.sum() / kept.sum() * toward**2) / 2, shares)


def error_keys(errors: Mapping[str, float]) -> dict[str, float | None]:
    """The flat keys of standard errors, `KEY/projection_se` for each KEY; None where undefined."""
    return {f"{key}/projection_se": optional(e) for key, e in errors.items()}
