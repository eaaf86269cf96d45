"""The monitor inside Lightning's Trainer."""

from __future__ import annotations

import copy
from dataclasses import replace

import lightning
import pytest
import torch
from architectures import build
from loops import SAFETY, TEXTS, TOUCHY, exact_model, padded, tiny
from trainers import check_by_id, same_weights, third_probe_limit

import graddiag
from graddiag.errors import UsageError

ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


class Module(lightning.LightningModule):
    """A language model that climbs: it makes its texts less likely."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.05, maximize=True)


def fit(model, tokenizer, folder, *callbacks, steps=2, checkpoint=None):
    """Steps of two batches of two texts each, with clipping."""
    lightning.seed_everything(1, verbose=False)
    run = lightning.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=2, gradient_clip_val=0.5, default_root_dir=folder,
        callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=steps,
    )  # fmt: skip
    batches = [padded(tokenizer, TEXTS[:2]), padded(tokenizer, TEXTS[2:])]
    module = Module(model)
    run.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=checkpoint)
    return run


def watched(tokenizer, **settings):
    chosen = {"safety": SAFETY, "every": 1, "exact": True, "strict": True, **settings}
    return graddiag.LightningMonitor(tokenizer=tokenizer, **chosen)


def test_rows_of_an_accumulated_step_are_those_of_each_example_alone(tokenizer, tmp_path):
    model = exact_model(tokenizer)
    before, monitor = copy.deepcopy(model), watched(tokenizer)
    run = fit(model, tokenizer, tmp_path, monitor, steps=1)
    (probe,) = monitor.monitor.probes
    check_by_id(probe, before, tokenizer, TEXTS, ROUNDING)
    assert probe.predicted_change > 0
    assert run.callback_metrics["graddiag/predicted_change"] == pytest.approx(probe.predicted_change, rel=ROUNDING)


def test_weights_and_alarms_are_those_of_a_run_without_monitor_and_without_interruption(tokenizer, tmp_path):
    def dropping():
        with torch.random.fork_rng(devices=[]):
            return build("gpt2", vocabulary=len(tokenizer), context=256).float().train()

    plain, whole, parts, unlimited = dropping(), dropping(), dropping(), watched(tokenizer)
    fit(plain, tokenizer, tmp_path, steps=4)
    fit(dropping(), tokenizer, tmp_path, unlimited, steps=3)
    # Reached by the predictions from before and after the interruption together.
    limits = replace(TOUCHY, drift=third_probe_limit(unlimited.monitor.probes))
    monitor = watched(tokenizer, limits=limits, action="log")
    fit(whole, tokenizer, tmp_path, monitor, steps=4)
    assert same_weights(plain, whole)
    assert [a.step for a in monitor.alarms if a.rule == "drift"] == [2]
    first = fit(parts, tokenizer, tmp_path, watched(tokenizer, limits=limits), steps=2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = watched(tokenizer, limits=limits, action="log")
    fit(dropping(), tokenizer, tmp_path, again, steps=4, checkpoint=tmp_path / "half.ckpt")
    assert [p.step for p in again.monitor.probes] == [2, 3]
    assert [(a.step, a.rule) for a in again.alarms] == [(a.step, a.rule) for a in monitor.alarms]


def test_an_alarm_can_stop_training_and_save_a_checkpoint(tokenizer, tmp_path):
    run = fit(exact_model(tokenizer), tokenizer, tmp_path, watched(tokenizer, limits=TOUCHY, action="stop"), steps=3)
    assert run.global_step == 1
    fit(exact_model(tokenizer), tokenizer, tmp_path, watched(tokenizer, limits=TOUCHY, action="checkpoint"), steps=1)
    assert (tmp_path / "graddiag-step-1.ckpt").is_file()


def test_a_module_without_that_model_is_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="has children model"):
        fit(exact_model(tokenizer), tokenizer, tmp_path, watched(tokenizer, model="net"))
