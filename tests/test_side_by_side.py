"""The figure of two comparisons beside each other: it draws the numbers it is given, and all of them."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from graddiag.plotting import plot
from graddiag.side_by_side import Headline, SideBySide
from graddiag.statistics import Estimate

NOTHING = Estimate(math.nan)
HEADLINES = (
    Headline("Loss", "nats/token", False, Estimate(-0.3, -0.5, -0.1), Estimate(0.1, -0.2, 0.4)),
    Headline("Pair", "cosine", False, Estimate(0.8, 0.7, 0.9), Estimate(0.6, 0.5, 0.65)),
    Headline("Safety", "cosine", True, Estimate(0.03, 0.01, 0.05), Estimate(0.02, 0.0, 0.04)),
)


def side_by_side(*headlines: Headline) -> SideBySide:
    return SideBySide("left $x$\x1b[31m", "right", "with the edit", "with the edit (right without 'x')", headlines)


def axes_of(result: SideBySide) -> list[Axes]:
    return list(plot(result).axes)


def drawn(axes: Axes) -> list[tuple[float, float, float]]:
    """Low, value and high of every number in a panel, from above to below."""
    dots = {float(y): float(x) for line in axes.lines if line.get_marker() in {"o", "D"}
            for x, y in [(np.atleast_1d(line.get_xdata())[0], np.atleast_1d(line.get_ydata())[0])]}  # fmt: skip
    bars = {float(p[0][1]): (float(p[0][0]), float(p[1][0])) for c in axes.collections for p in c.get_segments()}
    return [(bars[y][0], x, bars[y][1]) for y, x in sorted(dots.items())]


def numbers(*headlines: Headline) -> list[tuple[float, float, float]]:
    return [(e.low, e.value, e.high) for h in headlines for e in (h.given, h.other)]


def test_every_number_stands_with_its_interval_as_given_above_the_other() -> None:
    above, whole, enlarged = axes_of(side_by_side(*HEADLINES))
    assert drawn(above) == numbers(HEADLINES[0])
    assert drawn(whole) == numbers(*HEADLINES[1:])
    assert drawn(enlarged) == numbers(HEADLINES[2])
    assert [t.get_text() for t in whole.get_yticklabels()] == ["Pair", "Safety"]
    assert [t.get_text() for t in above.get_legend().get_texts()] == ["as given", "with the edit"]


def test_cosines_are_drawn_on_their_whole_range_and_further_where_a_difference_needs_it() -> None:
    assert axes_of(side_by_side(*HEADLINES))[1].get_xlim() == (-1, 1)
    wide = Headline("Difference", "cosine", True, Estimate(-1.4, -1.6, -1.2), NOTHING)
    assert axes_of(side_by_side(HEADLINES[0], wide))[1].get_xlim() == (-1.6, 1)


def test_what_is_undefined_or_not_there_is_said() -> None:
    undefined = Headline("Safety", "cosine", True, NOTHING, NOTHING)
    panels = axes_of(side_by_side(HEADLINES[0], undefined))
    assert [t.get_text() for t in panels[2].texts] == ["undefined in both"]
    without_safety = axes_of(side_by_side(*HEADLINES[:2]))
    assert [t.get_text() for t in without_safety[2].texts] == ["no such number"]


def test_names_from_data_command_nothing() -> None:
    title = plot(side_by_side(*HEADLINES)).get_suptitle()
    assert "\x1b" not in title
    assert r"\$x\$" in title
