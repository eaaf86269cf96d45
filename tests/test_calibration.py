"""A short version of experiments/calibration.py: rates of claims where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from calibration import FIGURE, merged, read_cells, table
from calibration_arrays import STATISTICS, cells, planted_shift
from calibration_cells import Design, Where, tally

ROOT = Path(__file__).parents[1]
NULLS = 200  # a rate of 5 % is then known within 5 %, at 3.3 standard errors
SHORT = [s for s in STATISTICS if "blocks" not in s]


@pytest.mark.parametrize("statistic", SHORT)
@pytest.mark.parametrize("design", [Design(12, alike=False, heavy=True), Design(40, alike=True, heavy=False)])
def test_claims_are_false_no_more_often_than_they_say(statistic: str, design: Design) -> None:
    for cell in cells(statistic, design, NULLS, 0):
        assert cell.outcome != "bad", (cell, cell.rate)


@pytest.mark.parametrize("statistic", [s for s in STATISTICS if "blocks" in s])
def test_the_familywise_error_over_a_hundred_blocks_is_kept(statistic: str) -> None:
    for cell in cells(statistic, Design(40, alike=True, heavy=True), NULLS // 2, 1):
        assert cell.outcome != "bad", (cell, cell.rate)


def test_a_planted_shift_is_found_as_often_as_theory_says() -> None:
    assert planted_shift(400).holds


def test_a_rate_that_is_off_is_called_so_on_the_side_where_it_is() -> None:
    def outcome(hits: int, *, n: int = 40) -> tuple[str, bool]:
        where = Where("x", "drawn", Design(n, alike=False, heavy=False), n)
        cell = tally(where, "rejected", [True] * hits + [False] * (1_000 - hits))
        return cell.outcome, cell.holds

    assert outcome(50) == ("nominal", True)
    assert outcome(100) == ("bad", False)
    assert outcome(1) == ("safe", False)
    assert outcome(1, n=6) == ("safe", True)
    assert outcome(100, n=6) == ("bad", False)


def test_what_is_drawn_anew_takes_the_place_of_what_was_saved_and_nothing_else_moves() -> None:
    saved = read_cells(ROOT / FIGURE.with_suffix(".json"))
    assert merged(saved, []) == saved
    name = "framing"
    old = [c for c in saved if c.statistic == name and c.source == "drawn"]
    new = [replace(c, hits=c.hits + 1) for c in old]
    found = merged(saved, new)
    assert [c for c in found if c not in new] == [c for c in saved if c not in old]
    assert len(found) == len(saved)
    without = [c for c in saved if c not in old]
    assert merged(without, old) == saved, "a statistic that was not there yet is put where it belongs"


def test_the_readme_shows_the_rates_that_were_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = table(read_cells(ROOT / FIGURE.with_suffix(".json")))
    assert len(lines) > 10
    assert all(line in readme for line in lines)
