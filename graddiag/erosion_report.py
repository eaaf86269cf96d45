"""From the saved tables of three models to a report: report.json, tables, figures and one page; no model is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from graddiag.erosion_analyses import analyse
from graddiag.erosion_exhibits import FIGURES, erosion_pictures, erosion_tables
from graddiag.erosion_findings import Erosion
from graddiag.erosion_setting import ALIGNED, EROSION_FILE, TUNED, ErosionRun, read_setting
from graddiag.erosion_verdict import answers, erosion_verdict
from graddiag.files import strict
from graddiag.folder import Folder
from graddiag.page import PicturePage, render_erosion_page
from graddiag.publishing import SCHEMA, Report
from graddiag.sample_views import SampleView, sample_view, token_views
from graddiag.tables import to_csv
from graddiag.text import visible

_NAMES = (
    *FIGURES,
    "answers",
    "generated",
    "generated_changes",
    "generated_shares",
    "intervention_fits",
    "intervention_rows",
)  # tables that not every run has
_WRITTEN = [
    "report.html",
    *(f"figures/{n}.{form}" for n in FIGURES for form in ("svg", "png", "json")),
    *(f"tables/{name}.csv" for name in _NAMES),
]


@dataclass(frozen=True)
class Eroded:
    """What three models show: the findings, where the report is, and what to say in a few lines."""

    findings: Erosion
    report: Report
    out: Path

    def summary(self) -> dict[str, float | None]:
        """The flat keys; undefined is None."""
        return self.findings.summary()


def report_erosion(run: str | Path, *, figures: bool = True) -> Eroded:
    """Every analysis of a run's saved tables, and the report, written into its folder.

    Raises DataError where tables are missing or may not be compared, ResourceError where the disk is full, UsageError
    where the folder cannot be written.
    """
    out = Path(run)
    found = analyse(ErosionRun(out, read_setting(out)))
    lines = tuple(visible(line) for line in erosion_verdict(found))
    warnings = tuple(visible(w) for w in found.warnings)
    pictures, tables = erosion_pictures(found), erosion_tables(found)
    folder = Folder(out)
    folder.remove(_WRITTEN)
    folder.write("report.json", _json(found, lines, warnings))
    for table in (*(p.table for p in pictures), *tables.values()):
        folder.write(f"tables/{table.name}.csv", to_csv(table))
    html = None
    if figures:
        images = {p.name: p.write(folder) for p in pictures}
        page = PicturePage(
            _title(found),
            lines,
            warnings,
            pictures,
            images,
            tables,
            _facts(found),
            _view(found),
            token_views(found.next_tokens),
        )
        html = folder.write("report.html", render_erosion_page(page))
    return Eroded(found, Report(out / "report.json", html, found.summary(), lines, warnings), out)


def forget_report(run: Path) -> None:
    """Makes the folder that of an unfinished run, before anything changes that its report speaks of.

    Raises UsageError where the folder cannot be written.
    """
    Folder(run).remove([EROSION_FILE, "report.json", *_WRITTEN])


def _view(found: Erosion) -> SampleView | None:
    return None if found.samples is None else sample_view(found.samples)


def _title(found: Erosion) -> str:
    models = found.setting.models
    return f"{visible(models[TUNED])} against {visible(models[ALIGNED])}"


def _json(found: Erosion, lines: tuple[str, ...], warnings: tuple[str, ...]) -> str:
    content = {
        "schema": SCHEMA,
        "provenance": _provenance(found),
        "verdict": lines,
        "words": {a.question: a.word for a in answers(found)},
        "summary": found.summary(),
        "kinds": found.kinds(),
        "blocks": found.blocks(),
        "warnings": warnings,
    }
    return json.dumps(strict(content), allow_nan=False, indent=1) + "\n"


def _provenance(found: Erosion) -> dict[str, object]:
    setting = found.setting
    return {
        "graddiag": version("graddiag"),
        "command": setting.command,
        "models": dict(setting.models),
        "sets": dict(setting.parts),
        "controls": setting.controls,
        "openings": setting.openings,
        "tables": [list(line) for line in found.origins],
    }


def _facts(found: Erosion) -> dict[str, str]:
    setting = found.setting
    refusing, complying = setting.openings
    return {
        "command": setting.command or "called from Python",
        **{f"{role} model": name for role, name in setting.models.items()},
        **{f"{part} set": name for part, name in setting.parts.items()},
        "further controls": ", ".join(setting.controls) or "none",
        "refusing opening": refusing or "none",
        "complying opening": complying or "none",
        "components of a subspace": "counted" if setting.k is None else str(setting.k),
        "generated answers": _generated(found),
        "removed from the tuned model": "nothing" if setting.removal is None else setting.removal.where,
        "draws of each null of an overlap": str(setting.n_null),
        "weights": "compared" if setting.weights else "not compared",
        "versions": f"graddiag {version('graddiag')}",
    }


def _generated(found: Erosion) -> str:
    how = found.setting.generation
    if how is None:
        return "none"
    n = max(len(ids) for ids in how.ids.values())
    return f"{n} prompts a set, temperature {how.temperature:g}, at most {how.new_tokens} tokens, seed {how.seed}"
