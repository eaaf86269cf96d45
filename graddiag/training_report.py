"""From the log of a monitored run to its report: report.json, tables, figures and one page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from graddiag.alarms import sentence
from graddiag.errors import DataError
from graddiag.files import strict
from graddiag.folder import Folder
from graddiag.page import PicturePage, render_training_page
from graddiag.publishing import SCHEMA, Report
from graddiag.tables import to_csv
from graddiag.text import interval, visible
from graddiag.training_exhibits import FIGURES, pictures, training_tables
from graddiag.training_log import read_log
from graddiag.training_view import TrainingView, training_view

MOST_ALARMS = 12  # that are said one by one; all are in the table


@dataclass(frozen=True)
class TrainingResult:
    """What a monitored run shows: the view, where the report is, and what to say in a few lines."""

    view: TrainingView
    report: Report
    out: Path

    def summary(self) -> dict[str, float | None]:
        """The flat keys; undefined is None."""
        return self.view.summary()


def report_training(run: str | Path, *, figures: bool = True) -> TrainingResult:
    """The report of a monitored run from its log, written into its folder; no model is needed.

    Raises DataError where the folder is not that of a monitored run or has no probe, ResourceError where the disk is
    full, UsageError where the folder cannot be written.
    """
    out = Path(run)
    log = read_log(out)
    if not log.probes:
        raise DataError(f"{out} has no probe yet: the run ended before its first one. Train for at least one step.")
    view = training_view(log)
    lines = tuple(visible(line) for line in _verdict(view))
    warnings = tuple(visible(f"Step {n.step}: {n.says}") for n in log.notices)
    shown, tables = pictures(view), training_tables(view)
    folder = Folder(out)
    folder.remove(["report.html", *(f"figures/{name}.{form}" for name in FIGURES for form in ("svg", "png", "json"))])
    folder.write("report.json", _json(view, lines, warnings))
    for table in (*(p.table for p in shown), *tables.values()):
        folder.write(f"tables/{table.name}.csv", to_csv(table))
    html = None
    if figures:
        images = {p.name: p.write(folder) for p in shown}
        page = PicturePage(f"Training run {out.name}", lines, warnings, shown, images, tables, _facts(view))
        html = folder.write("report.html", render_training_page(page))
    return TrainingResult(view, Report(out / "report.json", html, view.summary(), lines, warnings), out)


def _verdict(view: TrainingView) -> list[str]:
    """What happened, alarm by alarm, what was measured, and what it does not show."""
    course, run = view.course, view.run
    lines = [f"{len(run.probes)} probes from step {course.steps[0]} to {course.steps[-1]}; {len(run.alarms)} alarms."]
    lines += [sentence(a) for a in run.alarms[:MOST_ALARMS]]
    if len(run.alarms) > MOST_ALARMS:
        lines.append(f"And {len(run.alarms) - MOST_ALARMS} alarms more, see Every alarm.")
    change, error = float(course.change[-1]), float(course.change_error[-1])
    shown = interval(change, change - 2 * error, change + 2 * error)
    lines.append(f"Loss on safe answers since the first probe: {shown} nats/token (two standard errors each way).")
    return [*lines, "All given these safety examples and these steps; no alarm is no proof that nothing was lost."]


def _json(view: TrainingView, lines: tuple[str, ...], warnings: tuple[str, ...]) -> str:
    content = {
        "schema": SCHEMA,
        "provenance": {"graddiag": version("graddiag"), "run": dict(view.run.facts), "limits": asdict(view.run.limits)},
        "verdict": lines,
        "summary": view.summary(),
        "blocks": view.block_summary(),
        "alarms": [asdict(a) for a in view.run.alarms],
        "warnings": warnings,
    }
    return json.dumps(strict(content), allow_nan=False, indent=1) + "\n"


def _facts(view: TrainingView) -> dict[str, str]:
    blocks = tuple(view.run.probes[0].safety_norms)
    named = f"{len(blocks)}, from {blocks[0]} to {blocks[-1]}" if blocks else "none"
    return {**view.run.facts, "blocks": named, "versions": f"graddiag {version('graddiag')}"}
