"""What the numbers do not show is said, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted import SETTING, planted, the_line

from graddiag.caveats import LIMITS
from graddiag.rules import Setting
from graddiag.verdict import verdict


def test_why_nothing_is_measurable_along_safety_is_said_with_what_to_do() -> None:
    made = {"alignment/safety_clusters": 13, "alignment/safety_largest_cluster": 82 / 98}
    unknown = planted() | made | {"alignment/safety_split_half/low": -0.459}
    line = the_line(verdict(unknown, SETTING), "The safety direction is not known")
    assert "13 clusters" in line
    assert "84% of its rows in one" in line
    assert "`cluster` column" in line
    lines = verdict(unknown, replace(SETTING, safety=None, controls=()))
    assert not any("safety direction" in line for line in lines)


@pytest.mark.parametrize(("clusters", "largest", "few"), [(9, 0.2, True), (13, 0.84, True), (10, 0.5, False)])
def test_few_safety_clusters_are_said_as_few_clusters_of_pairs_are(clusters: int, largest: float, few: bool) -> None:
    made = {"alignment/safety_clusters": clusters, "alignment/safety_largest_cluster": largest}
    lines = verdict(planted() | made | {"alignment/safety_split_half/low": 0.5}, SETTING)
    said = [
        line for line in lines if line.startswith(f"Few safety clusters ({clusters}, the largest has {largest:.0%}")
    ]
    assert bool(said) == few


@pytest.mark.parametrize(
    ("changes", "setting", "said"),
    [
        ({"pairs/clusters": 4}, SETTING, "Few clusters (4): sign flips give no p below 0.125"),
        ({"pairs/clusters": 8}, SETTING, "Few clusters (8): intervals and p are rough."),
        ({"projection/error": 0.03}, SETTING, "Single projected cosines are off by about 0.030"),
        ({"projection/error": None}, SETTING, "The error of the projected cosines is unknown"),
        ({}, replace(SETTING, controls=()), "No control: "),
        ({}, replace(SETTING, safety=None), "No safety set: "),
    ],
)
def test_what_the_numbers_do_not_show_is_said(changes: dict[str, float | None], setting: Setting, said: str) -> None:
    assert the_line(verdict(planted() | changes, setting), said)
    assert not any(line.startswith(said) for line in verdict(planted(), SETTING))


def test_without_a_safety_set_nothing_is_said_about_safety() -> None:
    lines = verdict(planted(), replace(SETTING, safety=None, controls=()))
    assert [line for line in lines if "safety" in line.lower()] == ["No safety set: nothing is said about safety."]


def test_every_limit_says_when() -> None:
    assert all(x.when and x.says for x in LIMITS)
