"""From probes to alarms inside a loop: what is done about them, what is kept, and what an interruption changes."""

from __future__ import annotations

import json

import pytest
import torch
from loops import padded, tiny, watch

from graddiag.alarms import AlarmRaised, Limits
from graddiag.errors import DataError, UsageError
from graddiag.training_log import read_log

# Any predicted rise of the safety loss is an alarm, chance or not, and probes may cost what they like.
TOUCHY = Limits(drift=1e-12, horizon=1, false_alarms=0.45, shift=0.1, memory=0, overhead=1e9)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def uphill(model):
    """Makes the texts less likely, and with them the safe answers."""
    return torch.optim.SGD(model.parameters(), lr=0.05, maximize=True)


def train(model, optimizer, monitor, batch, steps):
    for _ in range(steps):
        with monitor.step():
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def monitored(tokenizer, **settings):
    model, _ = tiny()
    optimizer = uphill(model)
    chosen = {"every": 1, "limits": TOUCHY, "action": "log", **settings}
    return model, optimizer, watch(model, tokenizer, optimizer=optimizer, **chosen)


def test_interrupted_and_resumed_is_uninterrupted(tokenizer, tmp_path):
    batch = padded(tokenizer)
    limits = Limits(**{**vars(TOUCHY), "drift": 0.15})  # reached by predictions before and after the interruption
    model, optimizer, whole = monitored(tokenizer, limits=limits, folder=tmp_path / "whole", every=2)
    train(model, optimizer, whole, batch, 8)
    model, optimizer, first = monitored(tokenizer, limits=limits, folder=tmp_path / "parts", every=2)
    train(model, optimizer, first, batch, 3)
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    train(model, optimizer, first, batch, 2)  # steps that are lost with the interruption, but for their lines
    model, optimizer, again = monitored(tokenizer, limits=limits, folder=tmp_path / "parts", every=2)
    train(model, optimizer, watch(model, tokenizer), batch, 3)
    again.load_state(state)
    train(model, optimizer, again, batch, 5)
    assert again.alarms == whole.alarms
    assert again.notices == whole.notices
    assert max(a.step for a in whole.alarms) > 3
    assert [p.step for p in again.probes] == [4, 6]
    one, other = (read_log(tmp_path / name) for name in ("whole", "parts"))
    assert one.alarms == other.alarms
    assert [p.step for p in one.probes] == [p.step for p in other.probes]
    assert again.state()["steps"] == whole.state()["steps"]


def test_a_new_run_in_the_same_folder_replaces_the_log(tokenizer, tmp_path):
    for steps in (3, 2):
        model, optimizer, monitor = monitored(tokenizer, folder=tmp_path)
        train(model, optimizer, monitor, padded(tokenizer), steps)
    log = read_log(tmp_path)
    assert [p.step for p in log.probes] == [0, 1]
    assert list(log.alarms) == monitor.alarms


def test_what_is_no_state_is_refused(tokenizer):
    _, _, monitor = monitored(tokenizer)
    with pytest.raises(DataError, match="no state of a monitor"):
        monitor.load_state({"steps": 3})


def test_examples_are_multiplied_exactly_while_an_alarm_stands(tokenizer):
    model, optimizer, monitor = monitored(tokenizer, exact=False)
    train(model, optimizer, monitor, padded(tokenizer), 2)
    assert [p.dots_exact for p in monitor.probes] == [False, True]


def test_probes_become_rarer_where_they_cost_too_much_and_that_is_said(tokenizer):
    model, optimizer, monitor = monitored(tokenizer, limits=Limits(overhead=1e-9))
    train(model, optimizer, monitor, padded(tokenizer), 6)
    assert monitor.every == 2
    assert [n.about for n in monitor.notices] == ["cost"]
    assert [p.step for p in monitor.probes] == [0, 1, 2, 3, 4]


def test_an_alarm_that_raises_reaches_the_loop_after_the_step_and_leaves_the_monitor_on(tokenizer):
    model, optimizer, monitor = monitored(tokenizer, action="raise", strict=False)
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(AlarmRaised, match="Step 0, drift"):
        train(model, optimizer, monitor, padded(tokenizer), 2)
    assert monitor.failed is None
    assert monitor.steps == 1
    assert not torch.equal(before, model.lm_head.weight)


def test_a_rule_can_have_an_action_of_its_own(tokenizer):
    seen = []
    rules = {"drift": seen.append, "safety_loss": "stop", "update_conflict": "checkpoint"}
    model, optimizer, monitor = monitored(tokenizer, action=rules)
    train(model, optimizer, monitor, padded(tokenizer), 1)
    assert [a.rule for a in seen] == ["drift"]
    assert not monitor.should_stop
    train(model, optimizer, monitor, padded(tokenizer), 3)
    assert {a.rule for a in monitor.alarms} >= set(rules)
    assert monitor.should_stop
    assert monitor.should_save


def test_an_unknown_action_is_refused_before_training(tokenizer):
    with pytest.raises(UsageError, match="no action"):
        monitored(tokenizer, action="panic")
