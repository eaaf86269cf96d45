"""The monitor inside Lightning's Trainer, as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from graddiag.alarms import Alarm, Notice
from graddiag.data import Source
from graddiag.errors import UsageError
from graddiag.monitor._monitor import Monitor
from graddiag.monitor._settings import Settings
from graddiag.training_log import log_keys


class LightningMonitor(Callback):
    """Watches a Lightning run with a `Monitor`, which is made when training begins and is then in `monitor`.

    `model` is the name of the LightningModule's attribute that holds the causal language model. The numbers of each
    probe go through `log_dict` as `graddiag/...`; what the monitor knows is saved and restored with Lightning's
    checkpoints. Of the actions, "checkpoint" saves `graddiag-step-N.ckpt` in `default_root_dir`, "stop" ends training.
    All other settings are those of `Monitor`. UsageError where training has more than one optimizer.
    """

    def __init__(
        self,
        *,
        safety: Source,
        tokenizer: PreTrainedTokenizerBase,
        every: int = 10,
        model: str = "model",
        **settings: Unpack[Settings],
    ) -> None:
        self._safety, self._tokenizer, self._every, self._settings = safety, tokenizer, every, settings
        self._model = model
        self.monitor: Monitor | None = None
        self._saved: Mapping[str, object] | None = None
        self._logged = -1  # the last step of which a probe was logged

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms of the run so far, empty if none."""
        return self.monitor.alarms if self.monitor else []

    @property
    def notices(self) -> list[Notice]:
        """What concerns the monitor itself, empty if nothing."""
        return self.monitor.notices if self.monitor else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the monitor. Raises UsageError or DataError where model, optimizer or examples cannot be used."""
        found = dict(pl_module.named_children())
        if self._model not in found or len(trainer.optimizers) != 1:
            raise UsageError(
                f"The module has children {', '.join(found) or 'none'} and {len(trainer.optimizers)} optimizers. "
                "Name the one that is the language model with model=..., and train with one optimizer."
            )
        self.monitor = Monitor(
            found[self._model], self._tokenizer, safety=self._safety, every=self._every,
            optimizer=trainer.optimizers[0], closure=pl_module.automatic_optimization, **self._settings,
        )  # fmt: skip
        if self._saved is not None:
            self.monitor.load_state(self._saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Before the forward pass."""
        if self.monitor is not None:
            self.monitor.begin(batch if isinstance(batch, Mapping) else None)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """After the last backward pass of a step."""
        if self.monitor is not None:
            self.monitor.settle()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """After the optimizer's step, if there was one: logs a new probe, and does what its alarms ask for."""
        monitor = self.monitor
        if monitor is None:
            return
        monitor.end()
        if monitor.probes and monitor.probes[-1].step != self._logged:
            probe = monitor.probes[-1]
            self._logged = probe.step
            pl_module.log_dict(log_keys(probe, [a for a in monitor.alarms if a.step == probe.step]))
        trainer.should_stop |= monitor.should_stop
        if monitor.should_save:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"graddiag-step-{monitor.steps}.ckpt")
            monitor.should_save = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the monitor off model and optimizer."""
        if self.monitor is not None:
            self.monitor.close()

    def state_dict(self) -> dict[str, object]:
        """What the monitor knows, for Lightning's checkpoint."""
        return self.monitor.state() if self.monitor is not None else {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Goes on from a checkpoint's state when training begins."""
        self._saved = state_dict or None
