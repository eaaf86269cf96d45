"""The tables of a run: they come back as they were, and hold the numbers of the results."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from written import csv_rows

from graddiag.findings import Findings
from graddiag.page import MOST_ROWS
from graddiag.tables import Table, summary_table, to_csv, unit


def test_a_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    table = Table(
        "t", ("id", "x", "n", "u"), (('a,"b"\n<c>\x1b', 0.1 + 0.2, 3, None), ("=1", 1e-300, -1, float("nan")))
    )
    path = tmp_path / "t.csv"
    path.write_text(to_csv(table), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as f:
        back = list(csv.reader(f))
    assert tuple(back[0]) == table.header
    assert [(i, float(x), int(n), u) for i, x, n, u in back[1:]] == [
        ('a,"b"\n<c>\x1b', 0.1 + 0.2, 3, ""),
        ("=1", 1e-300, -1, ""),
    ]


def test_tables_hold_the_numbers_of_the_results(found: Findings, run: Path) -> None:
    pairs = csv_rows(run, "pairs")
    assert [r["id"] for r in pairs] == list(found.loss_gap.ids)
    np.testing.assert_array_equal([float(r["loss_gap"]) for r in pairs], found.loss_gap.gap)
    np.testing.assert_array_equal([float(r["paired_cosine"]) for r in pairs], found.conflict.paired)
    matrix = csv_rows(run, "matrix")
    names = list(matrix[0])[3:]
    np.testing.assert_array_equal([[float(r[n]) for n in names] for r in matrix], found.matrix.values)
    rows = csv_rows(run, "rows")
    assert len(rows) == sum(len(t) for t in found.tables().values())
    left = found.comparison.left
    norm = np.sqrt(sum(n**2 for n in left.norms.values()))
    np.testing.assert_allclose([float(r["gradient_norm"]) for r in rows if r["role"] == "left"], norm, rtol=1e-12)
    blocks = csv_rows(run, "blocks")
    assert [r["block"] for r in blocks] == list(left.blocks)
    expected = found.conflict.blocks[left.blocks[0]].paired.value
    assert float(blocks[0]["conflict/paired_cosine"]) == expected
    assert float(csv_rows(run, "conflict")[0]["cosine"]) == expected


def test_every_number_of_the_summary_stands_in_its_table(found: Findings) -> None:
    table = summary_table(found.summary(), found.kinds())
    shown = {cell for row in table.rows for cell in row if isinstance(cell, float)}
    assert {v for v in found.summary().values() if isinstance(v, float)} <= shown
    assert len(table.rows) <= MOST_ROWS
    assert unit("loss_gap/mean") == "nats/token"
    assert unit("loss_gap/wilcoxon_p") == "probability"
    assert unit("alignment/control:benign") == "cosine"
