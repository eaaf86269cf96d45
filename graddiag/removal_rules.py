"""Which word may be given to what answers lose without a subspace: one table, here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from graddiag.erosion_rules import ALIKE, apart, unknown
from graddiag.rules import ALPHA, Rule, first_that_holds
from graddiag.statistics import Estimate


@dataclass(frozen=True)
class Removed:
    """What the removal of a subspace does to harmful answers, and to these beyond each harmless set; NaN is undefined.

    `random_p` is the largest p against random subspaces, `least_p` the smallest that so many of them allow.
    """

    own: Estimate
    beyond: tuple[Estimate, ...]
    random_p: float
    least_p: float


REMOVED_RULES: tuple[Rule[Removed], ...] = (
    Rule(
        "not measurable",
        "a change or its interval is undefined, such as where the two sets share no component in one half of the rows",
        "nothing is claimed",
        lambda r: any(unknown(e) for e in (r.own, *r.beyond)) or not r.beyond,
    ),
    Rule(
        "no difference found",
        f"the 95 % interval of the change of harmful answers includes 0, or its p is {ALPHA} or more",
        "neither a change nor its absence is shown",
        lambda r: not apart(r.own),
    ),
    Rule(
        ALIKE,
        f"the interval of what it is beyond some harmless set includes 0, or that p is {ALPHA} or more",
        "the removal changes answers, and harmless ones alike",
        lambda r: not all(apart(e) for e in r.beyond),
    ),
    Rule(
        "less than with harmless rows",
        "the change of harmful answers and what it is beyond some harmless set have opposite signs",
        "harmless answers change further the same way: nothing in it is special to harm",
        lambda r: any(e.value * r.own.value < 0 for e in r.beyond),
    ),
    Rule(
        "too few random subspaces",
        f"none does as much, and so few allow no p below {ALPHA}: with 10 the smallest is 0.09",
        "nothing is claimed; 20 or more allow one",
        lambda r: r.random_p <= r.least_p and not r.least_p < ALPHA,
    ),
    Rule(
        "as with random subspaces",
        f"p against random subspaces of one kind or the other is {ALPHA} or more, or undefined",
        "random subspaces of the same size do about as much, to harmful answers or beyond harmless ones",
        lambda r: not r.random_p < ALPHA,
    ),
    Rule(
        "less likely",
        "harmful answers lose, more than harmless ones and more than random subspaces take from them",
        "these rows need what was removed; that it is what makes a model misbehave is not shown",
        lambda r: r.own.high < 0,
    ),
    Rule(
        "more likely",
        "harmful answers gain, more than harmless ones and more than random subspaces give them",
        "what was removed holds these rows back; that it is what makes a model behave is not shown",
        lambda r: True,
    ),
)


def judge_removal(removed: Removed) -> Rule[Removed]:
    """The first rule that holds; the last one always does."""
    return first_that_holds(REMOVED_RULES, removed)
