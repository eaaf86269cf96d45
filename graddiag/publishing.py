"""From results to a folder: report.json, tables, figures and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from graddiag.besides import NAMES as BESIDES
from graddiag.besides import besides
from graddiag.exhibits import NAMES as EXHIBITS
from graddiag.exhibits import Exhibit, exhibits
from graddiag.files import strict
from graddiag.findings import Edited, Findings
from graddiag.folder import Folder
from graddiag.page import Page, render_page
from graddiag.pair_view import pair_view
from graddiag.plotting import plot, render
from graddiag.setting import setting_of
from graddiag.signals import Signals
from graddiag.tables import Table, block_table, pair_table, row_table, summary_table, to_csv, token_position_table
from graddiag.text import visible
from graddiag.verdict import verdict

SCHEMA = 1
TABLES = ("summary", "blocks", "token_positions", "pairs", "rows")
OPTIONAL_TABLES = ("summary-edited",)
REPORT_FILE = "report.json"
_REPLACED = [
    "report.html",
    *(f"figures/{name}.{form}" for name in (*EXHIBITS, *BESIDES) for form in ("svg", "png")),
    *(f"tables/{name}.csv" for name in (*EXHIBITS, *BESIDES, *OPTIONAL_TABLES)),
]
Json = Mapping[str, object]


@dataclass(frozen=True)
class Report:
    """What was written, and what to show: `verdict` and `warnings` are safe to print."""

    json: Path
    html: Path | None
    summary: dict[str, float | None]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]


def write_report(findings: Findings, out: Path, *, figures: bool = True) -> Report:
    """Writes report.json, tables/*.csv and, with `figures`, figures/*.svg, figures/*.png and report.html into `out`.

    Every file is complete or absent. Without `figures` those of an earlier report are removed: they would show other
    numbers. Raises ResourceError where the disk is full, UsageError where the folder cannot be written.
    """
    views = besides(findings)
    lines = (*verdict(findings.summary(), setting_of(findings)), *(line for v in views for line in v.lines))
    warnings = tuple(visible(w) for w in findings.warnings)
    shown = exhibits(
        loss_gap=findings.loss_gap,
        tokens=findings.tokens,
        matrix=findings.matrix,
        conflict=findings.conflict,
        framing=findings.framing,
        alignment=findings.alignment,
        audit=findings.audit,
    )
    drawn = (*(v.exhibit for v in views), *shown)
    tables = _tables(findings)
    folder = Folder(out)
    folder.remove(_REPLACED)
    folder.write(REPORT_FILE, _json(findings, lines, warnings))
    for table in (*(e.table for e in drawn), *tables.values()):
        folder.write(f"tables/{table.name}.csv", to_csv(table))
    html = None
    if figures:
        images = _draw(folder, drawn)
        origins, facts = _origins(findings), _facts(findings)
        page = Page(
            _title(findings), lines, warnings, shown, images, tables, origins, facts, views, pair_view(findings.tokens)
        )
        html = folder.write("report.html", render_page(page))
    return Report(out / REPORT_FILE, html, findings.summary(), lines, warnings)


def forget_report(out: Path) -> None:
    """Removes what another run's report has in this folder. Raises UsageError where the folder cannot be written."""
    Folder(out).remove([REPORT_FILE, *_REPLACED, *(f"tables/{name}.csv" for name in TABLES)])


def _tables(findings: Findings) -> dict[str, Table]:
    pairs = pair_table(findings.comparison, findings.loss_gap, findings.conflict, findings.alignment)
    return {
        "Every key": summary_table(findings.own_summary(), findings.kinds()),
        **({"Every key of the edited comparison": _edited_table(findings.edited)} if findings.edited else {}),
        "Every block": block_table(findings.block_summary()),
        "Every position in the answer": token_position_table(findings.tokens),
        "Every pair": pairs,
        "Every row": row_table(findings.tables(), findings.training, findings.alignment, findings.alignment_adam),
    }


def _edited_table(edited: Edited) -> Table:
    return replace(summary_table(edited.findings.summary(), edited.findings.kinds()), name="summary-edited")


def _json(findings: Findings, lines: tuple[str, ...], warnings: tuple[str, ...]) -> str:
    content = {
        "schema": SCHEMA,
        "provenance": _provenance(findings),
        "verdict": lines,
        "summary": findings.summary(),
        "kinds": findings.kinds(),
        "blocks": findings.block_summary(),
        "warnings": warnings,
    }
    return json.dumps(strict(content), allow_nan=False, indent=1) + "\n"


def _provenance(findings: Findings) -> Json:
    comparison = findings.comparison
    return {
        "graddiag": version("graddiag"),
        "command": findings.command,
        "sets": {role: _origin(table) for role, table in findings.tables().items()},
        "space": asdict(comparison.left.space),
        "differs": comparison.differs,
        "pairs": "exact" if findings.conflict.exact_pairs else "projected",
        "centered": findings.conflict.centered,
        "edits": [asdict(e) for e in findings.edited.edits] if findings.edited else [],
    }


def _origin(table: Signals) -> Json:
    from_, adam = table.provenance, table.adam
    return {
        "data": from_.data,
        "n": len(table),
        "finite": int(table.finite.sum()),
        "rows": table.rows,
        "model": from_.model,
        "revision": from_.revision,
        "weights": from_.weights,
        "versions": dict(from_.versions),
        "optimizer": None if adam is None else {"kind": adam.optimizer, "state": adam.state, "step": adam.step},
    }


def _origins(findings: Findings) -> Table:
    header = ("role", "set", "rows", "finite", "digest of the rows", "model", "revision", "digest of the weights")
    tables = [(role, t, t.provenance) for role, t in findings.tables().items()]
    lines = [(r, p.data, len(t), int(t.finite.sum()), t.rows, p.model, p.revision, p.weights) for r, t, p in tables]
    return Table("origins", header, tuple(lines))


def _facts(findings: Findings) -> dict[str, str]:
    space, edited = findings.comparison.left.space, findings.edited
    versions = dict(v for t in findings.tables().values() for v in t.provenance.versions)
    return {
        "command": findings.command or "called from Python",
        "sides differ in": ", ".join(findings.comparison.differs) or "nothing",
        "blocks": f"{len(space.blocks)}, from {space.blocks[0].name} to {space.blocks[-1].name}",
        **{k: str(v) for k, v in asdict(space).items() if k != "blocks"},
        "optimizer": _optimizer(findings.comparison.left),
        "paired cosines": "exact" if findings.conflict.exact_pairs else "projected",
        "edit of the second comparison": "; ".join(e.words() for e in edited.edits) if edited else "none",
        "grand mean subtracted": "yes" if findings.conflict.centered else "no",
        "versions": ", ".join(f"{k} {v}" for k, v in {"graddiag": version("graddiag"), **versions}.items()),
    }


def _optimizer(table: Signals) -> str:
    adam = table.adam
    return "none" if adam is None else f"{adam.optimizer} after {adam.step} steps, digest of its state {adam.state}"


def _title(findings: Findings) -> str:
    setting = setting_of(findings)
    return f"{setting.left} against {setting.right}"


def _draw(folder: Folder, shown: tuple[Exhibit, ...]) -> dict[str, bytes]:
    """Writes every figure, and gives the SVGs by name."""
    images = {}
    for exhibit in shown:
        figure = plot(exhibit.result)
        images[exhibit.name] = render(figure, "svg")
        folder.write(f"figures/{exhibit.name}.svg", images[exhibit.name])
        folder.write(f"figures/{exhibit.name}.png", render(figure, "png"))
    return images
