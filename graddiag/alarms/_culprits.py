"""Which examples oppose safety: too many of them, or one that outweighs its whole batch?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graddiag.alarms._limits import Limits
from graddiag.alarms._reading import Reading
from graddiag.probe_values import finite_dots, length, opposing
from graddiag.probes import Probe


@dataclass(frozen=True)
class Share:
    """Evidence that more than half of the examples oppose (log likelihood ratio), and what was seen since it was last
    0: how many examples, how many of them oppose, and the worst with their products, the worst first."""

    evidence: float = 0.0
    seen: int = 0
    opposing: int = 0
    worst: tuple[tuple[str, float], ...] = ()


def share(before: Share, probe: Probe, limits: Limits) -> tuple[Share, Reading]:
    """The evidence with this probe's examples: a CUSUM of `log(q / 1/2)` for each that opposes, `log((1 - q) / 1/2)`
    for each that does not, q = `limits.opposing`, added up by batch.

    If signs are fair and independent, each start of a sum is a likelihood ratio of mean 1, so within `horizon` probes
    the limit `log(horizon / false_alarms)` is reached with a probability of at most `false_alarms` (Lorden 1971).
    """
    dots = finite_dots(probe)
    against, along = int((dots < 0).sum()), int((dots > 0).sum())
    limit = math.log(limits.horizon / limits.false_alarms)
    gained = against * math.log(2 * limits.opposing) + along * math.log(2 * (1 - limits.opposing))
    evidence = max(0.0, min(before.evidence, limit) + gained)
    if evidence == 0:
        return Share(), Reading(0.0, limit)
    new = [(probe.ids[i], float(probe.dots[i])) for i in opposing(probe)]
    worst = sorted([*before.worst, *new], key=lambda w: w[1])[: limits.most_ids]
    after = Share(evidence, before.seen + against + along, before.opposing + against, tuple(worst))
    says = (
        f"{after.opposing} of the {after.seen} examples seen lately oppose safety: a step on any of them raises the "
        f"loss on safe answers, to first order.{_blurred(probe)}"
    )
    return after, Reading(evidence, limit, tuple(i for i, _ in worst), says)


def dominating(probe: Probe, limits: Limits) -> Reading:
    """The share of the batch's absolute products that the worst opposing example has; 0 where its part in the step
    costs less than `limits.single`, for among harmless examples too single ones outweigh the rest.

    That cost is its product over n, times the step's size `||update|| / ||gradient||`: NaN where no update is watched.

    Its limit is `limits.dominating`, or what chance reaches where that is more: Fisher's test (1929) of the largest of
    n exponential sizes, `P(g > x) = n (1 - x)^(n - 1)` from x = 1/2 on and at most that below, half of it for the sign,
    at the level of one look in `horizon`. Exponential sizes have a heavier tail than normal ones; where sizes vary even
    more (by length, say), one example outweighs its batch more often by chance. NaN for a batch of fewer than two.
    """
    dots = finite_dots(probe)
    n, total = len(dots), float(np.abs(dots).sum())
    size = _step_size(probe)
    if n < 2 or total == 0 or math.isnan(size):
        return Reading(math.nan, limits.dominating)
    chance = 1 - (2 * limits.per_look / n) ** (1 / (n - 1))
    rows = opposing(probe)
    worst = -float(probe.dots[rows[0]]) if len(rows) else 0.0
    value = worst / total if worst * size / n >= limits.single else 0.0
    ids = (probe.ids[rows[0]],) if len(rows) else ()
    says = (
        f"One example that opposes safety has {value:.0%} of the absolute products of its batch of {n}: it outweighs "
        f"all others, and its part in this step raises the loss on safe answers by {worst * size / n:.2g} nats/token."
        f"{_blurred(probe)}"
    )
    return Reading(value, max(limits.dominating, chance), ids, says)


def _step_size(probe: Probe) -> float:
    norm = length(probe.gradient.norm)
    if probe.update is None or not math.isfinite(norm) or norm == 0:
        return math.nan
    return length(probe.update.norm) / norm


def _blurred(probe: Probe) -> str:
    if probe.dots_exact:
        return ""
    return f" Products are approximate ({probe.captured:.0%} of the safety gradient's squared norm)."
