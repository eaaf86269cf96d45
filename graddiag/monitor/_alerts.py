"""What becomes of a probe: rules see it, it is kept on disk, and what its alarms ask for is done."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from graddiag.alarms import Choice, Limits, Notice, Todo, Watch, check_choice, decide
from graddiag.probes import Probe
from graddiag.training_log import append_log, begin_log, rewind_log

_log = logging.getLogger("graddiag")


class Alerts:
    """The rules of one run, and its log in `folder`, where there is one.

    `unseen` are notices that are due with the first probe. `quiet`: nothing is said, since another process does it. A
    log of an earlier run in that folder is replaced, from the step on where this one begins. `should_save` and
    `should_stop` are set by actions; who acts on the first sets it back.
    """

    def __init__(
        self,
        limits: Limits | None,
        action: Choice,
        *,
        every: int,
        folder: Path | None,
        facts: Mapping[str, str],
        unseen: Sequence[str],
        quiet: bool,
    ) -> None:
        check_choice(action)
        self._unseen = tuple(unseen)
        self.watch = Watch(limits, every=every, unseen=self._unseen)
        self.should_save = self.should_stop = False
        self._action, self._folder, self._facts = action, folder, facts
        self._begun, self._quiet = False, quiet
        if folder is not None:
            begin_log(folder, facts, self.watch.limits)

    @property
    def stand(self) -> bool:
        """Whether some alarm still stands: its value has not fallen since."""
        return any(gate.standing for gate in self.watch.memory.gates.values())

    def go_on(self, state: Mapping[str, object]) -> None:
        """From the state of a watch on, its limits included. Raises DataError where it is none."""
        self.watch = Watch.restored(state, unseen=self._unseen)
        if self._folder is not None:
            begin_log(self._folder, self._facts, self.watch.limits)

    def see(self, probe: Probe) -> Todo:
        """What is to be done about a probe, whose alarms are written down."""
        before = len(self.watch.notices)
        alarms = self.watch.see(probe)
        notices = self.watch.notices[before:]
        if self._folder is not None:
            if not self._begun:
                rewind_log(self._folder, probe.step)
            append_log(self._folder, probe, alarms, notices)
        self._begun = True
        _say(() if self._quiet else notices)
        return decide(alarms, self._action)

    def do(self, todo: Todo) -> None:
        """Does it, where what is raised reaches the loop."""
        for warning in () if self._quiet else todo.warnings:
            _log.warning(warning)
        for call in todo.calls:
            call.function(call.alarm)
        self.should_save |= todo.checkpoint
        self.should_stop |= todo.stop
        if todo.error is not None:
            raise todo.error


def _say(notices: tuple[Notice, ...]) -> None:
    for notice in notices:
        _log.info("Step %d: %s", notice.step, notice.says)
