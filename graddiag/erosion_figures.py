"""What do the change of states, the overlap of two sets' changes, and the update of the weights look like?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import Shift, SubspaceOverlap, SubspaceScope
from graddiag.canvas import CONTROL, FAINT, INK, LEFT, RIGHT, WIDTH, empty_figure, label, say, zero_line
from graddiag.layers import panels
from graddiag.sites import parse_site
from graddiag.statistics import Estimate
from graddiag.text import interval
from graddiag.weight_table import WeightChanges

MOST_COMPONENTS = 40  # more than this cannot be told apart on a line
MOST_KINDS = 7  # lines of different kinds of block that colours and dashes tell apart
_COSINES = {"alignment": "cosine with aligned - base", "safety": "cosine with - safety gradient"}
_DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def draw_shift(result: Shift) -> Figure:
    """The share of each component, and what it was measured against."""
    title = f"Change of states of {label(result.name)}: components of the centred changes"
    mean = f"mean shift: {result.mean_share:.0%} of the squares ({result.mean_share_null:.0%} by chance)"
    nothing = not len(result.shares)
    note = f"{result.site}, {result.n_rows} rows; {'no change' if nothing else mean}; k = {result.k}"
    figure = empty_figure(4.8, 3.2, title, note)
    axes = figure.subplots()
    if nothing:
        say(axes, "nothing changed")
        return figure
    shown = result.shares[:MOST_COMPONENTS]
    at = np.arange(1, len(shown) + 1)
    axes.plot(at, shown, marker="o", markersize=3, linewidth=0.8, color=LEFT, label="components")
    edges = result.edges[:MOST_COMPONENTS]
    axes.step(
        at[: len(edges)], edges, where="mid", color=INK, linewidth=0.9, marker="_", label="largest with random signs"
    )
    axes.set(yscale="log", xlabel="component", ylabel="share of squares")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.legend(frameon=False, fontsize=7)
    return figure


def draw_overlap(result: SubspaceOverlap) -> Figure:
    """Overlap with its nulls and controls, cosine of the means, and transfer, over layers."""
    a, b = (label(n) for n in result.names)
    value = result.overall.overlap
    note = (
        f"{label(result.position)}; {result.n_rows[0]} and {result.n_rows[1]} rows; bars: 95 % intervals; mean overlap "
        f"over layers {interval(value.value, value.low, value.high)}; only what exceeds the controls is of this data"
    )
    figure = empty_figure(WIDTH, 3.3, f"Shared directions of the changes of states: {a} and {b}", note)
    left, middle, right = figure.subplots(1, 3)
    layers = [parse_site(s).layer for s in result.sites]
    scopes = list(result.sites.values())
    _overlap_panel(left, result, layers, scopes)
    zero_line(middle.axhline)
    _points(middle, layers, [s.mean_cosine for s in scopes], LEFT, "")
    middle.set(ylim=(-1.05, 1.05), title="cosine of the mean shifts")
    own, across = (result.names[1], result.names[1]), (result.names[0], result.names[1])
    for at, colour, (x, y) in (((0, 1), LEFT, across), ((1, 1), RIGHT, own)):
        name = f"{label(x, 12)} on {label(y, 12)}"
        _points(right, layers, [s.transfer[at].share for s in scopes], colour, name)
    right.plot(layers, [s.transfer[(0, 1)].states for s in scopes], color=FAINT, linewidth=0.9, label="like states")
    right.set(ylim=(-0.03, 1.03), title="held-out share explained")
    right.legend(frameon=False, fontsize=6)
    for axes in (left, middle, right):
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _overlap_panel(axes: Axes, result: SubspaceOverlap, layers: Sequence[int], scopes: Sequence[SubspaceScope]) -> None:
    _points(axes, layers, [s.overlap for s in scopes], LEFT, "overlap")
    for name in result.controls:
        _points(axes, layers, [s.controls[name].overlap for s in scopes], CONTROL, f"control {label(name, 12)}")
    for style, name, means in (
        ("--", "matching permuted", [s.matching.mean for s in scopes]),
        ("-", "drawn like states", [s.states.mean for s in scopes]),
        (":", "random", [s.random.mean for s in scopes]),
    ):
        axes.plot(layers, means, color=FAINT, linestyle=style, linewidth=0.9, label=name)
    axes.set(ylim=(-0.03, 1.03), title="overlap")
    axes.legend(frameon=False, fontsize=6)


def _points(axes: Axes, layers: Sequence[int], estimates: Sequence[Estimate], colour: str, name: str) -> None:
    axes.vlines(layers, [e.low for e in estimates], [e.high for e in estimates], color=colour, linewidth=1.1)
    axes.plot(layers, [e.value for e in estimates], marker="o", markersize=3, linewidth=0, color=colour, label=name)


def draw_weights(result: WeightChanges) -> Figure:
    """Size and spectrum of the update, and its cosines with what was given to compare it with, by kind of block."""
    change = result.overall
    outside = f"; {len(result.left_out)} parameters outside these blocks changed too" if result.left_out else ""
    note = f"{len(result.blocks)} blocks; relative norm of all as one {change.relative:.3g}{outside}"
    given = [name for name in _COSINES if getattr(change, name) is not None]
    if given:
        note += "; grey: chance +- 2 sd, a band for each size of block, the smaller the wider"
    figure = empty_figure(WIDTH, 3.2, "Update of the weights, tuned minus aligned", note)
    titles = {"relative": "relative norm", "stable_rank": "stable rank", **{name: _COSINES[name] for name in given}}
    grid = figure.subplots(1, len(titles))
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        _weight_panel(axes, result, name)
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid[0].legend(frameon=False, fontsize=5.5)
    return figure


def _weight_panel(axes: Axes, result: WeightChanges, name: str) -> None:
    drawn = False
    axes.set_prop_cycle(color=sns.color_palette("colorblind"))
    for panel, dash in zip(panels(tuple(result.blocks)), _DASHES, strict=False):
        layers = panel.layers or tuple(range(len(panel.blocks)))
        changes = [result.blocks[b] for b in panel.blocks]
        if name not in _COSINES:
            values, chance = [getattr(c, name) for c in changes], []
        else:
            parts = [p for p in (getattr(c, name) for c in changes) if p is not None]
            values, chance = [p.cosine for p in parts], [2 * p.chance_sd for p in parts]
        if len(values) == len(layers) and any(math.isfinite(v) for v in values):
            drawn = True
            kind = label(panel.name, 18)
            axes.plot(layers, values, label=kind, linestyle=dash, marker="o", markersize=2, linewidth=0.9)
            if chance:
                axes.fill_between(layers, -np.array(chance), chance, color=FAINT, alpha=0.12, linewidth=0)
    if not drawn:
        say(axes, "undefined" if name in _COSINES else "no update")
    elif name in _COSINES:
        zero_line(axes.axhline)
