"""What a screening says in a few lines, and in which words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graddiag.ranking import Ranking
from graddiag.rules import FEW_CLUSTERS, Evidence, judge
from graddiag.statistics import COSINE, Estimate, optional
from graddiag.text import interval, number, visible

NOISE = 0.5  # reliability below which more of the order is due to which safety rows were drawn than to the rows
REPEATABLE = 0.9  # reliability above which other safety rows would give nearly the same order
CHANCE_SD = 1.645  # standard deviations of a rank correlation (1 / sqrt(C - 1)) below which it may be chance, one-sided
NAME_LENGTH = 32  # characters of a name in a line
UNIT = "nats/token per unit of learning rate"


@dataclass(frozen=True)
class Screening:
    """What was found about a set, and what a reader must know of it. `rate` is in rows per second, NaN where nothing
    was measured in this call."""

    ranking: Ranking
    controls: Mapping[str, Ranking]
    name: str
    safety: str
    share: float
    rate: float = math.nan
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def summary(self) -> dict[str, float | None]:
        """The flat keys; undefined is None."""
        ranking, rows = self.ranking, self.ranking.rows
        out: dict[str, float | None] = {
            "screen/n": len(rows),
            "screen/nonfinite": int((~rows.finite).sum()),
            "screen/clusters": len(set(rows.clusters)),
            "screen/dropped": len(ranking.worst(self.share)),
            "screen/worst": _largest(ranking.score),
            "screen/worst_harm": _largest(ranking.harm),
            "screen/reliability": optional(ranking.reliability),
            "screen/reliability/halves": optional(ranking.halves),
            "screen/rows_per_second": optional(self.rate),
        }
        out |= _keys("screen/alignment/mean", self.alignment(ranking))
        out |= _keys("screen/harm/mean", ranking.mean(ranking.harm))
        out |= _keys("screen/matching/mean", ranking.mean(ranking.matching, bounds=(-2.0, 2.0)))
        out |= _keys("screen/opposed_share", ranking.opposed_share)
        for name, control in self.controls.items():
            out |= _keys(f"screen/alignment/control:{name}", self.alignment(control))
            out |= _keys(f"screen/opposed_share/control:{name}", control.opposed_share)
            out |= _keys(f"screen/beyond_control:{name}", ranking.beyond(control))
        return out

    @staticmethod
    def alignment(ranking: Ranking) -> Estimate:
        """The mean cosine with the mean safety gradient."""
        return ranking.mean(ranking.alignment, bounds=COSINE)


def screen_verdict(found: Screening) -> list[str]:
    """One line per question: alignment, predicted harm, controls, what the ranks are worth, then what is not shown."""
    ranking, name = found.ranking, _name(found.name)
    n, clusters = len(ranking.rows), len(set(ranking.rows.clusters))
    dropped = len(ranking.worst(found.share))
    first = f"{name}: {n} rows in {clusters} clusters, ranked by {ranking.by}; the first {dropped} are to drop."
    lines = [first, _alignment(found), _harm(found)]
    lines += [_control(found, c) for c in found.controls]
    return [*lines, reliability_line(ranking), *_limits(found, clusters)]


def reliability_line(ranking: Ranking) -> str:
    """What the ranks are worth: repeatable, rough, noise, or not measurable."""
    if math.isnan(ranking.halves):
        return "Ranks: not measurable (a set with one cluster has no halves): how much is noise is unknown."
    clusters = len(set(ranking.rows.clusters))
    chance = CHANCE_SD / math.sqrt(max(clusters - 1, 1))
    numbers = f"two halves of the reference sets: Spearman {number(ranking.halves)}, reliability of the whole"
    numbers = f"{numbers} {ranking.reliability:.2f}"
    if ranking.reliability < NOISE or ranking.halves < chance:
        return f"Ranks: noise ({numbers}); other safety rows give another order, so do not choose rows by it."
    if ranking.reliability < REPEATABLE:
        return f"Ranks: rough ({numbers}); the ends of the order mean more than single ranks."
    return f"Ranks: repeatable ({numbers})."


def _alignment(found: Screening) -> str:
    e, share = found.alignment(found.ranking), found.ranking.opposed_share
    word = judge(Evidence("cosine", e.value, e.low, e.high)).word
    said = f"{word} ({interval(e.value, e.low, e.high)}; {_share(share)} of the rows below 0)"
    return f"Cosine of a row with {_name(found.safety)}: {said}."


def _harm(found: Screening) -> str:
    ranking = found.ranking
    e = ranking.mean(ranking.harm)
    if math.isnan(e.value):
        return "Predicted change of the safety loss: not measurable."
    i = int(np.nanargmax(ranking.harm))
    numbers = f"mean {interval(e.value, e.low, e.high)}, most {number(float(ranking.harm[i]))}"
    return f"Predicted change of the safety loss by a step on a row: {numbers} ({_name(ranking.rows.ids[i])}), {UNIT}."


def _control(found: Screening, name: str) -> str:
    control, ranking = found.controls[name], found.ranking
    e, own = found.alignment(control), found.alignment(ranking)
    where = _against(own, e)
    beyond = f"{_share(ranking.beyond(control))} of the rows beyond all but 5 % of its rows"
    return (
        f"Control {_name(name)}: cosine {interval(e.value, e.low, e.high)}; {_name(found.name)} {where}; {beyond}."
    )  # fmt: skip


def _against(own: Estimate, control: Estimate) -> str:
    if math.isnan(own.low + own.high + control.low + control.high):
        return "cannot be compared with it"
    if own.high < control.low:
        return "lies below it"
    return "lies above it" if own.low > control.high else "is not told apart from it"


def _limits(found: Screening, clusters: int) -> list[str]:
    said = [f"Few clusters ({clusters}): intervals are rough."] if clusters < FEW_CLUSTERS else []
    if not found.controls:
        said.append("No control: whether harmless data would look the same is not known.")
    return [*said, "All to first order and given these safety rows; a row near 0 is not shown to be safe."]


def _share(e: Estimate) -> str:
    if math.isnan(e.value):
        return "an undefined share"
    if math.isnan(e.low):
        return f"{e.value:.0%} [no interval]"
    return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"


def _keys(key: str, e: Estimate) -> dict[str, float | None]:
    return {key: optional(e.value), f"{key}/low": optional(e.low), f"{key}/high": optional(e.high)}


def _largest(values: np.ndarray) -> float | None:
    defined = values[np.isfinite(values)]
    return float(defined.max()) if len(defined) else None


def _name(name: str) -> str:
    return visible(name, limit=NAME_LENGTH)
