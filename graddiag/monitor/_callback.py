"""The monitor inside the Hugging Face Trainer and TRL's trainers, as a callback."""

from __future__ import annotations

import logging
from typing import Unpack

from torch.nn import Module
from torch.optim import Optimizer
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from graddiag.alarms import Alarm, Notice
from graddiag.data import Source
from graddiag.errors import UsageError
from graddiag.monitor._monitor import Monitor
from graddiag.monitor._settings import Settings
from graddiag.probes import Probe
from graddiag.training_log import log_keys

STATE = "graddiag"  # our place among the states of callbacks in a checkpoint
_log = logging.getLogger("graddiag")


class MonitorCallback(TrainerCallback):
    """Watches a Trainer's run with a `Monitor`, which is made when training begins and is then in `monitor`.

    `trainer.add_callback(MonitorCallback(safety=examples))`. The tokenizer is the given one, else the trainer's
    `processing_class`, else its collator's; UsageError where there is none. All other settings are those of `Monitor`.
    Of the actions, "checkpoint" saves one after the step, "stop" ends training after it.

    The numbers of each probe are an entry of their own in `state.log_history`, with keys `graddiag/...`; to get them to
    TensorBoard and other loggers too, call `attach(trainer)` before `trainer.train()`. What the monitor knows is saved
    with the trainer's checkpoints and taken from the one that training resumes from, into this very object: it is not
    an `ExportableState`, of which the Trainer would make another object and lose the examples.
    """

    def __init__(
        self,
        *,
        safety: Source,
        tokenizer: PreTrainedTokenizerBase | None = None,
        every: int = 10,
        **settings: Unpack[Settings],
    ) -> None:
        self._safety, self._tokenizer, self._every, self._settings = safety, tokenizer, every, settings
        self.monitor: Monitor | None = None
        self._trainer: Trainer | None = None
        self._logged = -1  # the last step of which a probe was logged

    def attach(self, trainer: Trainer) -> None:
        """From now on the numbers go through the trainer's own log, to all its loggers."""
        self._trainer = trainer

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms of the run so far, empty if none."""
        return self.monitor.alarms if self.monitor else []

    @property
    def notices(self) -> list[Notice]:
        """What concerns the monitor itself, empty if nothing."""
        return self.monitor.notices if self.monitor else []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Module | None = None,
        optimizer: Optimizer | None = None,
        processing_class: object = None,
        train_dataloader: object = None,
        **kwargs: object,
    ) -> None:
        """Makes the monitor. Raises UsageError or DataError where the model or the examples cannot be used."""
        assert model is not None
        tokenizer = _tokenizer(self._tokenizer, processing_class, train_dataloader)
        self.monitor = Monitor(
            model, tokenizer, safety=self._safety, every=self._every, optimizer=optimizer, **self._settings
        )  # fmt: skip
        self._logged = -1
        kept = state.stateful_callbacks
        if isinstance(kept, dict) and STATE in kept:
            self.monitor.load_state(kept[STATE]["attributes"])
        if self._trainer is None and state.is_world_process_zero:
            _log.warning(
                "graddiag's numbers are entries of their own in state.log_history. For TensorBoard and other loggers, "
                "call callback.attach(trainer) before trainer.train()."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Before the forward passes of a step; the batches are read as they come to the model."""
        if self.monitor is not None:
            self.monitor.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl | None:
        """After the optimizer's step: logs a new probe, and does what its alarms ask for."""
        if self.monitor is None:
            return None
        self.monitor.end()
        if self.monitor.probes and self.monitor.probes[-1].step != self._logged:
            self._log(self.monitor.probes[-1], state, control)
        control.should_training_stop |= self.monitor.should_stop
        control.should_save |= self.monitor.should_save
        self.monitor.should_save = False
        if isinstance(state.stateful_callbacks, dict):
            state.stateful_callbacks[STATE] = {"args": {}, "attributes": self.monitor.state()}
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes the monitor off model and optimizer."""
        if self.monitor is not None:
            self.monitor.close()

    def _log(self, probe: Probe, state: TrainerState, control: TrainerControl) -> None:
        self._logged = probe.step
        alarms = [a for a in self.alarms if a.step == probe.step]
        keys = log_keys(probe, alarms)
        if self._trainer is None:
            state.log_history.append({**keys, "epoch": state.epoch, "step": state.global_step})
            return
        # A log ends what the trainer meant to log at this step, and TRL's own would empty its metrics: hence the
        # Trainer's, and the wish put back.
        wanted = control.should_log
        Trainer.log(self._trainer, keys)
        control.should_log = wanted


def _tokenizer(given: PreTrainedTokenizerBase | None, processing: object, loader: object) -> PreTrainedTokenizerBase:
    """The tokenizer that is used. Raises UsageError where there is none."""
    collator = getattr(loader, "collate_fn", None)
    inner = getattr(collator, "data_collator", collator)  # the Trainer wraps one to leave columns out
    places = (given, processing, getattr(processing, "tokenizer", None), getattr(inner, "tokenizer", None))
    found = next((p for p in places if isinstance(p, PreTrainedTokenizerBase)), None)
    if found is None:
        raise UsageError(
            "There is no tokenizer: none was given to MonitorCallback, the trainer's processing_class is "
            f"{type(processing).__name__} and its collator has none. Pass MonitorCallback(tokenizer=...)."
        )
    return found
