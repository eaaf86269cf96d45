"""Is a training run eroding safety? From its probes to alarms, at a rate of false ones that the user chooses."""

from graddiag.alarms._actions import Action, AlarmRaised, Call, Choice, Todo, check_choice, decide, sentence
from graddiag.alarms._alarm import RULES, Alarm, Notice, Rule, RuleName
from graddiag.alarms._limits import Limits
from graddiag.alarms._state import alarm_of
from graddiag.alarms._watch import Watch

__all__ = [
    "RULES",
    "Action",
    "Alarm",
    "AlarmRaised",
    "Call",
    "Choice",
    "Limits",
    "Notice",
    "Rule",
    "RuleName",
    "Todo",
    "Watch",
    "alarm_of",
    "check_choice",
    "decide",
    "sentence",
]
