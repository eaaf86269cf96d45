"""Which word a number may be given: one table, here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from graddiag.statistics import NORMAL

ALPHA = 0.05  # two-sided; the convention of the field
SMALL_EFFECT = 0.2  # |d_z|: below Cohen's "small"
FEW_CLUSTERS = 10  # below this a jackknife interval rests on too few deletions to be trusted closely

Scale = Literal["cosine", "paired", "means", "contrast", "difference", "length"]
ENDS = ("low", "high", "p")
LABELS = "conflict/label_distance"  # the key of the distance of the mean gradients beside permuted labels
PROJECTION_SE = "projection_se"  # under `KEY/projection_se`: the standard error of KEY by its projection
RANDOM_SD = "random_sd"  # under `KEY/random_sd`: its standard deviation over random directions in place of safety's
WITHOUT_REPEATS = "without_repeats/"  # before the keys of the same numbers with every answer once
_STEMS = {"loss_gap/mean": "loss_gap", "conflict/paired_cosine": "conflict", "framing/consistency": "framing"}


def stem_of(key: str) -> str:
    """Where the interval and p of a flat key stand: under `STEM/low`, `STEM/high` and `STEM/p`."""
    own = key.removeprefix(WITHOUT_REPEATS)
    return key.removesuffix(own) + _STEMS.get(own, own)


@dataclass(frozen=True)
class Setting:
    """What the numbers cannot tell about themselves: names, what differs, which numbers are projected.

    `differs` is that of the comparison; `other_model` tells which of "left", "right" and
    "control:NAME" were measured under other weights than the safety set; `adam` that there are numbers of Adam's steps.
    """

    left: str
    right: str
    safety: str | None = None
    controls: tuple[str, ...] = ()
    differs: tuple[str, ...] = ("data",)
    other_model: tuple[str, ...] = ()
    centered: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)
    adam: bool = False


@dataclass(frozen=True)
class Evidence:
    """One number with all that decides its word; NaN is undefined.

    `error` is how far the projection may have moved the number, 0 where it is exact: 1.96 of its own standard errors
    where they are known, else projection/error. `strangers` is the mean cosine of non-partners of one cluster, for
    paired cosines, and `strangers_error` the same of it. `forced` says that centring pushes the number below 0. A
    "contrast" is the cosine of a difference between the sides. "means" is that of the two mean gradients, its p that of
    permuted labels. A "length" is never negative and has a p but no interval. `direction_low` is the lower end of
    alignment/safety_split_half, of numbers that are relative to the safety set, and minus infinity where that is
    undefined; `random_sd` the spread of the number itself over random directions.
    """

    scale: Scale
    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    error: float = 0.0
    strangers: float = math.nan
    confounded: bool = False
    forced: bool = False
    strangers_error: float = 0.0
    direction_low: float = math.nan
    random_sd: float = math.nan


Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Rule(Generic[Asked]):
    """A word, when it is used and what it means; rules are asked in order and the first that holds gives the word."""

    word: str
    when: str
    means: str
    holds: Callable[[Asked], bool]
    remark: str = ""


def first_that_holds(rules: Sequence[Rule[Asked]], evidence: Asked) -> Rule[Asked]:
    """The rule that gives the word; the last one of a table always does."""
    return next(rule for rule in rules if rule.holds(evidence))


def _undefined(e: Evidence) -> bool:
    needed = (e.value, e.p) if e.scale == "length" else (e.value, e.low, e.high)
    return any(math.isnan(v) for v in needed)


RULES: tuple[Rule[Evidence], ...] = (
    Rule("not measurable", "the number, or its interval, is undefined", "nothing is claimed", _undefined),
    Rule(
        "confounded",
        "what is compared differs in both data and model",
        "there may be a difference, but it cannot be put down to either",
        lambda e: e.confounded,
    ),
    Rule(
        "not measurable",
        "a number is relative to the safety set, and the interval of alignment/safety_split_half reaches 0 or less, or "
        "is undefined",
        "halves of the safety set do not agree, or are too few answers to tell: its direction is not known",
        lambda e: e.direction_low <= 0,
        "the safety direction is not known",
    ),
    Rule(
        "not measurable",
        "a cosine between the sides is below 0 after centring",
        "centring alone makes cosines between two groups negative, whatever the data",
        lambda e: e.forced and e.value < 0,
        "centring forces the sign",
    ),
    Rule(
        "no difference found",
        "the 95 % interval includes 0",
        "neither sign is shown, nor that there is no effect; a cosine near 0 is no guarantee of safety",
        lambda e: e.low <= 0 <= e.high,
    ),
    Rule(
        "no difference found",
        f"a cosine with safety is within {NORMAL} of its KEY/{RANDOM_SD} of 0",
        "a random direction with the same norm in every block does as much",
        lambda e: abs(e.value) <= NORMAL * e.random_sd,
        "a random direction does as much",
    ),
    Rule(
        "no difference found",
        f"the interval of a projected number is within {NORMAL} of its KEY/{PROJECTION_SE} of 0 "
        "(of projection/error where that is unknown)",
        "the projection's own error could have made it",
        lambda e: e.low - e.error <= 0 <= e.high + e.error,
        "within the projection's error",
    ),
    Rule(
        "no difference found",
        f"the p of a difference is {ALPHA} or more, or undefined",
        "sign flips of whole clusters do as much: the null is not crossed",
        lambda e: e.scale in {"difference", "length"} and not e.p < ALPHA,
        "the null is not crossed",
    ),
    Rule(
        "no difference found",
        f"the cosine of the mean gradients is below 0, but the p of permuted labels ({LABELS}/p) is {ALPHA} or more, "
        "or undefined",
        "sides named by chance are as far apart: nothing is shown that could be opposed",
        lambda e: e.scale == "means" and e.high < 0 and not e.p < ALPHA,
        "the null of permuted labels is not crossed",
    ),
    Rule(
        "conflict",
        f"a paired cosine's interval is below 0, partners permuted within clusters give p < {ALPHA}, "
        "and non-partners of a cluster are less opposed",
        "the two members of a pair pull the weights in opposite directions, and it is the pairing that does it",
        lambda e: (
            e.scale == "paired"
            and e.high < 0
            and e.p < ALPHA
            and e.value < e.strangers - math.hypot(e.error, e.strangers_error)
        ),
    ),
    Rule(
        "opposed",
        "a paired cosine's interval is below 0, but the null of permuted partners is undefined or not crossed",
        "the directions are opposite, but no more so for partners than for others: no conflict of pairs is shown",
        lambda e: e.scale == "paired" and e.high < 0,
        "the null of permuted partners is not crossed",
    ),
    Rule(
        "opposed",
        f"a cosine's interval is below 0; of the mean gradients, permuted labels give p < {ALPHA} too",
        "the directions are opposite; with safety: to first order, a step on this data raises the loss on safe answers",
        lambda e: e.scale in {"cosine", "means"} and e.high < 0,
    ),
    Rule(
        "aligned",
        "a cosine's interval is above 0",
        "the directions agree; with safety: to first order, a step on this data lowers the loss on safe answers",
        lambda e: e.scale in {"cosine", "paired", "means"} and e.low > 0,
    ),
    Rule(
        "difference",
        "the interval of the framing gradient's cosine with safety, corrected for noise, excludes 0",
        "the sides differ along the safety direction: below 0, left lowers the loss on safe answers "
        "less than right, or "
        "raises it more; neither side need be opposed to safety",
        lambda e: e.scale == "contrast",
    ),
    Rule(
        "difference",
        f"a difference's interval excludes 0 and sign flips of whole clusters give p < {ALPHA}; "
        "for the mean framing gradient, that p alone",
        "the mean is not zero, in the direction of its sign",
        lambda e: e.scale in {"difference", "length"},
    ),
)


def judge(evidence: Evidence) -> Rule[Evidence]:
    """The first rule that holds; one always does, since a number above, below or around 0 is in the table."""
    return first_that_holds(RULES, evidence)
