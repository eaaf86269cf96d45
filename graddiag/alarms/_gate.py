"""When is a value that reached its limit worth saying again?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graddiag.alarms._limits import Limits


@dataclass(frozen=True)
class Gate:
    """Whether a rule has given an alarm that still stands, and how many probes ago it gave the last; None: never."""

    standing: bool = False
    since: int | None = None

    def seen(self, value: float, limit: float, limits: Limits) -> Gate:
        """The gate after a probe; `since` is 0 where the value gives an alarm. NaN, undefined, changes nothing.

        An alarm stands until the value has fallen to `rearm` of its limit (hysteresis); the next one comes `cool_down`
        probes after it at the earliest, if the value is still there.
        """
        since = None if self.since is None else self.since + 1
        standing = self.standing and not value <= limits.rearm * limit
        ready = since is None or since >= limits.cool_down
        if value >= limit and not standing and ready:
            return Gate(True, 0)
        return replace(self, standing=standing, since=since)
