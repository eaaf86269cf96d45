"""What a watch gives: alarms, which speak of the model's safety, and notices, which speak of the monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuleName = Literal["nonfinite", "conflict", "update_conflict", "drift", "safety_loss", "culprits"]
NoticeName = Literal["cost", "unseen"]


@dataclass(frozen=True)
class Alarm:
    """A rule's value reached its limit at a training step (both in the rule's unit); `ids` are the examples concerned,
    the worst first, and `says` what it means in one or two sentences."""

    step: int
    rule: RuleName
    value: float
    limit: float
    ids: tuple[str, ...]
    says: str


@dataclass(frozen=True)
class Notice:
    """Something about the monitor itself that the user should know; never a statement about the model."""

    step: int
    about: NoticeName
    says: str


@dataclass(frozen=True)
class Rule:
    """When a rule gives an alarm, what that means, and what it does not."""

    name: RuleName
    when: str
    means: str
    not_shown: str


RULES = (
    Rule(
        "nonfinite",
        "a loss or gradient of a training or safety example is not finite",
        "the step is broken, or the model is; the Trainer may log such a loss as 0.0",
        "whose fault it is: one example, the precision, or the learning rate",
    ),
    Rule(
        "conflict",
        "evidence that the batches oppose safety, added up over probes, is more than chance brings",
        "to first order, plain steps on this data raise the loss on safe answers",
        "that the optimizer's steps do so too, or by how much; examples that are alike (one template) count as "
        "independent",
    ),
    Rule(
        "update_conflict",
        "the same for what the optimizer really subtracted from the weights",
        "to first order, the steps as they are taken raise the loss on safe answers",
        "by how much; the scale of chance is that of the plain gradient, which Adam may change",
    ),
    Rule(
        "drift",
        "predicted changes of the safety loss, each standing for the steps since the probe before, sum up to the "
        "budget and to more than chance brings",
        "the steps together cost more of the safety loss than was allowed",
        "the change itself: it is a sum of first-order predictions at some of the steps",
    ),
    Rule(
        "safety_loss",
        "the loss on the safety examples has risen since the first probe, by what matters and beyond its error",
        "safe answers have become less likely: what the other rules warn of has begun",
        "that behaviour has changed; nothing about prompts unlike these",
    ),
    Rule(
        "culprits",
        "more of the examples oppose safety than chance brings, or one that opposes outweighs its whole batch",
        "these examples are the ones to look at",
        "that leaving them out is enough; low-rank stand-ins of the safety gradient blur single products",
    ),
)
