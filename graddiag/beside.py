"""What do the two comparisons say beside each other: as the prompts were given, and with the edit?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.rules import ENDS, Evidence, Scale, Setting, judge, stem_of
from graddiag.tables import Cell, Table, unit
from graddiag.text import interval
from graddiag.verdict import evidence_of

Summary = Mapping[str, float | None]


@dataclass(frozen=True)
class Question:
    """One number that both comparisons have, what it is called, and which key of the change goes with it."""

    subject: str
    scale: Scale
    key: str
    change: str | None = None
    needs_safety: bool = False


QUESTIONS = (
    Question("Loss of left minus right", "difference", "loss_gap/mean", "change/loss_gap"),
    Question("Cosine of a pair's gradients", "paired", "conflict/paired_cosine", "change/paired_cosine"),
    Question("Framing gradient with safety", "contrast", "framing/safety_cosine_corrected", needs_safety=True),
    Question("Cosine of left with safety", "cosine", "alignment/left", needs_safety=True),
    Question("Cosine of right with safety", "cosine", "alignment/right", needs_safety=True),
    Question(
        "Left minus right in that cosine",
        "difference",
        "alignment/difference",
        "change/alignment_difference",
        needs_safety=True,
    ),
)


@dataclass(frozen=True)
class Beside:
    """Two summaries, each with its setting, the edit in words, and the keys of the paired change."""

    edit: str
    given: Summary
    edited: Summary
    given_setting: Setting
    edited_setting: Setting
    change: Summary

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those that the sets allow."""
        return tuple(q for q in QUESTIONS if self.given_setting.safety is not None or not q.needs_safety)

    def evidence(self, question: Question) -> tuple[Evidence, Evidence]:
        """The number as given, and with the edit."""
        both = ((self.given, self.given_setting), (self.edited, self.edited_setting))
        first, second = (evidence_of(s, setting, question.scale, question.key) for s, setting in both)
        return first, second


def beside_view(beside: Beside) -> Table:
    """One line per question, as a reader sees it: as given, with the edit, and the change over pairs."""
    lines: list[tuple[Cell, ...]] = []
    for q in beside.questions:
        given, edited = beside.evidence(q)
        change = ""
        if q.change is not None:
            change = _interval(evidence_of(beside.change, beside.given_setting, "difference", q.change))
        lines.append((q.subject, _judged(given), _judged(edited), change))
    return Table("beside", ("question", "as given", "with the edit", "change"), tuple(lines))


def beside_lines(beside: Beside) -> tuple[str, ...]:
    """One line that names the edit, then one per question: as given, with the edit, and the change over pairs."""
    lines = [f"A second comparison with the edit ({beside.edit}), beside the first:"]
    for subject, given, edited, change in beside_view(beside).rows:
        lines.append(f"{subject}: {given} as given; {edited} with the edit{f'; change {change}' if change else ''}.")
    return tuple(lines)


def beside_table(beside: Beside) -> Table:
    """One line per question, with words, intervals and p as given and with the edit, then the change over pairs."""
    ends = ("", *ENDS)
    header = ["question", "key", "unit"]
    header += [f"{column}{'/' if e else ''}{e}" for column in ("given", "edited", "change") for e in ends]
    lines: list[tuple[Cell, ...]] = []
    for q in beside.questions:
        given, edited = beside.evidence(q)
        numbers = [_numbers(s, q.key) for s in (beside.given, beside.edited)]
        change = (None,) * len(ends) if q.change is None else _numbers(beside.change, q.change)
        lines.append(
            (q.subject, q.key, unit(q.key), *numbers[0], *numbers[1], *change, judge(given).word, judge(edited).word)
        )
    return Table("edited", (*header, "given/word", "edited/word"), tuple(lines))


def _numbers(summary: Summary, key: str) -> tuple[float | None, ...]:
    return (summary.get(key), *(summary.get(f"{stem_of(key)}/{end}") for end in ENDS))


def _judged(e: Evidence) -> str:
    return f"{judge(e).word} ({_interval(e)})"


def _interval(e: Evidence) -> str:
    return interval(e.value, e.low, e.high)
