"""Which other comparisons stand beside the one of a run: with edited prompts, and without repeated answers."""

from __future__ import annotations

from dataclasses import dataclass

from graddiag.analyzers import Repeats
from graddiag.beside import HEADLINE, QUESTIONS, Beside, beside_lines, beside_table, beside_view, side_by_side
from graddiag.exhibits import Exhibit
from graddiag.findings import Edited, Findings
from graddiag.setting import setting_of
from graddiag.tables import Table

NAMES = ("edited", "without_repeats")


@dataclass(frozen=True)
class BesideView:
    """Another comparison beside the first, question by question: as lines, as a table in words, and as a figure with
    its numbers."""

    lines: tuple[str, ...]
    words: Table
    exhibit: Exhibit


def besides(findings: Findings) -> tuple[BesideView, ...]:
    """Those of a run; none where no prompt is edited, and answers are not repeated or repeats define the clusters."""
    out = []
    if findings.edited is not None:
        out.append(_edited(findings, findings.edited))
    if findings.repeats.stands_beside:
        out.append(_without_repeats(findings, findings.repeats))
    return tuple(out)


def _edited(findings: Findings, edited: Edited) -> BesideView:
    words = "; ".join(e.words() for e in edited.edits)
    beside = Beside(
        name="edited",
        what=f"with the edit ({words})",
        label="with the edit",
        asked=QUESTIONS,
        given=findings.own_summary(),
        other=edited.findings.own_summary(),
        given_setting=setting_of(findings),
        other_setting=setting_of(edited.findings),
        change=edited.change.summary(),
    )
    reading = (
        f"The same comparison twice: with the prompts as they were given, and with {words}. The change is a mean over "
        "pairs, with the edit minus as given. Other figures and tables show the first comparison, unless they say "
        "otherwise."
    )
    return _view(beside, "As given and with the edit", reading)


def _without_repeats(findings: Findings, repeats: Repeats) -> BesideView:
    n, left = findings.loss_gap.n_pairs, repeats.first.loss_gap.n_pairs
    setting, given = setting_of(findings), findings.own_summary()
    beside = Beside(
        name="without_repeats",
        what=f"without repeated answers ({left} of {n} pairs)",
        label="without the repeats",
        asked=HEADLINE,
        given=given,
        other=given
        | repeats.first.summary(),  # what is not measured again, such as projection/error, is that of all rows
        given_setting=setting,
        other_setting=setting,
    )
    reading = (
        f"{repeats.n_pairs} of {n} pairs have an answer that another pair has too ({repeats.n_answers} such answers), "
        "and the named clusters do not say so. The second comparison has only the first pair of each answer: what "
        "rests on repeats alone is gone from it."
    )
    return _view(beside, "As given and without repeated answers", reading)


def _view(beside: Beside, title: str, reading: str) -> BesideView:
    exhibit = Exhibit(beside.name, title, reading, side_by_side(beside), beside_table(beside))
    return BesideView(beside_lines(beside), beside_view(beside), exhibit)
