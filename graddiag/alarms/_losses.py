"""Does the loss on safe answers rise: as predicted from the steps, and as measured?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

from graddiag.alarms._limits import Limits
from graddiag.alarms._reading import Reading, ids_at
from graddiag.alarms._scores import inflation
from graddiag.errors import DataError
from graddiag.probe_values import cosine_scale, length, mean_and_error, opposing
from graddiag.probes import Probe


@dataclass(frozen=True)
class Drift:
    """The sum of predicted changes of the safety loss, nats/token, and the variance that chance gives it."""

    total: float = 0.0
    variance: float = 0.0


def drift(before: Drift, probe: Probe, steps: int, limits: Limits) -> tuple[Drift, Reading]:
    """The sum with this probe's prediction, which stands for the `steps` since the probe before.

    The limit is `limits.drift`, or what chance reaches where that is more: the sum of the variances that sign flips
    of the examples give each prediction (as for the update's cosine), at the level of one look in `horizon`.
    """
    if probe.predicted_change is None or not math.isfinite(probe.predicted_change):
        return before, Reading(math.nan, limits.drift)
    total = before.total + steps * probe.predicted_change
    spread = (
        0.0 if probe.update is None else cosine_scale(probe) * length(probe.update.norm) * length(probe.safety_norms)
    )
    spread *= steps * inflation(limits.memory, steps)
    after = Drift(total, before.variance + (spread**2 if math.isfinite(spread) else 0.0))
    chance = float(-ndtri(limits.per_look)) * math.sqrt(after.variance)
    says = (
        f"By the predictions at the probes, the steps so far raise the loss on safe answers by {total:.3g} nats/token; "
        f"the budget is {limits.drift:g}, and chance reaches {chance:.2g} in {limits.false_alarms:.0%} of runs of "
        f"{limits.horizon} probes."
    )
    ids = ids_at(probe, opposing(probe), limits.most_ids)
    return after, Reading(total, max(limits.drift, chance), ids, says)


def safety_loss(first: tuple[float, ...], probe: Probe, limits: Limits) -> Reading:
    """The mean change of the safety losses since the first probe, over the same examples, nats/token.

    The limit is `limits.rise`, or t(s - 1) standard errors of the paired changes where that is more, t at the level of
    one look in `horizon` (Bonferroni: 4.1 standard errors for 16 examples and the default limits; never below 2). NaN
    where fewer than two examples are finite at both. Raises DataError where the examples are not as many as at first.
    """
    if len(probe.safety_losses) != len(first):
        raise DataError(
            f"At step {probe.step} there are {len(probe.safety_losses)} safety losses, at the first probe {len(first)}."
            " Probe the same safety examples every time."
        )
    changes = paired_changes(np.array(first), probe)
    mean, error = mean_and_error(changes)
    if not math.isfinite(error):
        return Reading(math.nan, limits.rise)
    n = len(changes)
    errors = max(2.0, -float(stdtrit(n - 1, limits.per_look)))
    says = (
        f"The loss on safe answers is {mean:.3g} nats/token higher than at the first probe ({n} examples, standard "
        f"error {error:.2g}); it matters from {limits.rise:g} and {errors:.1f} standard errors on."
    )
    return Reading(mean, max(limits.rise, errors * error), says=says)


def paired_changes(first: Float[np.ndarray, " s"], probe: Probe) -> Float[np.ndarray, " m"]:
    """The changes of the safety losses since the first probe, of the examples that are finite at both."""
    changes = probe.safety_losses - first
    return np.asarray(changes[np.isfinite(changes)])
