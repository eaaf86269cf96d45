"""What the numbers of a run say, in words: one line per question, then what they do not show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.rules import ENDS, LIMITS, SMALL_EFFECT, Evidence, Facts, Scale, Setting, judge, stem_of
from graddiag.text import interval, number, visible

MOST_LINES = 15  # what fits a terminal beside the warnings
NAME_LENGTH = 32  # characters of a set's name in a line

Summary = Mapping[str, float | None]


def verdict(summary: Summary, setting: Setting) -> list[str]:
    """At most 15 lines: every claim with its interval, p and sample, then what the numbers do not show.

    Brackets hold 95 % intervals. Nothing is claimed beyond interval, p and control. Control characters in names are
    shown as escapes.
    """
    read = _Reader(summary, setting)
    lines = [read.pairs(), read.loss_gap(), read.paired(), read.means(), read.framing()]
    if setting.safety is not None:
        lines += [read.framing_and_safety(), read.side("left"), read.side("right"), read.alignment_difference()]
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
        others = f"non-partners of a cluster {number(evidence.strangers)}{share}"
        numbers = f"{_interval(evidence)}, {_p(evidence)}; {others}"
        return _line("Cosine of a pair's gradients", evidence, numbers)

    def means(self) -> str:
        key = "conflict/mean_gradient_cosine"
        evidence = self.evidence("cosine", f"{key}_corrected")
        numbers = f"{number(self.number(key))}, corrected for noise {_interval(evidence)}"
        return _line("Cosine of the mean gradients", evidence, numbers)

    def framing(self) -> str:
        evidence = self.evidence("length", "framing/consistency")
        chance = self.number("framing/consistency_null")
        numbers = f"consistency {evidence.value:.2f}, under sign flips {chance:.2f}, {_p(evidence)}"
        return _line("Mean framing gradient (left minus right)", evidence, numbers)

    def framing_and_safety(self) -> str:
        evidence = self.evidence("contrast", "framing/safety_cosine")
        return _line("Framing gradient with safety", evidence, f"{_interval(evidence)}, given this safety set")

    def side(self, side: str) -> str:
        evidence = self.evidence("cosine", f"alignment/{side}")
        return _line(f"Cosine of {self.name(side)} with safety", evidence, _interval(evidence))

    def alignment_difference(self) -> str:
        evidence = self.evidence("difference", "alignment/difference")
        return _line("Left minus right in that cosine", evidence, f"{_interval(evidence)}, {_p(evidence)}")

    def adam(self) -> str:
        """All of the Adam form in one line."""
        sides = ((self.name(s), self.evidence("cosine", f"alignment_adam/{s}")) for s in ("left", "right"))
        said = [_line(name, e, _interval(e)).removesuffix(".") for name, e in sides]
        e = self.evidence("difference", "alignment_adam/difference")
        said.append(_line("left minus right", e, f"{_interval(e)}, {_p(e)}").removesuffix("."))
        return f"What a row adds to Adam's step, with safety: {'; '.join(said)}."

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
        facts = Facts(0 if math.isnan(n) else int(n), error, self.setting, forced)
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
        projected = self.setting.kinds.get(key) == "projected"
        error = self.number("projection/error")
        return Evidence(
            scale,
            self.number(key),
            low,
            high,
            p,
            error=error if projected and not math.isnan(error) else 0.0,
            strangers=self.number("conflict/same_cluster") if scale == "paired" else math.nan,
            confounded=self._is_confounded(key),
            forced=self.setting.centered and key.startswith("conflict/"),
        )

    def _is_confounded(self, key: str) -> bool:
        elsewhere = self.setting.other_model
        form, _, what = key.partition("/")
        if form in {"alignment", "alignment_adam"} and what != "difference":
            return what in elsewhere
        toward_safety = form in {"alignment", "alignment_adam"} or key == "framing/safety_cosine"
        if toward_safety and {"left", "right"} & set(elsewhere):
            return True
        return set(self.setting.differs) >= {"data", "model"}


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
    if math.isnan(e.p):
        return "p undefined"
    return f"p = {e.p:.2g}" if e.p >= 1e-4 else "p < 0.0001"
