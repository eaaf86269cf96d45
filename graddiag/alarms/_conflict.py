"""Do the steps oppose safety, probe after probe? The batch's gradient, the real update, and non-finite numbers."""

from __future__ import annotations

import math

import numpy as np

from graddiag.alarms._cusum import added
from graddiag.alarms._limits import Limits
from graddiag.alarms._reading import Reading, ids_at
from graddiag.alarms._scores import conflict_score, inflation, update_score
from graddiag.probe_values import broken, cosine_with_safety, length, opposing
from graddiag.probes import Probe


def nonfinite(probe: Probe, limits: Limits) -> Reading:
    """How many losses or gradients of examples are not finite; one is too many."""
    rows = np.flatnonzero(broken(probe))
    sizes = (length(probe.gradient.norm), length(probe.safety_norms))
    count = max(probe.nonfinite, len(rows)) + max(
        probe.safety_nonfinite, int((~np.isfinite(probe.safety_losses)).sum())
    )
    count += 0 if count else sum(not math.isfinite(s) for s in sizes)
    says = f"{count} losses or gradients are not finite; numbers of this step mean nothing."
    return Reading(float(count), 1.0, ids_at(probe, rows, limits.most_ids), says)


def conflict(evidence: float, probe: Probe, limits: Limits) -> tuple[float, Reading]:
    """The evidence with this probe's, and what it says."""
    score = conflict_score(probe)
    evidence = added(evidence, score, shift=limits.shift, limit=limits.conflict)
    cosine = cosine_with_safety(probe.gradient, probe.safety_norms)
    return evidence, _reading(evidence, "the batches", cosine, probe, limits)


def update_conflict(evidence: float, probe: Probe, steps: int, limits: Limits) -> tuple[float, Reading]:
    """The same of the real update, `steps` after that of the probe before."""
    if probe.update is None:
        return evidence, Reading(math.nan, limits.conflict)
    score = update_score(probe, inflation=inflation(limits.memory, steps))
    evidence = added(evidence, score, shift=limits.shift, limit=limits.conflict)
    cosine = cosine_with_safety(probe.update, probe.safety_norms)
    return evidence, _reading(evidence, "the optimizer's steps", cosine, probe, limits)


def _reading(evidence: float, what: str, cosine: float, probe: Probe, limits: Limits) -> Reading:
    says = (
        f"To first order, {what} raise the loss on safe answers (cosine with safety {cosine:+.3f} at this step); "
        f"chance brings as much evidence in {limits.false_alarms:.0%} of runs of {limits.horizon} probes."
    )
    return Reading(evidence, limits.conflict, ids_at(probe, opposing(probe), limits.most_ids), says)
