"""How surprising is the conflict of one probe, if every example were as likely to support safety as to oppose it?"""

from __future__ import annotations

import math

from scipy.special import ndtri, stdtr

from graddiag.permutations import DRAWS, sign_flip_rank
from graddiag.probe_values import cosine_scale, cosine_with_safety, finite_dots
from graddiag.probes import Probe


def conflict_score(probe: Probe) -> float:
    """The conflict of the batch in standard deviations of chance, positive where it opposes; NaN without examples.

    The rank of the sum of the examples' products among all flips of their signs (the same as the rank of the cosine of
    their mean, norms kept), as the mean of a standard normal over that rank's share. If signs are fair and independent,
    the score is the conditional mean of a standard normal given the sizes of the products: for few examples it varies
    less (a batch of n scores at most the mean of the upper 2^-n), never more, and `E exp(a z) <= exp(a^2 / 2)`.
    """
    dots = finite_dots(probe)
    if not dots.any():
        return math.nan
    rank = sign_flip_rank(dots, seed=probe.step)
    return (_density(ndtri(rank.up_to)) - _density(ndtri(rank.below))) / (rank.up_to - rank.below)


def update_score(probe: Probe, *, inflation: float) -> float:
    """The conflict of the real update in standard deviations of chance, positive where it opposes; NaN where undefined.

    The update's cosine over `inflation` times the scale that sign flips give the batch's own cosine: averaging over
    steps with fair signs shortens an update as much as its product, so that scale is not too small for momentum. It is
    known from n examples that the update hardly consists of: a t with n degrees of freedom, made normal. Cut off at
    the largest score that random flips can give a batch.
    """
    cosine, scale = cosine_with_safety(probe.update, probe.safety_norms), cosine_scale(probe)
    if not math.isfinite(cosine) or not scale > 0:
        return math.nan
    t = -cosine / scale / inflation
    upper = float(-ndtri(stdtr(len(finite_dots(probe)), -abs(t))))
    return math.copysign(min(upper, LARGEST), t)


def inflation(memory: float, steps: int) -> float:
    """By how much the spread of a long sum grows because its terms, `steps` apart, remember each other.

    `sqrt((1 + r) / (1 - r))`, r = memory^steps their correlation: exact for terms that forget exponentially.
    """
    kept = memory**steps
    return math.sqrt((1 + kept) / (1 - kept))


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


LARGEST = _density(ndtri(1 / (1 + DRAWS))) * (1 + DRAWS)  # the score of the lowest rank among the random flips
