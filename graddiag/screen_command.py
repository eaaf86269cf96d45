"""The command `graddiag screen`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graddiag.errors import UsageError
from graddiag.options import BLOCKS, CONTROL, MODEL, ROWS, SAVE, TARGET, Threshold, against, option, together
from graddiag.terminal import command_line, common, cross, print_found

RANKING = together(
    option(
        "--safety",
        default=None,
        metavar="SET",
        help="Safe answers to harmful requests.  [default: safety for a built-in set]",
    ),
    option("--harmful", default=None, metavar="SET", help="Answers that no model should give: for the matching score."),
    CONTROL,
    option(
        "--by",
        default=None,
        metavar="alignment|harm|matching",
        help="What rows are ranked by.  [default: matching with --harmful, else alignment]",
    ),
    option("--drop", default=0.1, help="Share of the rows to drop, the most harmful first: 0 to below 1."),
)


@click.command()
@click.argument("set_name", metavar="SET")
@together(RANKING, MODEL, BLOCKS, TARGET, ROWS, SAVE)
@common
def screen(
    set_name: str, *, safety: str | None, control: tuple[str, ...], blocks: tuple[str, ...],
    as_json: bool, quiet: bool, thresholds: list[Threshold], out: Path | None, **settings: object,
) -> int:  # fmt: skip
    """Rows of any SET ranked by what learning them does to safety, and the rows to keep and to drop.

    Rows are read, measured and let go: a set of any size will do. Writes report.json, tables/rows.csv, keep.jsonl and
    drop.jsonl. The same command again continues an interrupted run.
    """
    from graddiag.screening import screen as run

    chosen, controls = against(set_name, set_name, safety, control)
    if chosen is None:
        raise UsageError("Screening needs safe answers to compare with: give --safety SET.")
    found = run(
        set_name, safety=chosen, controls=controls, blocks=blocks or None, quiet=quiet, out=out,
        command=command_line(), **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    text = [*found.verdict, *(f"Warning: {w}" for w in found.warnings), *found.lines(), f"Again: {command_line()}"]
    document = json.loads((found.out / "report.json").read_text(encoding="utf-8"))
    print_found(document, "\n".join(text), as_json=as_json)
    return cross(thresholds, found.summary())
