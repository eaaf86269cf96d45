"""What an alarm makes a training loop do, as the user chose."""

from __future__ import annotations

import pytest

from graddiag.alarms import Alarm, AlarmRaised, Todo, check_choice, decide
from graddiag.errors import UsageError


def _alarm(rule: str) -> Alarm:
    return Alarm(7, rule, 2.0, 1.0, ("a", "b"), "It means this.")  # type: ignore[arg-type]


def test_actions_are_decided_for_each_rule() -> None:
    calls: list[Alarm] = []
    both = (_alarm("conflict"), _alarm("drift"))
    line = "Step 7, conflict (2, limit 1): It means this. Examples: a, b."
    assert decide(both, "log") == Todo()
    assert decide(both, {"conflict": "stop", "drift": "log"}) == Todo(warnings=(line,), stop=True)
    assert decide(both, {"conflict": "checkpoint", "drift": "log"}) == Todo(warnings=(line,), checkpoint=True)
    found = decide(both, {"conflict": calls.append, "drift": "raise"})
    assert calls == []  # deciding does nothing
    for call in found.calls:
        call.function(call.alarm)
    assert calls == [both[0]]
    assert isinstance(found.error, AlarmRaised)
    assert "Step 7, drift" in str(found.error)
    assert decide((), "raise") == Todo()


def test_an_unknown_action_or_rule_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match=r"'halt' is no action. Choose one of log, warn"):
        check_choice("halt")
    with pytest.raises(UsageError, match=r"'nan' is no rule. Rules: nonfinite, conflict"):
        check_choice({"nan": "stop"})
