"""What the numbers of a run say, in words: one line per question, then what they do not show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from graddiag.caveats import LIMITS, Facts
from graddiag.rules import (
    ENDS,
    LABELS,
    PROJECTION_SE,
    RANDOM_SD,
    SMALL_EFFECT,
    Evidence,
    Scale,
    Setting,
    judge,
    stem_of,
)
from graddiag.statistics import NORMAL
from graddiag.text import chance, interval, number, visible

MOST_LINES = 16  # what fits a terminal beside the warnings
NAME_LENGTH = 32  # characters of a set's name in a line

Summary = Mapping[str, float | None]


def verdict(summary: Summary, setting: Setting) -> list[str]:
    """At most 16 lines: every claim with its interval, p and sample, then what the numbers do not show.

    Brackets hold 95 % intervals. Nothing is claimed beyond interval, p and control. Control characters in names are
    shown as escapes.
    """
    read = _Reader(summary, setting)
    lines = [read.pairs(), read.loss_gap(), read.paired(), read.means(), read.framing()]
    if setting.safety is not None:
        lines += [read.framing_and_safety(), read.side("left"), read.side("right"), read.alignment_difference()]
        lines += read.steps()
        lines += [read.adam()] if setting.adam else []
    limits = read.limits()
    return lines + read.controls(MOST_LINES - len(lines) - len(limits)) + limits


def evidence_of(summary: Summary, setting: Setting, scale: Scale, key: str) -> Evidence:
    """The number under `key` with its interval and p, and what the setting says about it; all that a rule asks for."""
    return _Reader(summary, setting).evidence(scale, key)


@dataclass(frozen=True)
class _Reader:
    """The lines, read from one summary."""

    summary: Summary
    setting: Setting

    def pairs(self) -> str:
        n, same, clusters = (self.count(f"pairs/{k}") for k in ("n", "identical", "clusters"))
        sides = f"{self.left} (left) and {self.right} (right)"
        return f"{sides}: {n} pairs in {clusters} clusters, {same} with the same target tokens."

    def loss_gap(self) -> str:
        effect = self.number("loss_gap/effect_size")
        small = ["small effect"] if abs(effect) < SMALL_EFFECT else []
        evidence = self.evidence("difference", "loss_gap/mean")
        size = "d_z undefined" if math.isnan(effect) else f"d_z = {effect:+.2f}"
        numbers = f"{_interval(evidence)} nats/token, {_p(evidence)}, {size}"
        return _line(f"Loss of {self.left} minus {self.right}", evidence, numbers, *small)

    def paired(self) -> str:
        evidence = self.evidence("paired", "conflict/paired_cosine")
        negative = self.number("conflict/negative_fraction")
        n = self.number("pairs/n")
        share = "" if math.isnan(negative) else f"; {negative * n:.0f} of {n:.0f} pairs below 0"
        strangers = f"{number(evidence.strangers)}{self.projected('conflict/same_cluster')}"
        others = f"non-partners of a cluster {strangers}{share}"
        projected = self.projected("conflict/paired_cosine")
        numbers = f"{_interval(evidence)}{projected}, {_p(evidence)}; {others}"
        return _line("Cosine of a pair's gradients", evidence, numbers)

    def means(self) -> str:
        key = "conflict/mean_gradient_cosine"
        labels = f"as far apart under permuted labels, {_p(self.evidence('means', f'{key}_corrected'))}"
        return self._corrected("Cosine of the mean gradients", "means", key, labels)

    def _corrected(self, subject: str, scale: Scale, key: str, *remarks: str) -> str:
        """A cosine of means as it is and corrected for noise, of which the second carries the word."""
        corrected = f"{key}_corrected"
        evidence = self.evidence(scale, corrected)
        numbers = f"{number(self.number(key))}, corrected for noise {_interval(evidence)}{self.projected(corrected)}"
        return _line(subject, evidence, "; ".join([numbers, *remarks]))

    def framing(self) -> str:
        evidence = self.evidence("length", "framing/consistency")
        chance = self.number("framing/consistency_null")
        value = f"{evidence.value:.2f}{self.projected('framing/consistency')}"
        numbers = f"consistency {value}, under sign flips {chance:.2f}, {_p(evidence)}"
        return _line("Mean framing gradient (left minus right)", evidence, numbers)

    def framing_and_safety(self) -> str:
        return self._corrected("Framing gradient with safety", "contrast", "framing/safety_cosine")

    def side(self, side: str) -> str:
        evidence = self.evidence("cosine", f"alignment/{side}")
        numbers = f"{_interval(evidence)}{self.projected(f'alignment/{side}')}"
        return _line(f"Cosine of {self.name(side)} with safety", evidence, numbers)

    def alignment_difference(self) -> str:
        evidence = self.evidence("difference", "alignment/difference")
        numbers = f"{_interval(evidence)}{self.projected('alignment/difference')}, {_p(evidence)}"
        return _line("Left minus right in that cosine", evidence, numbers)

    def adam(self) -> str:
        """All of the Adam form in one line."""
        sides = ((self.name(s), self.evidence("cosine", f"alignment_adam/{s}")) for s in ("left", "right"))
        said = [_line(name, e, _interval(e)).removesuffix(".") for name, e in sides]
        e = self.evidence("difference", "alignment_adam/difference")
        said.append(_line("left minus right", e, f"{_interval(e)}, {_p(e)}").removesuffix("."))
        return f"What a row adds to Adam's step, with safety: {'; '.join(said)}."

    def steps(self) -> list[str]:
        """What a step on a side does to the safety loss, where exact products show its sign; else no line."""
        said = [s for s in (self._step("left"), self._step("right")) if s]
        line = f"A step on the whole set, to first order, per unit of learning rate: {'; '.join(said)}."
        return [line] if said else []

    def _step(self, side: str) -> str:
        key = f"training/{side}/change"
        e, share = self.evidence("cosine", key), self.number(f"training/{side}/opposed_share")
        word = judge(replace(e, value=-e.value, low=-e.high, high=-e.low)).word
        if word not in {"aligned", "opposed"} or self.setting.kinds.get(key) != "exact":
            return ""
        does = "lowers" if word == "aligned" else "raises"
        numbers = f"{_interval(e)} nats/token; {share:.0%} of the rows alone raise it"
        return f"{self.name(side)} {does} the safety loss ({numbers})"

    def controls(self, room: int) -> list[str]:
        """One line per control, and where the sides lie relative to it; where room is short, the last line says so."""
        names = self.setting.controls if self.setting.safety is not None else ()
        shown = names if len(names) <= room else names[: max(room - 1, 0)]
        lines = [self._control(name) for name in shown]
        left_out = len(names) - len(shown)
        return [*lines, f"{left_out} more controls are in report.json."] if left_out else lines

    def _control(self, name: str) -> str:
        control = self.evidence("cosine", f"alignment/control:{name}")
        sides = [
            f"{self.name(s)} {_against(self.evidence('cosine', f'alignment/{s}'), control)}" for s in ("left", "right")
        ]
        return _line(
            f"Cosine of control {_name(name)} with safety", control, f"{_interval(control)}; {', '.join(sides)}"
        )

    def limits(self) -> list[str]:
        n, error, forced = (self.number(k) for k in ("pairs/clusters", "projection/error", "conflict/forced"))
        clusters, largest = (self.number(f"alignment/safety_{k}") for k in ("clusters", "largest_cluster"))
        low = math.nan if self.setting.safety is None else self._direction_low()
        facts = Facts(0 if math.isnan(n) else int(n), error, self.setting, forced, clusters, largest, low)
        return [limit.says.format(facts=facts) for limit in LIMITS if limit.holds(facts)]

    @property
    def left(self) -> str:
        return self.name("left")

    @property
    def right(self) -> str:
        return self.name("right")

    def name(self, side: str) -> str:
        return _name(self.setting.left if side == "left" else self.setting.right)

    def number(self, key: str) -> float:
        value = self.summary.get(key)
        return math.nan if value is None else value

    def count(self, key: str) -> str:
        value = self.number(key)
        return "?" if math.isnan(value) else f"{value:.0f}"

    def evidence(self, scale: Scale, key: str) -> Evidence:
        """The number under `key` with its interval and p, and what the setting says about it."""
        low, high, p = (self.number(f"{stem_of(key)}/{end}") for end in ENDS)
        p = self.number(f"{LABELS}/p") if scale == "means" else p
        return Evidence(
            scale,
            self.number(key),
            low,
            high,
            p,
            error=self.error(key),
            strangers=self.number("conflict/same_cluster") if scale == "paired" else math.nan,
            confounded=self._is_confounded(key),
            forced=self.setting.centered and key.startswith("conflict/"),
            strangers_error=self.error("conflict/same_cluster") if scale == "paired" else 0.0,
            direction_low=self._direction_low() if _toward_safety(key) else math.nan,
            random_sd=self.number(f"{key}/{RANDOM_SD}"),
        )

    def _direction_low(self) -> float:
        """How well the safety direction is known at least; a split half without an interval shows nothing of it."""
        key = "alignment/safety_split_half/low"
        low = self.number(key)
        return -math.inf if math.isnan(low) and key in self.summary else low

    def error(self, key: str) -> float:
        """How far the projection may have moved a number: 0 where it is exact, or nothing is known about it."""
        if self.setting.kinds.get(key) != "projected":
            return 0.0
        own, audited = NORMAL * self.number(f"{key}/{PROJECTION_SE}"), self.number("projection/error")
        return next((e for e in (own, audited) if not math.isnan(e)), 0.0)

    def projected(self, key: str) -> str:
        """What stands behind a projected number: by how much the projection may have moved it."""
        own = NORMAL * self.number(f"{key}/{PROJECTION_SE}")
        known = self.setting.kinds.get(key) == "projected" and own > 0
        return f" (projection: +-{number(own).lstrip('+')})" if known else ""

    def _is_confounded(self, key: str) -> bool:
        elsewhere = self.setting.other_model
        form, _, what = key.partition("/")
        if form in {"alignment", "alignment_adam", "training"} and what != "difference":
            return what.partition("/")[0] in elsewhere
        if _toward_safety(key) and {"left", "right"} & set(elsewhere):
            return True
        return set(self.setting.differs) >= {"data", "model"}


def _toward_safety(key: str) -> bool:
    return key.partition("/")[0] in {"alignment", "alignment_adam"} or key.startswith("framing/safety_cosine")


def _line(subject: str, evidence: Evidence, numbers: str, *remarks: str) -> str:
    rule = judge(evidence)
    if math.isnan(evidence.value):
        return f"{subject}: {rule.word}."
    said = [r for r in (rule.remark, *remarks) if r]
    return f"{subject}: {rule.word} ({'; '.join([numbers, *said])})."


def _against(side: Evidence, control: Evidence) -> str:
    if math.isnan(side.low + side.high + control.low + control.high):
        return "cannot be compared with it"
    error = max(side.error, control.error)
    if side.high + error < control.low:
        return "lies below it"
    return "lies above it" if side.low - error > control.high else "is not told apart from it"


def _name(name: str) -> str:
    return visible(name, limit=NAME_LENGTH)


def _interval(e: Evidence) -> str:
    return interval(e.value, e.low, e.high)


def _p(e: Evidence) -> str:
    return chance(e.p)
