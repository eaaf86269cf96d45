"""What do the headline numbers of two comparisons look like beside each other?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from graddiag.canvas import CONTROL, INK, WIDTH, empty_figure, label, say, zero_line
from graddiag.statistics import COSINE, Estimate

_APART = 0.16  # of a line's height: how far the two numbers of a question stand from its middle
_NOTE_LENGTH = 200  # characters of what was done otherwise
_SUBJECT_LENGTH = 34  # characters of a question beside its line


@dataclass(frozen=True)
class Headline:
    """One number as given, and in the other comparison, with 95 % intervals; NaN where undefined."""

    subject: str
    unit: str
    toward_safety: bool
    given: Estimate
    other: Estimate


@dataclass(frozen=True)
class SideBySide:
    """The headline numbers of two comparisons of the same sides.

    `other` is what the second one is called, such as "with the edit", and `what` says what was done otherwise in it.
    """

    left_name: str
    right_name: str
    other: str
    what: str
    headlines: tuple[Headline, ...]


def draw_side_by_side(result: SideBySide) -> Figure:
    """Losses above, in nats/token; cosines below, on [-1, 1] and, those with safety, enlarged: they are small."""
    losses = [h for h in result.headlines if h.unit != "cosine"]
    cosines = [h for h in result.headlines if h.unit == "cosine"]
    heights = [0.6 + 0.45 * len(losses), 0.6 + 0.45 * len(cosines)]
    title = f"{label(result.left_name)} and {label(result.right_name)}: as given, and {label(result.other)}"
    note = f"left minus right; second comparison {label(result.what, _NOTE_LENGTH)}; bars: 95 % intervals"
    figure = empty_figure(WIDTH, 1.0 + sum(heights), title, note)
    grid = figure.add_gridspec(2, 2, height_ratios=heights)
    above = figure.add_subplot(grid[0, :])
    whole = figure.add_subplot(grid[1, 0])
    enlarged = figure.add_subplot(grid[1, 1], sharey=whole)
    _lines(above, losses, "nats/token")
    _lines(whole, cosines, "cosine")
    _lines(enlarged, cosines, "cosine with safety, enlarged", only_safety=True)
    enlarged.tick_params(labelleft=False)
    whole.set(xlim=_range(cosines), xticks=(-1, -0.5, 0, 0.5, 1))
    marks = [_mark(INK, "o", "as given"), _mark(CONTROL, "D", label(result.other))]
    above.legend(handles=marks, frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _range(headlines: Sequence[Headline]) -> tuple[float, float]:
    """That of a cosine; a difference of cosines can be beyond it."""
    ends = [v for h in headlines for e in (h.given, h.other) for v in (e.low, e.value, e.high) if math.isfinite(v)]
    return min([COSINE[0], *ends]), max([COSINE[1], *ends])


def _mark(colour: str, marker: str, name: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)


def _lines(axes: Axes, headlines: Sequence[Headline], unit: str, *, only_safety: bool = False) -> None:
    zero_line(axes.axvline)
    shown = [(y, h) for y, h in enumerate(headlines) if h.toward_safety or not only_safety]
    for y, h in shown:
        for e, at, colour, marker in ((h.given, y - _APART, INK, "o"), (h.other, y + _APART, CONTROL, "D")):
            axes.hlines(at, e.low, e.high, color=colour, linewidth=1.4)
            axes.plot(e.value, at, marker=marker, color=colour, markersize=4)
    if not any(math.isfinite(e.value) for _, h in shown for e in (h.given, h.other)):
        say(axes, "no such number" if not shown else "undefined in both")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_yticks(range(len(headlines)), [label(h.subject, _SUBJECT_LENGTH) for h in headlines])
    axes.set(ylim=(len(headlines) - 0.4, -0.6), xlabel=unit)
