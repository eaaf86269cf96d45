"""What is remembered between probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graddiag.alarms._alarm import RuleName
from graddiag.alarms._cost import Cost
from graddiag.alarms._culprits import Share
from graddiag.alarms._gate import Gate
from graddiag.alarms._losses import Drift

GATES: Mapping[str, RuleName] = {
    "nonfinite": "nonfinite",
    "conflict": "conflict",
    "update_conflict": "update_conflict",
    "drift": "drift",
    "safety_loss": "safety_loss",
    "share": "culprits",
    "dominating": "culprits",
}


@dataclass(frozen=True)
class Memory:
    """All that a watch knows of the probes so far: numbers only, whose size does not grow with the run."""

    cost: Cost
    last_step: int | None = None
    first_losses: tuple[float, ...] = ()
    conflict: float = 0.0
    update: float = 0.0
    drift: Drift = field(default_factory=Drift)
    share: Share = field(default_factory=Share)
    gates: Mapping[str, Gate] = field(default_factory=lambda: dict.fromkeys(GATES, Gate()))
