"""What a training loop sees of the monitor, and what an error of ours does to the loop: nothing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch.nn import Module
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from graddiag.alarms import Alarm, Choice, Limits, Notice, Todo
from graddiag.data import Source, read_set
from graddiag.encoding import encode
from graddiag.errors import DataError
from graddiag.extraction import BATCH_TOKENS, row_length
from graddiag.monitor._check import WrongRows
from graddiag.monitor._prober import Prober
from graddiag.monitor._ranks import FailedTogether, Ranks
from graddiag.monitor._rows import check_kept
from graddiag.monitor._setup import (
    Wanted,
    alerts_of,
    check_numbers,
    inner_optimizer,
    keeping,
    scale_of,
    trained,
    unwrapped,
)
from graddiag.monitor._window import Watch
from graddiag.probes import Probe
from graddiag.projection import Toward
from graddiag.readings import bare_extractor

KEPT = 64  # probes that a monitor remembers
SCHEMA = 1  # of a saved state
RANK = 16  # of the stand-in for the safety gradient
_log = logging.getLogger("graddiag")


class Monitor:
    """Says at every `every`-th optimizer step whether the step opposes the mean gradient of the `safety` examples.

    Around a loop's own forward and backward pass: `with monitor.step(batch): ...`. A step is done when `optimizer` (if
    given) has stepped, inside the with-block or after it, whatever number of with-blocks that takes; without one, after
    `accumulation` with-blocks. Each probe is a `Probe`, given to `on_probe` as soon as it is complete; the last 64 are
    in `probes`. What `on_probe` raises reaches the loop.

    Rules with `limits` watch the probes: what they say is in `alarms`, what concerns the monitor itself in `notices`.
    `action` says what is done about an alarm: "log", "warn", "checkpoint" (`should_save` is set, for the loop to see
    and set back), "stop" (`should_stop` is set), "raise", or a function of the alarm; or one of these for each rule.
    While an alarm stands, examples are multiplied exactly. Where probes cost more than the limits allow, `every` is
    doubled. Probes and alarms are kept as lines in `folder`, of which `graddiag report` makes a page.

    The training is not changed: weights after any number of steps are bit for bit what they would be. Probed are the
    trained `blocks` (patterns as everywhere; by default linear weights inside the decoder layers). Examples are
    multiplied with a stand-in of rank `rank` for the safety gradient, or with that itself if `exact`. `scale` says by
    what a loss is multiplied before its backward pass and its gradients are divided after it: `scaler.get_scale` of a
    GradScaler (accelerate's own is found). With `closure` the optimizer's step runs forward and backward pass itself;
    then `settle` may be called between backward pass and update, for the first check to come in time.

    With a `projection` ("logra" and others, `dim`, `seed` as in `extract`) the examples' gradients are kept, as
    signals, in `folder/rows/step-...`; their ids are places in the run, their digests those of the same rows elsewhere.

    An error of the monitor turns it off, is logged once and kept in `failed`; with `strict` it is raised. One error
    always is, before the optimizer's first step: rows that plain autograd does not confirm (at the first probe).
    Raises UsageError or DataError for settings and examples that cannot be used.
    """

    failed: Exception | None = None

    def __init__(
        self, model: Module, tokenizer: PreTrainedTokenizerBase, *, safety: Source, every: int = 10,
        optimizer: Optimizer | None = None, accumulation: int = 1, blocks: Sequence[str] | None = None,
        rank: int = RANK, exact: bool = False, scale: Callable[[], float] | None = None, closure: bool = False,
        target: str = "answer", max_length: int | None = None, projection: str | None = None, dim: int = 256,
        seed: int = 0, folder: str | Path | None = None, batch_tokens: int = BATCH_TOKENS,
        limits: Limits | None = None, action: Choice = "warn", on_probe: Callable[[Probe], None] | None = None,
        strict: bool = False,
    ) -> None:  # fmt: skip
        check_numbers(every=every, accumulation=accumulation, rank=rank)
        check_kept(projection, folder)
        inner, self._ranks = unwrapped(model), Ranks.now()
        chosen = trained(inner, blocks)
        encoded = encode(read_set(safety), tokenizer, target=target, max_length=row_length(inner, max_length))
        extractor, scale = bare_extractor(inner, chosen, Toward()), scale or scale_of(optimizer)
        watch = Watch(inner, extractor, encoded.rows, batch_tokens, rank, scale, many=self._ranks.many)
        if projection is not None and folder is not None:
            wanted = Wanted(projection, dim, seed, target, max_length)
            watch = keeping(watch, tokenizer, wanted, folder=folder, process=self._ranks.this)
        self._alerts = alerts_of(watch, limits, action, every=every, folder=folder, process=self._ranks.this)
        self._always_exact, self._on_probe, self.strict = exact, on_probe, strict
        self.probes: deque[Probe] = deque(maxlen=KEPT)
        self._ready = list[tuple[Probe, Todo]]()
        self._prober = Prober(
            watch, self._ranks, accumulation=None if optimizer is not None else accumulation, closure=closure,
            before_any_optimizer=self._before_optimizer, notes=encoded.notes,
        )  # fmt: skip
        self._handles = self._on_optimizer(inner_optimizer(optimizer, chosen))

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms so far, in their order."""
        return list(self._alerts.watch.alarms)

    @property
    def notices(self) -> list[Notice]:
        """What concerns the monitor itself: its cost, what it cannot see."""
        return list(self._alerts.watch.notices)

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._prober.steps

    @property
    def every(self) -> int:
        """A step is probed if its number is a multiple of this."""
        return self._alerts.watch.every

    @property
    def exact(self) -> bool:
        """Whether examples are multiplied with the whole safety gradient at the next probe."""
        return self._always_exact or self._alerts.stand

    @property
    def should_save(self) -> bool:
        """Whether an alarm asks for a checkpoint; the loop sets it back when it has saved one."""
        return self._alerts.should_save

    @should_save.setter
    def should_save(self, value: bool) -> None:
        self._alerts.should_save = value

    @property
    def should_stop(self) -> bool:
        """Whether an alarm asks for the end of training."""
        return self._alerts.should_stop

    def state(self) -> dict[str, object]:
        """What the monitor knows between two steps, as strict JSON: kept with a checkpoint of the training."""
        return {"schema": SCHEMA, "steps": self.steps, "alarms": self._alerts.watch.state()}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Goes on from a state, as if there had been no interruption: steps, `every`, alarms, and the limits of then.

        Probes before it are not remembered in `probes`. Raises DataError where it is not the state of a monitor.
        """
        steps, alarms = state.get("steps"), state.get("alarms")
        if state.get("schema") != SCHEMA or not isinstance(steps, int) or not isinstance(alarms, Mapping):
            raise DataError(f"This is no state of a monitor (keys {sorted(state)}). Give what monitor.state() gave.")
        self.abandon()
        self._alerts.go_on(alarms)
        self._prober.go_on(steps)

    def _on_optimizer(self, optimizer: Optimizer | None) -> ExitStack:
        """Hooks on the optimizer, which stay there: they count its steps."""
        stack = ExitStack()
        if optimizer is not None:
            before = optimizer.register_step_pre_hook(lambda *_: self._before_optimizer())
            after = optimizer.register_step_post_hook(lambda *_: self._after_optimizer())
            stack.callback(before.remove)
            stack.callback(after.remove)
        return stack

    @contextmanager
    def step(self, batch: Mapping[str, object] | None = None) -> Iterator[None]:
        """Around the forward and backward pass of one batch, or of several.

        Errors of the loop pass through, and end the probe. What the model is not given itself (labels, where the loss
        is the loop's own) is looked up in `batch`.
        """
        self.begin(batch)
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        self.end()

    def begin(self, batch: Mapping[str, object] | None = None) -> None:
        """What happens before a step's forward pass; for loops that have no room for a with-block."""
        with self._never_in_the_way():
            if self.failed is None:
                self._see(self._prober.begin(batch or {}, every=self.every, exact=self.exact))
        self._emit()

    def end(self) -> None:
        """What happens after a step's backward pass."""
        with self._never_in_the_way():
            if self.failed is None:
                self._see(self._prober.end())
        self._emit()

    def settle(self) -> None:
        """All backward passes of the step that is being probed are done; raises WrongRows where the check fails."""
        with self._never_in_the_way():
            self._prober.settle()

    def abandon(self) -> None:
        """Forgets the step that is being probed, and takes all hooks off the model."""
        self._prober.abandon()

    def close(self) -> None:
        """Takes the monitor off model and optimizer for good."""
        self.abandon()
        self._handles.close()

    def _before_optimizer(self) -> None:
        """Just before a step: the last moment for the first check."""
        if self.failed is None:
            with self._never_in_the_way():
                self._prober.settle_before_update()
            with self._never_in_the_way():
                self._prober.before_update()

    def _after_optimizer(self) -> None:
        with self._never_in_the_way():
            self._see(self._prober.after_update())
        self._emit()

    def _see(self, probe: Probe | None) -> None:
        if probe is not None:
            self.probes.append(probe)
            self._ready.append((probe, self._alerts.see(probe)))

    def _emit(self) -> None:
        """Hands complete probes on, where what is raised reaches the loop."""
        while self._ready:
            probe, todo = self._ready.pop(0)
            if self._on_probe is not None:
                self._on_probe(probe)
            self._alerts.do(todo)

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it is not the training's fault
            if self._ranks.many and not isinstance(error, FailedTogether):
                self._prober.failed_here(error)
                return
            self.failed = error
            self.close()
            if self.strict or isinstance(error, WrongRows):
                raise
            _log.exception("graddiag's monitor is off from step %d on; the training goes on without it.", self.steps)
