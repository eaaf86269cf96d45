"""Every analysis that the saved tables of three models allow, one table in memory at a time."""

from __future__ import annotations

from graddiag.analyzers import (
    Behaviour,
    Direction,
    RefusalDirection,
    RefusalScore,
    SubspaceOverlap,
    behaviour,
    direction,
    refusal_direction,
    refusal_score,
    subspace_overlap,
)
from graddiag.answers import repeat_warning
from graddiag.comparison import Comparison
from graddiag.erosion_findings import Erosion, Refusals
from graddiag.erosion_removal import removal, removal_notes
from graddiag.erosion_samples import samples
from graddiag.erosion_setting import (
    ALIGNED,
    BASE,
    FIRST,
    OPENINGS,
    PROMPT,
    TUNED,
    ErosionRun,
    opened_name,
)
from graddiag.erosion_shifts import read_shifts
from graddiag.erosion_update import kept_weights, safe_answers
from graddiag.expected_tokens import expected_tokens
from graddiag.rules import ALPHA


def analyse(run: ErosionRun) -> Erosion:
    """Every analysis that the tables of a run allow, one after the other; a table is in memory only while it is used.

    Raises DataError where tables are not whole, may not be compared, or have too few rows for what is asked.
    """
    setting, main, kept = run.setting, _behaviour(run), kept_weights(run)
    noted = kept.notes if kept else ()
    return Erosion(
        setting=setting,
        behaviour=main,
        beside={} if main is None else _beside(run),
        refusals=_refusals(run),
        direction=_direction(run),
        direction_beside=_direction_beside(run),
        refusal_direction=_refusal_direction(run),
        subspace=_subspace(run),
        shifts=read_shifts(run),
        weights=kept.changes if kept else None,
        origins=_origins(run),
        warnings=tuple(dict.fromkeys((*setting.notes, *noted, *_warnings(run), *removal_notes(setting.removal)))),
        samples=samples(run),
        safe_answers=safe_answers(run),
        removal=removal(run),
        next_tokens=expected_tokens(run),
    )


def _has(run: ErosionRun, *parts: str, models: tuple[str, ...] = (TUNED, ALIGNED)) -> bool:
    return set(parts) <= run.setting.parts.keys() and set(models) <= run.setting.models.keys()


def _behaviour(run: ErosionRun) -> Behaviour | None:
    if not _has(run, "harmful", "benign"):
        return None
    return behaviour(run.change("harmful"), run.change("benign"), seed=run.setting.seed)


def _beside(run: ErosionRun) -> dict[str, Behaviour]:
    harmful = run.change("harmful")
    others = {name: run.compared(TUNED, ALIGNED, name) for name in run.setting.controls}
    return {name: behaviour(harmful, other, seed=run.setting.seed) for name, other in others.items()}


def _refusals(run: ErosionRun) -> Refusals | None:
    opened = run.setting.opened
    if "safety" not in opened:
        return None
    return Refusals.of(_score(run, "safety"), _score(run, "benign") if "benign" in opened else None)


def _score(run: ErosionRun, part: str) -> RefusalScore:
    setting = run.setting
    refusing, complying = (
        run.compared(TUNED, ALIGNED, opened_name(setting.parts[part], opening)) for opening in OPENINGS
    )
    return refusal_score(refusing, complying, ending=setting.ending or 0, seed=setting.seed)


def _direction(run: ErosionRun) -> Direction | None:
    if not _has(run, "harmful", models=(BASE, ALIGNED, TUNED)):
        return None
    return _directed(run, run.setting.parts["benign"] if _has(run, "benign") else None)


def _direction_beside(run: ErosionRun) -> dict[str, Direction]:
    if not _has(run, "harmful", models=(BASE, ALIGNED, TUNED)):
        return {}
    return {name: _directed(run, name) for name in run.setting.controls}


def _directed(run: ErosionRun, control: str | None) -> Direction:
    harmful, harmless = _shifts(run, run.setting.parts["harmful"]), control and _shifts(run, control)
    return direction(*harmful, position=FIRST, control=harmless or None, seed=run.setting.seed)


def _shifts(run: ErosionRun, name: str) -> tuple[Comparison, Comparison]:
    return run.compared(ALIGNED, BASE, name), run.compared(TUNED, ALIGNED, name)


def _refusal_direction(run: ErosionRun) -> RefusalDirection | None:
    if not _has(run, "safety", "benign"):
        return None
    return refusal_direction(run.change("safety"), run.change("benign"), position=PROMPT)


def _subspace(run: ErosionRun) -> SubspaceOverlap | None:
    if not _has(run, "left", "right"):
        return None
    parts, setting = run.setting.parts, run.setting
    sides = (parts["left"], parts["right"])
    others = (*([parts["benign"]] if "benign" in parts else []), *setting.controls)
    controls = {n: run.compared(TUNED, ALIGNED, n) for n in dict.fromkeys(others) if n not in sides}
    return subspace_overlap(
        run.change("left"), run.change("right"), controls, position=FIRST, k=setting.k, names=sides,
        n_null=setting.n_null, seed=setting.seed,
    )  # fmt: skip


def _origins(run: ErosionRun) -> tuple[tuple[str, ...], ...]:
    """A line per saved table: model role, set, rows, finite rows, digest of the rows, model, digest of its weights."""
    out = []
    for role in run.setting.models:
        for name in run.setting.sets:
            table = run.table(role, name)
            of, finite = table.provenance, str(int(table.finite.sum()))
            out.append((role, name, str(len(table)), finite, table.rows, of.model, of.revision, of.weights))
    return tuple(out)


def _warnings(run: ErosionRun) -> list[str]:
    """What must be known of the models and of every set that was read with its own answers."""
    out = []
    if _same_weights(run):
        out.append("The tuned and the aligned model have the same weights: nothing can differ between them.")
    least = 1 / (1 + run.setting.n_null)
    if least >= ALPHA and _has(run, "left", "right"):
        out.append(f"With {run.setting.n_null} draws of a null no p of an overlap is below {least:.2g}.")
    for name in run.setting.own_sets:
        change = run.compared(TUNED, ALIGNED, name)
        out += [*change.pairing_warnings, *repeat_warning(change.left)]
        if BASE in run.setting.models:
            out += run.compared(ALIGNED, BASE, name).pairing_warnings
    return out


def _same_weights(run: ErosionRun) -> bool:
    name = run.setting.sets[0]
    return len({run.table(role, name).provenance.weights for role in (TUNED, ALIGNED)}) == 1
