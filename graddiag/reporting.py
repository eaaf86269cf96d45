"""From the signals of a run to its report: no model, no torch, the same numbers every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from graddiag.analyzers import (
    AdamAlignment,
    Alignment,
    Conflict,
    HeadlineResults,
    LossGap,
    alignment,
    alignment_adam,
    audit,
    conflict,
    cosine_matrix,
    edit_change,
    framing,
    loss_gap,
    repeats,
    token_view,
    training,
)
from graddiag.answers import repeat_warning
from graddiag.comparison import Comparison
from graddiag.edits import Edit
from graddiag.erosion_report import Eroded, report_erosion
from graddiag.erosion_setting import EROSION_FILE, is_erosion_run
from graddiag.errors import DataError
from graddiag.files import read_json, write_json
from graddiag.findings import Edited, Findings
from graddiag.folder import Folder
from graddiag.grams import Grams
from graddiag.publishing import Report, forget_report, write_report
from graddiag.signals import PairProducts, Signals
from graddiag.store import read_pairs, read_signals, save_signals
from graddiag.token_texts import read_texts
from graddiag.training_log import is_training_run
from graddiag.training_report import TrainingResult, report_training

RUN_FILE = "run.json"
PAIRS, EDITED_PAIRS = "pairs", "pairs-edited"  # folders of exact products
AUDIT, EDITED_AUDIT = "audit", "audit-edited"  # folders of exact products of rows that are no partners


@dataclass(frozen=True)
class Result:
    """What a comparison found: the findings, where the report is, what to say in a few lines."""

    findings: Findings
    report: Report
    out: Path

    def summary(self) -> dict[str, float | None]:
        """The flat keys; undefined is None."""
        return self.findings.summary()


@dataclass(frozen=True)
class Analysis:
    """How saved signals are analysed; kept in the run, so that the report can be made again."""

    center: bool = False
    seed: int = 0
    controls: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    command: str = ""
    exact_pairs: bool = False
    edits: tuple[Edit, ...] = ()
    strangers: bool = False
    edited_strangers: bool = False


def report(run: str | Path, *, figures: bool = True) -> Result | TrainingResult | Eroded:
    """The report of a run again: of a comparison or of three models from saved signals, of a monitored training run
    from its log.

    No model is needed. Raises DataError where the folder is no run, or the run was interrupted.
    """
    folder = Path(run)
    if is_training_run(folder):
        return report_training(folder, figures=figures)
    if is_erosion_run(folder):
        return report_erosion(folder, figures=figures)
    if not (folder / RUN_FILE).is_file():
        raise DataError(
            f"{folder} is not a finished run (neither {RUN_FILE} nor {EROSION_FILE} is there). Give the command again "
            "to finish it."
        )
    content = read_json(folder / RUN_FILE)
    roles, kept = content["tables"], content["analysis"]
    assert isinstance(roles, list)
    assert isinstance(kept, dict)
    tables = {role: read_signals(folder / role) for role in roles}
    lists = {k: tuple(kept[k]) for k in ("controls", "notes", "engine")}
    analysis = Analysis(**kept | lists | {"edits": tuple(Edit(**e) for e in kept.get("edits", ()))})
    stores = (PAIRS, *([EDITED_PAIRS] if analysis.edits else [])) if analysis.exact_pairs else ()
    products = {name: read_pairs(folder / name) for name in stores}
    audits = ((AUDIT, analysis.strangers), (EDITED_AUDIT, analysis.edited_strangers))
    strangers = {name: read_pairs(folder / name) for name, there in audits if there}
    return conclude(tables, products, analysis, folder, strangers=strangers, figures=figures)


def conclude(
    tables: Mapping[str, Signals],
    products: Mapping[str, PairProducts],
    analysis: Analysis,
    folder: Path,
    *,
    strangers: Mapping[str, PairProducts],
    figures: bool,
) -> Result:
    """Every analysis that the tables allow, and the report.

    Roles: left, right, safety, control-NAME, and left-edited, right-edited for the second comparison, whose products
    are those of "pairs-edited". `products` are exact ones of pairs, `strangers` of rows that are no partners ("audit",
    "audit-edited"), by their folder.
    """
    texts = read_texts(folder)
    findings = _findings(tables, products.get(PAIRS), analysis, texts, strangers.get(AUDIT))
    if analysis.edits:
        edited, others = _with_edits(tables, analysis.edits), strangers.get(EDITED_AUDIT)
        second = _findings(edited, products.get(EDITED_PAIRS), analysis, texts, others)
        change = edit_change(_of_pairs(findings), _of_pairs(second), seed=analysis.seed)
        new = [w for w in second.warnings if w not in findings.warnings]
        findings = replace(
            findings,
            edited=Edited(analysis.edits, second, change),
            warnings=(*findings.warnings, *(f"With the edit: {w}" for w in new)),
        )
    return Result(findings, write_report(findings, folder, figures=figures), folder)


def _with_edits(tables: Mapping[str, Signals], edits: Sequence[Edit]) -> dict[str, Signals]:
    """The tables with the edited sides in the place of those that were given."""
    roles = {e.role for e in edits}
    kept = {role: t for role, t in tables.items() if role not in roles}
    return kept | {e.side: tables[e.role] for e in edits}


def _of_pairs(findings: Findings) -> tuple[LossGap, Conflict, Alignment | None]:
    return findings.loss_gap, findings.conflict, findings.alignment


def _findings(
    tables: Mapping[str, Signals],
    products: PairProducts | None,
    analysis: Analysis,
    texts: Mapping[int, str],
    strangers: PairProducts | None = None,
) -> Findings:
    """Every analysis of one comparison."""
    comparison = Comparison(tables["left"], tables["right"], products)
    safety = tables.get("safety")
    controls = {name: tables[f"control-{name}"] for name in analysis.controls}
    others = [t for t in (safety, *controls.values()) if t]
    compared = [t for t in (comparison.left, comparison.right, safety) if t]
    grams = Grams.that_fit(compared)
    adam = alignment_adam(comparison, safety, controls, seed=analysis.seed) if safety else None
    headline = HeadlineResults(
        loss_gap(comparison, seed=analysis.seed),
        conflict(comparison, center=analysis.center, seed=analysis.seed, grams=grams),
        framing(comparison, safety, seed=analysis.seed),
        alignment(comparison, safety, controls, seed=analysis.seed, grams=grams) if safety else None,
    )
    return Findings(
        comparison=comparison,
        safety=safety,
        controls=controls,
        loss_gap=headline.loss_gap,
        tokens=token_view(comparison, texts, seed=analysis.seed),
        conflict=headline.conflict,
        framing=headline.framing,
        alignment=headline.alignment,
        training=training(comparison, safety, controls, grams=grams),
        audit=audit(comparison, safety, controls, strangers=strangers),
        repeats=repeats(comparison, headline, safety, controls, center=analysis.center, seed=analysis.seed),
        alignment_adam=adam,
        matrix=cosine_matrix(compared, grams=grams),
        command=analysis.command,
        warnings=(
            *comparison.warnings,
            *(w for t in others for w in (*t.warnings, *repeat_warning(t))),
            *_overlaps(tables),
            *_without_adam(tables, adam),
            *analysis.notes,
            *analysis.engine,
        ),
    )


def _overlaps(tables: Mapping[str, Signals]) -> list[str]:
    """Warnings of rows that are compared with themselves: in the safety set, or in a control that is a side."""
    out = []
    known = set(tables["safety"].digests) if "safety" in tables else set()
    for role, table in tables.items():
        shared = known.intersection(table.digests)
        if role != "safety" and shared:
            name = table.provenance.data
            out.append(
                f"{name}: {len(shared)} of {len(table)} rows are in the safety set too; a row is "
                "always aligned with a mean that holds it."
            )
    for role, table in tables.items():
        for side in ("left", "right"):
            if role.startswith("control-") and set(table.digests) & set(tables[side].digests):
                out.append(
                    f"The control {table.provenance.data} shares rows with "
                    f"{tables[side].provenance.data} and is no control for it."
                )
    return out


def _without_adam(tables: Mapping[str, Signals], adam: AdamAlignment | None) -> list[str]:
    """A warning where some tables know steps of an optimizer, and yet there is no Adam form."""
    having = [t.provenance.data for t in tables.values() if t.adam]
    if adam or not having:
        return []
    return [
        f"alignment_adam is undefined: {', '.join(having)} have steps of an optimizer, but not all sets have them "
        "towards this safety set from one and the same state."
    ]


def engine_notes(folder: Path) -> tuple[str, ...]:
    """What an earlier call of the same run noted about how it measured; its signals are still those."""
    path = folder / RUN_FILE
    if not path.is_file():
        return ()
    kept = read_json(path)["analysis"]
    return tuple(kept["engine"]) if isinstance(kept, dict) and "engine" in kept else ()


def forget_run(folder: Path) -> None:
    """Makes the folder that of an unfinished run, before anything changes that its report speaks of. Raises UsageError
    where the folder cannot be written."""
    Folder(folder).remove([RUN_FILE])
    forget_report(folder)


def save_run(
    folder: Path, tables: Mapping[str, Signals], given: Sequence[str], analysis: Analysis, *, overwrite: bool
) -> None:
    """Writes what `report` needs; tables that were given and not measured here are copied into the run."""
    for role in given:
        save_signals(folder / role, tables[role], overwrite=overwrite)
    write_json(folder / RUN_FILE, {"tables": sorted(tables), "analysis": asdict(analysis)})
