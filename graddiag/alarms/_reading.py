"""What a rule reads at one probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from graddiag.probes import Probe


@dataclass(frozen=True)
class Reading:
    """A rule's value and its limit, in the rule's unit (NaN: undefined), the examples concerned, and what to say if it
    is an alarm."""

    value: float
    limit: float
    ids: tuple[str, ...] = ()
    says: str = ""


def ids_at(probe: Probe, rows: Int[np.ndarray, " m"], most: int) -> tuple[str, ...]:
    """The ids of the first `most` of these examples."""
    return tuple(probe.ids[i] for i in rows[:most])
