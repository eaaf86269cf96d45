"""What is to be done about alarms: decided here, carried out by whoever trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from graddiag.alarms._alarm import RULES, Alarm, RuleName
from graddiag.errors import GraddiagError, UsageError

Action = Literal["log", "warn", "checkpoint", "stop", "raise"]
Chosen = Action | Callable[[Alarm], object]
Choice = Chosen | Mapping[RuleName, Chosen]


class AlarmRaised(GraddiagError):
    """An alarm whose action is to raise."""


@dataclass(frozen=True)
class Call:
    """The user's function and the alarm to call it with."""

    function: Callable[[Alarm], object]
    alarm: Alarm


@dataclass(frozen=True)
class Todo:
    """What is to be done about the alarms of one probe, in this order; logging them is always done.

    Say the `warnings`, make the `calls`, save a checkpoint, end training after this step (`stop`), and raise `error`.
    """

    warnings: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    checkpoint: bool = False
    stop: bool = False
    error: AlarmRaised | None = None


def decide(alarms: tuple[Alarm, ...], choice: Choice = "warn") -> Todo:
    """What is to be done about alarms, by one action for all rules or one for each (a rule that is not named: "warn").

    "log" does nothing more; "warn" says it; "checkpoint" saves too, "stop" ends the run and "raise" raises AlarmRaised,
    each after saying it. A function is called with the alarm. Raises UsageError for an unknown action or rule.
    """
    check_choice(choice)
    chosen = [(a, choice.get(a.rule, "warn") if isinstance(choice, Mapping) else choice) for a in alarms]
    actions = [c for _, c in chosen]
    fatal = [sentence(a) for a, c in chosen if c == "raise"]
    return Todo(
        warnings=tuple(sentence(a) for a, c in chosen if not callable(c) and c != "log"),
        calls=tuple(Call(c, a) for a, c in chosen if callable(c)),
        checkpoint="checkpoint" in actions,
        stop="stop" in actions,
        error=AlarmRaised(" ".join(fatal)) if fatal else None,
    )


def check_choice(choice: object) -> None:
    """Raises UsageError for an unknown action or rule; to be asked before training begins."""
    known, rules = get_args(Action), [r.name for r in RULES]
    for one in choice.values() if isinstance(choice, Mapping) else (choice,):
        if not callable(one) and one not in known:
            raise UsageError(f"{one!r} is no action. Choose one of {', '.join(known)}, or give a function of an alarm.")
    unknown = [r for r in choice if r not in rules] if isinstance(choice, Mapping) else []
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no rule. Rules: {', '.join(rules)}.")


def sentence(alarm: Alarm) -> str:
    """An alarm as one line."""
    named = f" Examples: {', '.join(alarm.ids)}." if alarm.ids else ""
    return f"Step {alarm.step}, {alarm.rule} ({alarm.value:.3g}, limit {alarm.limit:.3g}): {alarm.says}{named}"
