"""Along how many directions do the states of each set change, beside what random signs would give?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import Shift
from graddiag.canvas import FAINT, INK, LEFT, WIDTH, empty_figure, label
from graddiag.erosion_shifts import Shifts

IN_A_ROW = 3
MOST_COMPONENTS = 20  # of a panel: more dots than this run together


def draw_shifts(result: Shifts) -> Figure:
    """The components of every set at the deepest layer, a panel each, on one pair of axes."""
    layer = result.deepest
    sets = [by_layer[layer] for by_layer in result.of.values() if layer in by_layer]
    note = (
        f"{sets[0].site}; centred changes, tuned minus aligned; bars: the largest component of the same "
        "changes, those before it taken away, with random signs (of 19 draws the largest); k: components above their "
        "bars; mean: share of the mean shift in all squares, in brackets under random signs of clusters"
    )
    lines = math.ceil(len(sets) / IN_A_ROW)
    figure = empty_figure(WIDTH, 1.0 + 1.7 * lines, f"Components of the changes of states, layer {layer}", note)
    grid = figure.subplots(lines, IN_A_ROW, sharex=True, sharey=True, squeeze=False).ravel()
    highest = max((float(one.shares[0]) for one in sets if len(one.shares)), default=1.0)
    for k, (axes, one) in enumerate(zip(grid, sets, strict=False)):
        _panel(axes, one, below=k + IN_A_ROW >= len(sets), first=k % IN_A_ROW == 0)
    grid[0].set_ylim(0, 1.1 * highest)
    for axes in grid[len(sets) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, one: Shift, *, below: bool, first: bool) -> None:
    """One set; axes are labelled where no panel is below it, and where it is the first of its row."""
    axes.set_title(label(one.name), fontsize=8)
    if not len(one.shares):
        axes.text(0.5, 0.5, "nothing changed", transform=axes.transAxes, ha="center", va="center", color=FAINT)
        return
    shown = one.shares[:MOST_COMPONENTS]
    at = np.arange(1, len(shown) + 1)
    axes.plot(at, shown, marker="o", markersize=2.5, linewidth=0.8, color=LEFT)
    edges = one.edges[:MOST_COMPONENTS]
    axes.plot(at[: len(edges)], edges, linestyle="none", marker="_", markersize=6, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    said = f"k = {one.k}\nmean {one.mean_share:.0%} ({one.mean_share_null:.0%})"
    axes.text(0.97, 0.93, said, transform=axes.transAxes, ha="right", va="top", fontsize=7)
    axes.tick_params(labelbottom=below, labelleft=first)
    axes.set(xlabel="component" if below else "", ylabel="share of squares" if first else "")
