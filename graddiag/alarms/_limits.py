"""From where on is something worth an alarm? One set of limits, the same in tests and experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from graddiag.alarms._cusum import cusum_limit, possible_false_alarms
from graddiag.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The limits of all rules; each has a unit and a reason. Raises UsageError for an impossible value.

    `false_alarms` is, of each rule that tests for chance, the chance that it raises an alarm within `horizon` probes of
    a run whose examples are as likely to oppose safety as to support it. 1 in 20 is the convention of the field, and
    100 probes are a run of 1,000 steps. There are six such tests: all together are false in at most six times that.

    `shift` is the mean shift of a probe's conflict that is found soonest, in standard deviations of chance: 2 finds
    data that opposes outright within two or three probes, and leaves alone what is below 1 for good, as weak ties of
    harmless tasks to safety are; `drift` and `safety_loss` are there for those if they add up.

    `memory` is the share of an update that is left after one more step: 0.9, the usual momentum and first beta of Adam.

    `drift` and `rise` are the least sum of predicted changes, and measured change, of the safety loss that matter,
    nats/token: 0.02 makes a safe answer of 50 tokens 2.7 times less likely, and any training moves losses by less;
    predictions, which are of a step now and then, must show more than twice as much.

    `opposing` is the share of opposing examples that is found soonest: three of four, half way from chance to all.
    `dominating` is the share of a batch's absolute products above which one example outweighs all others, and `single`
    the least predicted change of the safety loss by its part in one step that matters: a tenth of the whole run's
    `drift`, nats/token.

    `overhead` is what probes may cost, as a share of training time. An alarm is given again only when its value has
    fallen to `rearm` of its limit, and `cool_down` probes later at the earliest; it names at most `most_ids` examples,
    as many as one can look at.
    """

    false_alarms: float = 0.05
    horizon: int = 100
    shift: float = 2.0
    memory: float = 0.9
    drift: float = 0.05
    rise: float = 0.02
    opposing: float = 0.75
    dominating: float = 0.5
    single: float = 0.005
    overhead: float = 0.05
    cool_down: int = 5
    rearm: float = 0.5
    most_ids: int = 10

    def __post_init__(self) -> None:
        between = {
            "false_alarms": (0, 1),
            "memory": (0, 1),
            "opposing": (0.5, 1),
            "dominating": (0, 1),
            "rearm": (0, 1),
        }
        for name, (low, high) in between.items():
            value = getattr(self, name)
            if not low <= value < high or (value == low and name in {"false_alarms", "opposing"}):
                raise UsageError(f"{name} is {value}; choose a number above {low} and below {high}.")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in {"horizon", "most_ids"} else 0
            if not math.isfinite(value) or value < least:
                raise UsageError(f"{field.name} is {value}; choose a finite number, {least} or more.")
        if self.shift == 0:
            raise UsageError(
                f"shift is {self.shift}; choose the shift that is to be found soonest, in standard deviations."
            )
        self._check_rate()

    def _check_rate(self) -> None:
        """Raises UsageError where no sum of evidence is reached by chance as often as `false_alarms` says."""
        low, high = possible_false_alarms(self.horizon, self.shift)
        if low >= high:
            raise UsageError(
                f"shift is {self.shift} with horizon {self.horizon}: chance then reaches any limit of evidence in a "
                f"share of about {high:.2g} of runs. Choose a shift nearer to 2, or another horizon."
            )
        if not low <= self.false_alarms <= high:
            raise UsageError(
                f"false_alarms is {self.false_alarms}; with horizon {self.horizon} and shift {self.shift} choose a "
                f"number from about {low:.2g} to {high:.2g}, or another horizon or shift."
            )

    @property
    def per_look(self) -> float:
        """The chance of a false alarm at one probe, so that all of `horizon` together keep to `false_alarms`."""
        return self.false_alarms / self.horizon

    @property
    def conflict(self) -> float:
        """The sum of evidence at which the conflict rules give an alarm, in standard deviations of chance."""
        return cusum_limit(self.false_alarms, self.horizon, self.shift)
