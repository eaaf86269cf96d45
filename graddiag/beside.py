"""What do two comparisons say beside each other: as given, and with edited prompts or without repeated answers?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graddiag.rules import ENDS, Evidence, Scale, Setting, judge, stem_of
from graddiag.side_by_side import Headline, SideBySide
from graddiag.statistics import Estimate
from graddiag.tables import Cell, Table, unit
from graddiag.text import interval
from graddiag.verdict import evidence_of

Summary = Mapping[str, float | None]


@dataclass(frozen=True)
class Question:
    """One number that both comparisons have, what it is called, and which key of the change goes with it, if any."""

    subject: str
    scale: Scale
    key: str
    change: str | None = None
    needs_safety: bool = False


QUESTIONS = (  # of the comparison with edited prompts
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
HEADLINE = tuple(q for q in QUESTIONS if q.key not in {"alignment/left", "alignment/right"})  # without the repeats


@dataclass(frozen=True)
class Beside:
    """A comparison as given and another one, each as a summary with its setting, and the keys of a paired change.

    `name` is that of the table and the figure, `what` says what was done otherwise, `label` names the other comparison
    in a line, `asked` are the questions. `change` is empty where the two share no pairs that could be subtracted.
    """

    name: str
    what: str
    label: str
    asked: tuple[Question, ...]
    given: Summary
    other: Summary
    given_setting: Setting
    other_setting: Setting
    change: Summary = field(default_factory=dict)

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those that the sets allow."""
        return tuple(q for q in self.asked if self.given_setting.safety is not None or not q.needs_safety)

    def evidence(self, question: Question) -> tuple[Evidence, Evidence]:
        """The number as given, and in the other comparison."""
        both = ((self.given, self.given_setting), (self.other, self.other_setting))
        first, second = (evidence_of(s, setting, question.scale, question.key) for s, setting in both)
        return first, second


def beside_view(beside: Beside) -> Table:
    """One line per question, as a reader sees it: as given, in the other comparison, and the change over pairs."""
    lines: list[tuple[Cell, ...]] = []
    for q in beside.questions:
        given, other = beside.evidence(q)
        line = (q.subject, _judged(given), _judged(other))
        lines.append((*line, _change(beside, q)) if beside.change else line)
    header = ("question", "as given", beside.label, *(["change"] if beside.change else []))
    return Table("beside", header, tuple(lines))


def _change(beside: Beside, question: Question) -> str:
    if question.change is None:
        return ""
    return _interval(evidence_of(beside.change, beside.given_setting, "difference", question.change))


def beside_lines(beside: Beside) -> tuple[str, ...]:
    """One line that says what was done otherwise, then one per question, with the change over pairs, if any."""
    lines = [f"A second comparison {beside.what}, beside the first:"]
    for subject, given, other, *change in beside_view(beside).rows:
        changed = f"; change {change[0]}" if change and change[0] else ""
        lines.append(f"{subject}: {given} as given; {other} {beside.label}{changed}.")
    return tuple(lines)


def beside_table(beside: Beside) -> Table:
    """One line per question, with words, intervals and p of both comparisons, and the change over pairs, if any."""
    ends = ("", *ENDS)
    columns = ("given", beside.name, *(["change"] if beside.change else []))
    header = ["question", "key", "unit", *(f"{column}{'/' if e else ''}{e}" for column in columns for e in ends)]
    lines: list[tuple[Cell, ...]] = []
    for q in beside.questions:
        given, other = beside.evidence(q)
        numbers = [*_numbers(beside.given, q.key), *_numbers(beside.other, q.key)]
        if beside.change:
            numbers += (None,) * len(ends) if q.change is None else _numbers(beside.change, q.change)
        lines.append((q.subject, q.key, unit(q.key), *numbers, judge(given).word, judge(other).word))
    return Table(beside.name, (*header, "given/word", f"{beside.name}/word"), tuple(lines))


def side_by_side(beside: Beside) -> SideBySide:
    """The same numbers to be drawn."""
    setting = beside.given_setting
    headlines = [
        Headline(
            q.subject, unit(q.key), q.needs_safety, *(Estimate(e.value, e.low, e.high) for e in beside.evidence(q))
        )
        for q in beside.questions
    ]
    return SideBySide(setting.left, setting.right, beside.label, beside.what, tuple(headlines))


def _numbers(summary: Summary, key: str) -> tuple[float | None, ...]:
    return (summary.get(key), *(summary.get(f"{stem_of(key)}/{end}") for end in ENDS))


def _judged(e: Evidence) -> str:
    """The word, the number, and why the word is no stronger."""
    rule = judge(e)
    return f"{rule.word} ({'; '.join(part for part in (_interval(e), rule.remark) if part)})"


def _interval(e: Evidence) -> str:
    return interval(e.value, e.low, e.high)
