"""Which figures and tables the report of three models has, how each is read, and which numbers it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from graddiag.analyzers import AnswerChange, Behaviour, Direction, RefusalDirection, SubspaceOverlap
from graddiag.change_exhibits import shifts_picture, weights_picture
from graddiag.erosion_findings import Erosion, Refusals
from graddiag.erosion_verdict import answers
from graddiag.picture import Picture
from graddiag.plotting import plot
from graddiag.removal_exhibits import fit_table, removal_picture, removal_rows
from graddiag.sample_views import answer_table, change_table, share_table, token_lines
from graddiag.statistics import Estimate
from graddiag.tables import Cell, Table, block_table, summary_table

FIGURES = (
    "behaviour", "refusals", "direction", "refusal_direction", "subspace", "intervention", "shifts", "weights",
)  # fmt: skip
_ENDS = ("low", "high", "p")


def erosion_pictures(found: Erosion) -> tuple[Picture, ...]:
    """The figures that the results allow."""
    out = [_behaviour(found.behaviour)] if found.behaviour else []
    out += [_refusals(found.refusals)] if found.refusals else []
    out += [_direction(found.direction, found.direction_beside)] if found.direction else []
    out += [_refusal_direction(found.refusal_direction)] if found.refusal_direction else []
    out += [_subspace(found.subspace)] if found.subspace else []
    out += [removal_picture(found.removal)] if found.removal else []
    out += [shifts_picture(found.shifts)] if found.shifts.of else []
    out += [weights_picture(found.weights)] if found.weights else []
    return tuple(out)


def erosion_tables(found: Erosion) -> dict[str, Table]:
    """The tables that stand behind no figure, by their titles."""
    out = {
        "Every question": _questions(found),
        "Every key": summary_table(found.summary(), found.kinds()),
        "Every layer": block_table(found.sites()),
    }
    if found.behaviour is not None:
        out["Every answer"] = _answers(found.behaviour, found.beside)
    if found.removal is not None:
        out |= {
            "What was removed": fit_table(found.removal),
            "Every answer without what is shared": removal_rows(found.removal),
        }
    if found.samples is not None:
        out |= {
            "Generated answers that begin as a refusal": share_table(found.samples),
            "How those shares changed": change_table(found.samples),
            "Every generated answer": answer_table(found.samples),
        }
    if found.next_tokens:
        out["Every expected token"] = token_lines(found.next_tokens)
    header = ("model", "set", "rows", "finite", "digest of the rows", "named", "revision", "digest of the weights")
    return out | {"Every table": Table("tables", header, found.origins)}


def _questions(found: Erosion) -> Table:
    lines = [(a.question, a.word, a.numbers) for a in answers(found)]
    return Table("questions", ("question", "word", "numbers"), tuple(lines))


def _answers(result: Behaviour, beside: Mapping[str, Behaviour]) -> Table:
    sets = (result.harmful, result.benign, *(b.benign for b in beside.values()))
    return Table("answers", ("set", "id", "cluster", "change"), tuple(line for s in sets for line in _rows_of(s)))


def _rows_of(of: AnswerChange) -> Iterator[tuple[Cell, ...]]:
    yield from ((of.name, i, int(c), float(v)) for i, c, v in zip(of.ids, of.clusters, of.rows, strict=True))


def _behaviour(result: Behaviour) -> Picture:
    reading = (
        "How the log-probability of given answers changed, summed over their first tokens, with bands that hold the "
        "whole curve with 95 % confidence. A tuned model may find every text less likely: only the distance of the "
        "harmful curve from the harmless one says something about harm."
    )
    curves = [s.cumulative for s in (result.harmful, result.benign)]
    n = max(len(c.mean) for c in curves)
    columns = [np.pad(v, (0, n - len(v)), constant_values=np.nan) for c in curves for v in (c.mean, c.low, c.high)]
    names = tuple(f"{part}{end}" for part in ("harmful", "benign") for end in ("", "_low", "_high"))
    lines = zip(range(1, n + 1), *(c.tolist() for c in columns), strict=True)
    return Picture(
        "behaviour",
        "Given answers",
        reading,
        lambda: plot(result),
        Table("behaviour", ("tokens", *names), tuple(lines)),
    )


def _refusals(found: Refusals) -> Picture:
    reading = (
        "Log-odds of an opening that refuses against one that complies, after each harmful request, under both models; "
        "the table has harmless requests too, after which the same openings are the control."
    )
    lines: list[tuple[Cell, ...]] = []
    for score in (found.harmful, found.benign):
        if score is not None:
            both = zip(score.ids, score.tuned_rows.tolist(), score.aligned_rows.tolist(), strict=True)
            lines += [(score.name, i, t, a, t - a) for i, t, a in both]
    table = Table("refusals", ("set", "id", "tuned", "aligned", "change"), tuple(lines))
    return Picture("refusals", "Refusals of harmful requests", reading, lambda: plot(found.harmful), table)


def _direction(result: Direction, beside: Mapping[str, Direction]) -> Picture:
    reading = (
        "Retention along the direction from the base to the aligned model, fitted on one half of the rows and read on "
        "the other: 1 as the aligned model, 0 as the base. What the harmless rows do too is not special to harm; a "
        "layer whose direction does not hold on other rows has no value."
    )
    names = ("retention", "remainder")
    header = ["layer", *(f"{n}{end}" for n in names for end in ("", "_low", "_high")), "along", "random_sd", "random_p"]
    header += ["in_sample", "control", "control_low", "control_high", "minus_control", *(f"minus_{e}" for e in _ENDS)]
    header += [f"{column}:{name}" for name in beside for column in ("control", "minus", *(f"minus_{e}" for e in _ENDS))]
    lines: list[tuple[Cell, ...]] = []
    for k, at in enumerate(result.whole.layers):
        other = result.control.layers[k].retention if result.control else Estimate(np.nan)
        parts = [x for n in names for x in _ends(getattr(at, n))[:3]]
        parts += [at.along, at.random_sd, at.random_p, at.in_sample, *_ends(other)[:3], *_ends(result.contrast[k])]
        for one in beside.values():
            parts += [one.control.layers[k].retention.value if one.control else np.nan, *_ends(one.contrast[k])]
        lines.append((at.layer, *parts))
    return Picture(
        "direction", "Alignment direction by layer", reading, lambda: plot(result),
        Table("direction", tuple(header), tuple(lines)),
    )  # fmt: skip


def _refusal_direction(result: RefusalDirection) -> Picture:
    reading = (
        "How far harmful and harmless prompts lie apart along the aligned model's refusal direction (mean state of "
        "harmful prompts minus that of harmless ones, last prompt token): a drift of 0 is as far as before, -1 no "
        "longer apart; and the cosine of that direction in the two models."
    )
    names = ("cosine", "drift", "harmful", "harmless")
    header = ("layer", *(f"{n}{end}" for n in names for end in ("", "_low", "_high", "_p")), "random_sd")
    lines = [(at.layer, *(x for n in names for x in _ends(getattr(at, n))), at.random_sd) for at in result.layers]
    return Picture(
        "refusal_direction", "Refusal direction by layer", reading, lambda: plot(result),
        Table("refusal_direction", header, tuple(lines)),
    )  # fmt: skip


def _subspace(result: SubspaceOverlap) -> Picture:
    reading = (
        "Overlap of the subspaces along which the two sets' states change, their means subtracted, beside what the "
        "same number is by chance and what harmless rows have with the second set. An overlap that the harmless rows "
        "have too has nothing to do with harm."
    )
    table = replace(block_table(result.site_summary()), name="subspace")
    return Picture("subspace", "Shared dimension by layer", reading, lambda: plot(result), table)


def _ends(e: Estimate) -> tuple[float, float, float, float]:
    return e.value, e.low, e.high, e.p
