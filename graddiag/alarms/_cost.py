"""Is the monitor within its budget, and if not, how often should it probe?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graddiag.alarms._limits import Limits
from graddiag.probe_values import overhead
from graddiag.probes import Probe

ENOUGH = 3  # probes that a cost is averaged over: one slow step says nothing


@dataclass(frozen=True)
class Cost:
    """How often to probe, and what the probes since that was decided took, in training steps. The first probe is not
    counted: it also prepares."""

    every: int
    probes: int = 0
    steps: float = 0.0
    started: bool = False

    @property
    def share(self) -> float:
        """The cost as a share of training time; NaN until enough probes were seen."""
        return self.steps / self.probes / self.every if self.probes >= ENOUGH else math.nan

    def seen(self, probe: Probe, limits: Limits) -> Cost:
        """After a probe: `every` is twice as much where the share is above `limits.overhead`."""
        steps = overhead(probe)
        if not self.started or not math.isfinite(steps):
            return Cost(self.every, self.probes, self.steps, started=True)
        after = Cost(self.every, self.probes + 1, self.steps + steps, started=True)
        return Cost(2 * self.every, started=True) if after.share > limits.overhead else after

    def says(self, after: Cost, limits: Limits) -> str:
        """Why `every` was changed."""
        return (
            f"Probes every {self.every} steps cost more than {limits.overhead:.0%} of training time; from now on every "
            f"{after.every} steps."
        )
