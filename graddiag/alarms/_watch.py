"""From probes to alarms: what is remembered between probes, and what each new one adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from graddiag.alarms._alarm import Alarm, Notice, RuleName
from graddiag.alarms._conflict import conflict, nonfinite, update_conflict
from graddiag.alarms._cost import Cost
from graddiag.alarms._culprits import dominating, share
from graddiag.alarms._limits import Limits
from graddiag.alarms._losses import drift, safety_loss
from graddiag.alarms._memory import GATES, Memory
from graddiag.alarms._reading import Reading
from graddiag.alarms._state import SCHEMA, Json, read_state
from graddiag.errors import UsageError
from graddiag.files import strict
from graddiag.probes import Probe


class Watch:
    """Sees the probes of a run in their order, and says when one is worth an alarm.

    `every` is how often to probe, in steps: as given, doubled whenever probes cost more than the limits allow. The
    alarms and notices so far are in `alarms` and `notices`. What probes do not show by their nature, `unseen`, is a
    notice each with the next probe, unless it has been said before.
    """

    def __init__(self, limits: Limits | None = None, *, every: int = 10, unseen: Sequence[str] = ()) -> None:
        if every < 1:
            raise UsageError(f"every is {every}; choose 1 or more, in training steps.")
        self.limits = limits or Limits()
        self.memory = Memory(Cost(every))
        self.alarms: tuple[Alarm, ...] = ()
        self.notices: tuple[Notice, ...] = ()
        self._unseen = tuple(unseen)

    @property
    def every(self) -> int:
        """How often to probe from now on, in steps."""
        return self.memory.cost.every

    def see(self, probe: Probe) -> tuple[Alarm, ...]:
        """The alarms that this probe gives, none for most.

        Raises UsageError for a step that is not after the last one's, DataError where the safety examples are others.
        """
        before, limits = self.memory, self.limits
        if before.last_step is not None and probe.step <= before.last_step:
            raise UsageError(f"Step {probe.step} was given after step {before.last_step}; give probes in their order.")
        seen, readings = _read(before, probe, limits)
        gates = {name: before.gates[name].seen(r.value, r.limit, limits) for name, r in readings.items()}
        self.memory = replace(seen, gates=gates)
        new = tuple(_alarm(probe.step, GATES[n], readings[n]) for n, gate in gates.items() if gate.since == 0)
        self.alarms += new
        known = {n.says for n in self.notices}
        self.notices += tuple(Notice(probe.step, "unseen", says) for says in self._unseen if says not in known)
        self.notices += _notices(before, seen, probe, limits)
        return new

    def state(self) -> dict[str, object]:
        """All that this watch knows and has said, as strict JSON; its size grows with the alarms alone."""
        return {
            "schema": SCHEMA,
            "limits": asdict(self.limits),
            "memory": strict(asdict(self.memory)),
            "alarms": [asdict(a) for a in self.alarms],
            "notices": [asdict(n) for n in self.notices],
        }

    @classmethod
    def restored(cls, state: Json, *, unseen: Sequence[str] = ()) -> Watch:
        """The watch of a state, which goes on where it was. Raises DataError where it is not the state of a watch."""
        kept = read_state(state)
        watch = cls(kept.limits, unseen=unseen)
        watch.memory, watch.alarms, watch.notices = kept.memory, kept.alarms, kept.notices
        return watch


def _read(before: Memory, probe: Probe, limits: Limits) -> tuple[Memory, dict[str, Reading]]:
    """What is remembered after a probe, gates apart, and what every rule reads."""
    steps = 1 if before.last_step is None else probe.step - before.last_step
    first = tuple(probe.safety_losses.tolist()) if before.last_step is None else before.first_losses
    evidence, of_batch = conflict(before.conflict, probe, limits)
    update, of_update = update_conflict(before.update, probe, steps, limits)
    budget, of_drift = drift(before.drift, probe, steps, limits)
    opposed, of_share = share(before.share, probe, limits)
    cost = before.cost.seen(probe, limits)
    after = replace(
        before, cost=cost, last_step=probe.step, first_losses=first, conflict=evidence, update=update, drift=budget,
        share=opposed,
    )  # fmt: skip
    return after, {
        "nonfinite": nonfinite(probe, limits),
        "conflict": of_batch,
        "update_conflict": of_update,
        "drift": of_drift,
        "safety_loss": safety_loss(first, probe, limits),
        "share": of_share,
        "dominating": dominating(probe, limits),
    }


def _alarm(step: int, rule: RuleName, reading: Reading) -> Alarm:
    return Alarm(step, rule, float(reading.value), reading.limit, reading.ids, reading.says)


def _notices(before: Memory, after: Memory, probe: Probe, limits: Limits) -> tuple[Notice, ...]:
    out = []
    if before.last_step is None and probe.update is None:
        says = "The optimizer is not watched: update_conflict and drift cannot be told. Give it to the monitor."
        out.append(Notice(probe.step, "unseen", says))
    if before.last_step is None and not len(probe.dots):
        says = "Single examples are not seen: conflict, update_conflict and culprits cannot be told."
        out.append(Notice(probe.step, "unseen", says))
    if after.cost.every != before.cost.every:
        out.append(Notice(probe.step, "cost", before.cost.says(after.cost, limits)))
    return tuple(out)
