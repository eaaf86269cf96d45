"""From a screening to a folder: report.json, one table of all rows, and the rows to keep and to drop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graddiag.files import disk_named, write_atomically, write_json
from graddiag.folder import Folder
from graddiag.ranking import Ranking
from graddiag.screen_verdict import Screening, screen_verdict
from graddiag.statistics import optional
from graddiag.tables import Cell, Table, to_csv
from graddiag.text import visible

SCHEMA = 1
REPORT, ROWS = "report.json", "tables/rows.csv"
DROP, KEEP = "drop.jsonl", "keep.jsonl"
ROWS_IN_JSON = 1_000  # the most harmful rows; all of them are in tables/rows.csv
COLUMNS = (
    "id",
    "cluster",
    "rank",
    "score",
    "alignment",
    "inner",
    "harm",
    "matching",
    "loss",
    "n_tokens",
    "gradient_norm",
    "dropped",
)


@dataclass(frozen=True)
class Screened:
    """What a screening found, and where it was written; `verdict` and `warnings` are safe to print."""

    found: Screening
    out: Path
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, float | None]:
        """The flat keys; undefined is None."""
        return self.found.summary()

    def lines(self) -> list[str]:
        """Where things are, and how fast it went."""
        rate = self.found.rate
        said = "nothing was measured in this call" if math.isnan(rate) else f"{rate:.3g} rows per second"
        return [f"Rows: {self.out / ROWS}, {self.out / DROP}, {self.out / KEEP} ({said})"]


def write_screening(found: Screening, out: Path, rows: Iterable[tuple[str, str]]) -> Screened:
    """Writes report.json, tables/rows.csv, keep.jsonl and drop.jsonl; `rows` are ids and lines of the set, in order.

    Rows without a score (their loss or gradient is not finite) are in drop.jsonl too, and a warning counts them.
    Raises ResourceError where the disk is full.
    """
    lines = tuple(screen_verdict(found))
    warnings = tuple(visible(w) for w in found.warnings)
    table = row_table(found.ranking, found.share)
    with disk_named(out):
        (out / "tables").mkdir(parents=True, exist_ok=True)
        text = to_csv(table).encode("utf-8", "backslashreplace")
        write_atomically(out / ROWS, lambda p: p.write_bytes(text))
        _write_lists(found.ranking, found.share, out, rows)
        write_json(out / REPORT, _content(found, table, lines, warnings))
    return Screened(found, out, lines, warnings)


def forget_screening(out: Path) -> None:
    """Removes the report and the lists of another screening, before rows change that they speak of.

    Raises UsageError where the folder cannot be written.
    """
    Folder(out).remove([REPORT, ROWS, KEEP, DROP])


def row_table(ranking: Ranking, share: float) -> Table:
    """One line per row, in the order of the set; `share` of the rows are dropped."""
    rows = ranking.rows
    dropped = _dropped(ranking, share)
    rank = [int(r) if r else None for r in ranking.rank]
    numbers = (ranking.score, ranking.alignment, ranking.inner, ranking.harm, ranking.matching)
    scores, loss, norm = [_cells(v) for v in numbers], _cells(rows.loss), _cells(rows.norm)
    lines: Iterator[tuple[Cell, ...]] = zip(
        rows.ids, rows.clusters, rank, *scores, loss, rows.n_tokens.tolist(), norm, dropped.tolist(), strict=True
    )
    return Table("rows", COLUMNS, tuple(lines))


def _cells(values: np.ndarray) -> list[float | None]:
    return [optional(float(v)) for v in values]


def _dropped(ranking: Ranking, share: float) -> np.ndarray:
    """Which rows are dropped, those without a score too."""
    dropped = ranking.rank == 0
    dropped[ranking.worst(share)] = True
    return np.asarray(dropped)


def _write_lists(ranking: Ranking, share: float, out: Path, rows: Iterable[tuple[str, str]]) -> None:
    fate = dict(zip(ranking.rows.ids, _dropped(ranking, share).tolist(), strict=True))
    drop, keep = out / DROP, out / KEEP

    def both(drop_path: Path) -> None:
        def write(keep_path: Path) -> None:
            with drop_path.open("wb") as dropped, keep_path.open("wb") as kept:
                for name, line in rows:
                    if name in fate:  # a row that the tokenizer could not use is in neither
                        file = dropped if fate.pop(name) else kept
                        file.write(line.encode("utf-8", "backslashreplace") + b"\n")

        write_atomically(keep, write)

    write_atomically(drop, both)


def _content(
    found: Screening, table: Table, lines: tuple[str, ...], warnings: tuple[str, ...]
) -> dict[str, object]:  # fmt: skip
    first = [dict(zip(table.header, table.rows[i], strict=True)) for i in found.ranking.order[:ROWS_IN_JSON]]
    return {
        "schema": SCHEMA,
        "provenance": found.provenance,
        "verdict": lines,
        "summary": found.summary(),
        "rows": first,
        "warnings": warnings,
    }
