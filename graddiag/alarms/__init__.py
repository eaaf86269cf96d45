"""Is a training run eroding safety? From the probes of a run to alarms, at a rate of false ones that the user chooses."""

from graddiag.alarms._alarm import RULES, Alarm, Notice, Rule, RuleName
from graddiag.alarms._limits import Limits
from graddiag.alarms._watch import Watch

__all__ = ["RULES", "Alarm", "Limits", "Notice", "Rule", "RuleName", "Watch"]
