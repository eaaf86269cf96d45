"""Which steps are probed, and when does the probe of one begin and end?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from graddiag.monitor._ranks import Part, Ranks, joined, meet_first_check
from graddiag.monitor._window import Watch, Window
from graddiag.probes import Probe

NOT_STEPPED = "The gradients were emptied without a step of the optimizer (not finite?): no update was measured."
OVERFLOWED = (
    "A GradScaler's factor made gradients that lie beyond the range of their precision, and the optimizer left the "
    "step out: that step was not counted, and was probed again."
)


class Prober:
    """Counts the optimizer's steps and opens a window in those that are probed. Errors are the caller's to catch.

    With `accumulation` no optimizer is watched, and a step is that many batches; `before_any_optimizer` is then called
    before the first step of any optimizer. With `closure` the optimizer's step runs the passes itself.
    """

    def __init__(
        self,
        watch: Watch,
        ranks: Ranks,
        *,
        accumulation: int | None,
        closure: bool,
        before_any_optimizer: Callable[[], None],
        notes: Sequence[str],
    ) -> None:
        self._watch, self._ranks, self._accumulation, self._closure = watch, ranks, accumulation, closure
        self._before_any_optimizer = before_any_optimizer
        self._notes = tuple(notes)
        self.steps = 0  # optimizer steps taken
        self._in_step = 0  # batches since the last one
        self._window: Window | None = None
        self._due = False  # whether a probe was begun; all processes meet at its end
        self._error: Exception | None = None  # of this process, of which the others do not know yet
        self._probed, self._first = -1, True  # the last step of which a probe was begun; whether none is complete
        self._any_optimizer: RemovableHandle | None = None

    def go_on(self, steps: int) -> None:
        """Goes on after some steps."""
        self.abandon()
        self.steps, self._probed, self._in_step = steps, -1, 0

    def begin(self, batch: Mapping[str, object], *, every: int, exact: bool) -> Probe | None:
        """Before a forward pass. Gives the probe of a step that turns out to have had no update."""
        unfinished = None
        if self._due and self._accumulation is None and self._watch.grads_are_gone():
            unfinished = self._left_out()
        if not self._due and self.steps % every == 0 and self.steps != self._probed:
            self._probed, self._due = self.steps, True
            if self._error is None:
                self._window = Window(self._watch, self.steps, exact=exact, check=self._first)
        if self._window is not None:
            self._window.open(batch)
            if self._first and self._accumulation is not None:
                self._any_optimizer = register_optimizer_step_pre_hook(lambda *_: self._before_any_optimizer())
        return unfinished

    def end(self) -> Probe | None:
        """After a backward pass. Gives a probe where no optimizer is watched and this was the last pass of a step."""
        self._forget_optimizers()
        if self._window is not None:
            self._window.close()
        if self._accumulation is None:
            return None
        self._in_step += 1
        if self._in_step < self._accumulation:
            return None
        self._in_step = 0
        self.steps += 1
        return self._finish()

    def settle(self) -> None:
        """All backward passes of the step are done."""
        if self._window is not None:
            self._window.settle()

    def settle_before_update(self) -> None:
        """The same, unless the passes are part of the update."""
        if not self._closure:
            self.settle()

    def before_update(self) -> None:
        """Keeps the weights. Raises WrongTogether where another process has wrong rows."""
        if self._due and self._first and self._ranks.many:
            meet_first_check(self._ranks, self._error)
        if self._window is not None and self._accumulation is None:
            self._window.before_update()

    def after_update(self) -> Probe | None:
        """After the optimizer's step. Gives its probe, if it was one that is probed."""
        self.steps += 1
        return self._finish()

    def failed_here(self, error: Exception) -> None:
        """Keeps an error for where all processes meet, so that none waits for this one."""
        self._error = self._error or error
        self._release()

    def abandon(self) -> None:
        """Forgets the step that is being probed, and takes all hooks off the model."""
        self._due = False
        self._release()

    def _release(self) -> None:
        self._forget_optimizers()
        if self._window is not None:
            self._window.close()
            self._window = None

    def _forget_optimizers(self) -> None:
        if self._any_optimizer is not None:
            self._any_optimizer.remove()
            self._any_optimizer = None

    def _finish(self, *notes: str) -> Probe | None:
        if not self._due:
            return None
        self._due = False
        said = (*self._notes, *self._watch.extractor.notes, *notes)
        self._notes = ()
        self._watch.extractor.notes.clear()
        probe = self._joined(said) if self._ranks.many else self._own(said)
        self._window, self._first = None, False
        return probe

    def _left_out(self) -> Probe | None:
        """The probe of a step that turned out to have no update; None where only its scale was too high for it, as a
        GradScaler finds out by trying: then the next attempt is probed instead."""
        notes, first = self._notes, self._first
        probe = self._finish(NOT_STEPPED)
        if probe is None or self._watch.scale() <= 1 or not _only_gradients_are_broken(probe):
            return probe
        self._probed, self._first = -1, first
        self._notes = tuple(dict.fromkeys((*notes, OVERFLOWED)))
        return None

    def _own(self, notes: Sequence[str]) -> Probe:
        assert self._window is not None
        return self._window.probe(notes)

    def _joined(self, notes: Sequence[str]) -> Probe:
        """The probe of all processes, which meet here, whatever happened to this one."""
        mine = None
        if self._error is None:
            try:
                mine = self._own(notes)
            except Exception as error:  # whatever it is, the others are told
                self._error = error
        shared = self._window.shared if self._window is not None else None
        return joined(self._ranks.gathered(Part.of(mine, shared, self._error)))


def _only_gradients_are_broken(probe: Probe) -> bool:
    losses = np.concatenate([probe.losses, probe.safety_losses])
    whole = np.isfinite(list(probe.gradient.norm.values())).all() and not probe.nonfinite
    return bool(np.isfinite(losses).all() and not probe.safety_nonfinite and not whole)
