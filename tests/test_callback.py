"""The monitor inside the Hugging Face Trainer: right rows, the same training, alarms and where they go."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
from architectures import build, with_lora
from loops import SAFETY, TEXTS, TOUCHY, exact_model, padded, tiny
from torch import nn
from trainers import callback, check_by_id, same_weights, third_probe_limit, trainer
from transformers import TrainerCallback

import graddiag
from graddiag.alarms import AlarmRaised
from graddiag.errors import UsageError
from graddiag.training_log import read_log

ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def dropping(tokenizer):
    """With dropout in attention, embeddings and residuals."""
    return build("gpt2", vocabulary=len(tokenizer), context=256).float()


def test_rows_of_an_accumulated_step_are_those_of_each_example_alone(tokenizer, tmp_path):
    model = exact_model(tokenizer)
    before, watched = copy.deepcopy(model), callback()
    trainer(model, tokenizer, tmp_path, watched, max_steps=1).train()
    (probe,) = watched.monitor.probes
    check_by_id(probe, before, tokenizer, TEXTS, ROUNDING)
    assert probe.update is not None


def test_rows_of_adapters(tokenizer, tmp_path):
    model = with_lora(exact_model(tokenizer, "llama")).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before, watched = copy.deepcopy(model), callback()
    trainer(model, tokenizer, tmp_path, watched, max_steps=1).train()
    check_by_id(watched.monitor.probes[0], before, tokenizer, TEXTS, ROUNDING)


def test_weights_and_alarms_are_those_of_a_run_without_monitor_and_without_interruption(tokenizer, tmp_path):
    how = {"texts": TEXTS * 2, "uphill": True}
    plain = trainer(dropping(tokenizer), tokenizer, tmp_path / "a", max_steps=4, **how)
    plain.train()
    unlimited = callback(every=1)
    trainer(dropping(tokenizer), tokenizer, tmp_path / "a", unlimited, max_steps=3, **how).train()
    # Reached by the predictions from before and after the interruption together.
    limits = replace(TOUCHY, drift=third_probe_limit(unlimited.monitor.probes))
    whole = callback(every=1, limits=limits, action="log")
    uninterrupted = trainer(dropping(tokenizer), tokenizer, tmp_path / "b", whole, max_steps=4, **how)
    uninterrupted.train()
    assert same_weights(plain.model, uninterrupted.model)

    saving = {**how, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = trainer(
        dropping(tokenizer), tokenizer, tmp_path / "c", callback(every=1, limits=limits), StopAfter(2), **saving
    )
    first.train()
    again = callback(every=1, limits=limits, action="log")
    resumed = trainer(dropping(tokenizer), tokenizer, tmp_path / "c", again, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(plain.model, resumed.model)
    assert [p.step for p in again.monitor.probes] == [2, 3]
    assert again.alarms == whole.alarms
    assert {(a.step, a.rule) for a in again.alarms} >= {(1, "safety_loss"), (2, "drift")}


class StopAfter(TrainerCallback):
    """Ends training after some steps, as an interruption would."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.steps


def test_callbacks_that_the_trainer_restores_leave_ours_as_it_is(tokenizer, tmp_path):
    saving = {
        "uphill": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "restore_callback_states_from_checkpoint": True,
    }
    trainer(exact_model(tokenizer), tokenizer, tmp_path, callback(limits=TOUCHY), max_steps=1, **saving).train()
    watched = callback(limits=TOUCHY)
    resumed = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, max_steps=2, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert [a.step for a in watched.alarms] == [0]
    assert watched.monitor.steps == 2


def test_an_alarm_can_stop_training_and_save_a_checkpoint(tokenizer, tmp_path):
    watched = callback(every=1, limits=TOUCHY, action="stop")
    run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, uphill=True, max_steps=4)
    run.train()
    assert run.state.global_step == 1
    watched = callback(every=2, limits=TOUCHY, action={"drift": "checkpoint"})
    run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, uphill=True, max_steps=2)
    run.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_an_alarm_can_end_training_with_an_error(tokenizer, tmp_path):
    watched = callback(limits=TOUCHY, action="raise")
    with pytest.raises(AlarmRaised, match="Step 0, drift"):
        trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, uphill=True, max_steps=4).train()
    assert watched.alarms[0].rule == "drift"


def test_numbers_are_entries_of_their_own_in_the_history(tokenizer, tmp_path, caplog):
    watched = callback(every=2, limits=TOUCHY, action="log", folder=tmp_path / "log")
    run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, uphill=True, max_steps=3)
    with caplog.at_level(logging.WARNING, logger="graddiag"):
        run.train()
    ours = [e for e in run.state.log_history if "graddiag/cosine" in e]
    assert [e["step"] for e in ours] == [1, 3]
    assert ours[0]["graddiag/alarm/drift"] >= 1
    assert ours[1]["graddiag/alarm/drift"] == 0  # it still stands, and is not given again
    assert sum("log_history" in r.message for r in caplog.records) == 1
    log = read_log(tmp_path / "log")
    assert [p.step for p in log.probes] == [0, 2]
    assert list(log.alarms) == watched.alarms


def test_an_attached_callback_sends_its_numbers_to_all_loggers_and_keeps_none_from_them(tokenizer, tmp_path):
    class Logger(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append((state.global_step, "graddiag/cosine" in logs, "loss" in logs))

    logger, watched = Logger(), callback(every=1)
    run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, logger, max_steps=2)
    watched.attach(run)
    run.train()
    assert logger.seen[:4] == [(1, True, False), (1, False, True), (2, True, False), (2, False, True)]


def test_the_tokenizer_is_the_trainers_or_the_collators_or_an_error(tokenizer, tmp_path):
    class Collator:
        def __init__(self, found):
            self.tokenizer = found

        def __call__(self, texts):
            return padded(tokenizer, texts)

    for found in (tokenizer, None):
        run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched := callback(), max_steps=1)
        run.callback_handler.processing_class, run.data_collator = None, Collator(found)
        if found is None:
            with pytest.raises(UsageError, match="no tokenizer"):
                run.train()
        else:
            run.train()
            assert len(watched.monitor.probes) == 1


def test_a_loss_that_cannot_be_read_turns_the_monitor_off_and_training_goes_on(tokenizer, tmp_path):
    watched = graddiag.MonitorCallback(safety=SAFETY)
    run = trainer(exact_model(tokenizer), tokenizer, tmp_path, watched, max_steps=2, label_smoothing_factor=0.1)
    run.train()
    assert run.state.global_step == 2
    assert watched.monitor.failed is not None
    assert watched.alarms == []
