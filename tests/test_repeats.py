"""Repeated answers in a comparison: copies change no interval, and the result without them stands beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from findings import conclude
from tables import Table, answering, changed, compared, four_tables, taken, unnamed, with_reference

from graddiag.findings import Findings
from graddiag.publishing import write_report
from graddiag.tables import summary_table

ANSWERS = (1, 2, 1, 3, 4, 2, 1, 5, 6, 7, 8, 9)  # of 12 pairs: 1 three times, 2 twice
KEPT = (0, 1, 3, 4, 7, 8, 9, 10, 11)


def found_of(tables: dict[str, Table], *, exact: bool = True, center: bool = False) -> Findings:
    return conclude(compared(tables["left"], tables["right"], exact=exact), tables, center=center)


def repeating(answers: Sequence[int] = ANSWERS) -> dict[str, Table]:
    tables = four_tables()
    return tables | {side: answering(tables[side], answers) for side in ("left", "right")}


def twice_each(table: Table) -> Table:
    """Every row twice, the copies behind all others and under ids of their own."""
    s = table.signals
    again = replace(s, ids=tuple(f"{i}-again" for i in s.ids), clusters=tuple(f"{i}-again" for i in s.clusters))
    return Table(type(s).concat([s, again]), {b: np.concatenate([g, g]) for b, g in table.full.items()})


@pytest.mark.parametrize("exact", [True, False])
def test_a_second_copy_of_every_row_changes_no_mean_interval_or_p_of_signs(exact: bool) -> None:
    single = {role: unnamed(t) for role, t in four_tables(exact=exact).items()}
    double = {role: twice_each(t) for role, t in single.items()}
    if exact:  # products with the mean of the safety rows that are there now
        sides = {role: with_reference(t, double["safety"]) for role, t in double.items() if role != "safety"}
        double = double | sides
    once, twice = (found_of(t, exact=exact).summary() for t in (single, double))
    same = [k for k in once if not k.startswith(("pairs/", "tokens/", "conflict/", "without_repeats/"))]
    same += ["conflict/paired_cosine", "conflict/low", "conflict/high", "conflict/mean_gradient_cosine_corrected"]
    # consistency is in units of pairs; signed ranks, d_z and stiffness (over i != j) take rows for independent
    known = [
        k
        for k in same
        if "consistency" not in k and not any(w in k for w in ("wilcoxon_p", "effect_size", "stiffness"))
    ]
    for key in known:
        expected = once[key]
        assert twice[key] == (None if expected is None else pytest.approx(expected, rel=1e-9)), key
    assert {"alignment/safety_split_half/low", "alignment/control:benign/low", "loss_gap/p"} <= set(known)
    assert twice["pairs/clusters"] == once["pairs/clusters"]
    assert twice["pairs/repeated_answers"] == 2 * once["pairs/n"] > 0


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_without_the_repeats_stands_what_the_first_pairs_alone_would_give(exact: bool, center: bool) -> None:
    tables = repeating()
    got = found_of(tables, exact=exact, center=center)
    first = found_of(
        tables | {side: taken(tables[side], KEPT) for side in ("left", "right")}, exact=exact, center=center
    )
    said = {k: v for k, v in got.summary().items() if k.startswith("without_repeats/")}
    assert len(said) > 15
    for key, value in said.items():
        assert value == first.summary()[key.removeprefix("without_repeats/")], key
        assert got.kinds()[key] == first.kinds()[key.removeprefix("without_repeats/")]
    assert said["without_repeats/loss_gap/mean"] != got.summary()["loss_gap/mean"]
    assert got.summary()["pairs/repeated_answers"] == 5
    assert (got.repeats.n_answers, got.repeats.stands_beside) == (2, True)


def test_where_no_answer_is_repeated_the_result_without_repeats_is_the_result() -> None:
    found = found_of(four_tables())
    summary = found.summary()
    assert summary["pairs/repeated_answers"] == 0
    assert not found.repeats.stands_beside
    for key, value in summary.items():
        if key.startswith("without_repeats/"):
            assert value == summary[key.removeprefix("without_repeats/")]
    assert not any("has too" in w for w in found.warnings)


def test_the_first_pair_stands_for_its_answer_before_rows_in_no_pair_and_rows_that_are_not_finite() -> None:
    tables = repeating([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    finite = np.arange(12) != 0
    left = changed(tables["left"], lambda s: replace(s, finite=finite))
    right = taken(tables["right"], [*range(2, 12)])
    rest = compared(left, right).without_repeats()
    assert rest.left.ids == tuple(f"row-{i}" for i in range(2, 12))
    assert rest.right.ids == tuple(f"row-{i}" for i in range(2, 12))
    assert rest.n_pairs == 10
    assert rest.without_repeats() is rest


def test_rows_in_no_pair_count_once_too() -> None:
    tables = repeating()
    left = changed(tables["left"], lambda s: replace(s, ids=tuple(f"other-{i}" for i in s.ids)))
    other = answering(tables["right"], [20 + i for i in range(12)])
    got = found_of(tables | {"left": left, "right": other}, exact=False)
    assert got.repeats.n_pairs == 0
    assert got.repeats.stands_beside
    assert len(got.comparison.without_repeats().left) == len(KEPT)
    assert got.summary()["without_repeats/loss_gap/mean"] is None
    assert any("left: 5 of 12 rows have an answer" in w for w in got.warnings)


def test_repeats_that_define_the_clusters_are_counted_and_nothing_stands_beside() -> None:
    tables = {role: unnamed(t) for role, t in repeating().items()}
    found = found_of(tables)
    assert found.summary()["pairs/clusters"] == len(KEPT)
    assert found.summary()["pairs/repeated_answers"] == 5
    assert not found.repeats.stands_beside
    assert any("an answer are one (9 clusters)" in w for w in found.warnings)


def test_every_number_without_the_repeats_stands_in_the_table_of_all_keys_with_its_interval_and_unit() -> None:
    found = found_of(repeating())
    summary = found.summary()
    table = summary_table(summary, found.kinds())
    of_key = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    for key, stem in (
        ("loss_gap/mean", "loss_gap"),
        ("conflict/paired_cosine", "conflict"),
        ("alignment/difference", "alignment/difference"),
    ):
        row = of_key[f"without_repeats/{key}"]
        for end in ("low", "high", "p"):
            assert row[end] == summary[f"without_repeats/{stem}/{end}"] is not None
        assert row["unit"] == of_key[key]["unit"]
    assert of_key["without_repeats/pairs/n"]["unit"] == "count"
    shown = {cell for row in table.rows for cell in row if isinstance(cell, float)}
    assert {v for v in summary.values() if isinstance(v, float)} <= shown


def test_a_report_says_how_many_repeat_and_shows_both_results(tmp_path: Path) -> None:
    found = found_of(repeating())
    report = write_report(found, tmp_path)
    summary = found.summary()
    assert any("5 of 12 pairs have an answer that another pair has too (2 such answers)" in w for w in report.warnings)
    at = next(k for k, line in enumerate(report.verdict) if "without repeated answers (9 of 12 pairs)" in line)
    beside = report.verdict[at + 1 :]
    for key, subject in (
        ("loss_gap/mean", "Loss of left"),
        ("conflict/paired_cosine", "Cosine of a pair"),
        ("framing/safety_cosine_corrected", "Framing gradient"),
        ("alignment/difference", "Left minus right"),
    ):
        line = next(text for text in beside if text.startswith(subject))
        given, other = line.split(" as given; ")
        assert f"{summary[key]:+.3f}" in given
        assert f"{summary[f'without_repeats/{key}']:+.3f}" in other
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "As given and without repeated answers" in html
    assert "without_repeats/loss_gap/mean" in json.loads((tmp_path / "report.json").read_text())["summary"]
    table = (tmp_path / "tables" / "without_repeats.csv").read_text(encoding="utf-8")
    assert repr(summary["without_repeats/alignment/difference"]) in table
    assert (tmp_path / "figures" / "without_repeats.svg").is_file()
    write_report(found_of(four_tables()), tmp_path)
    assert not (tmp_path / "figures" / "without_repeats.svg").exists(), "of an earlier report"
    assert not (tmp_path / "tables" / "without_repeats.csv").exists()
