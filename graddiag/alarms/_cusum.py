"""A one-sided CUSUM: how it adds up evidence, and from where on chance would hardly bring it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr

STATES = 150  # of the Markov chain; twice as many change the probability of a false alarm by less than 1e-4 of 0.05
ALONE = 0.99  # of the limit: as much as one probe can add
LOWEST, HIGHEST = 1e-6, 60.0  # standard deviations; the limits that are tried, from nearly none to beyond all patience
RAREST = 1e-9  # probability; below it, rounding of probabilities near 1 would decide


def added(evidence: float, score: float, *, shift: float, limit: float) -> float:
    """`max(0, evidence + score - shift / 2)` (Page 1954), where `evidence` counts up to `limit` at most.

    So that after an alarm a harmless stretch is soon seen as one. One probe adds less than the limit, so that none
    gives an alarm alone. An undefined score adds nothing.
    """
    evidence = min(evidence, limit)
    if math.isnan(score):
        return evidence
    gained = min(score - shift / 2, ALONE * limit)
    return max(0.0, evidence + gained)


@lru_cache
def cusum_limit(false_alarms: float, horizon: int, shift: float) -> float:
    """The limit that independent standard normal scores reach within `horizon` probes with this probability.

    By the Markov chain of Brook and Evans (1972). Scores z that are only known to have `E exp(a z) <= exp(a^2 / 2)`
    reach a limit h with a probability of at most `horizon exp(-shift h)`: each start of a sum is a likelihood ratio of
    mean 1 at most (Lorden 1971). `false_alarms` lies between the two of `possible_false_alarms`.
    """
    return float(brentq(lambda h: reached(h, horizon, shift) - false_alarms, LOWEST, HIGHEST, xtol=1e-6))


@lru_cache
def possible_false_alarms(horizon: int, shift: float) -> tuple[float, float]:
    """The least and the largest probability of a false alarm within `horizon` probes that some limit gives: even the
    lowest is not reached by scores that stay below `shift / 2`."""
    return max(RAREST, reached(HIGHEST, horizon, shift)), reached(LOWEST, horizon, shift)


def reached(limit: float, horizon: int, shift: float, *, states: int = STATES) -> float:
    """The probability that the CUSUM of independent standard normal scores reaches a limit within `horizon` probes."""
    stay = np.linalg.matrix_power(_transitions(limit, shift / 2, states), horizon)
    return 1 - float(stay[0].sum())


def _transitions(limit: float, reference: float, states: int) -> Float[np.ndarray, "k k"]:
    """From state to state below the limit: state 0 is [0, w/2], state i a width of w around i w."""
    width = 2 * limit / (2 * states - 1)
    at = np.arange(states) * width
    distance = at[None, :] - at[:, None] + reference
    chain = ndtr(distance + width / 2) - ndtr(distance - width / 2)
    chain[:, 0] = ndtr(distance[:, 0] + width / 2)
    return np.asarray(chain)
