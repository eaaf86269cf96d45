"""What does a direction in the hidden states look like, layer by layer, under three models and under two?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import Direction, DirectionScope, RefusalDirection
from graddiag.canvas import CONTROL, FAINT, INK, LEFT, RIGHT, WIDTH, empty_figure, label, say, zero_line
from graddiag.statistics import COSINE, NORMAL, Estimate
from graddiag.text import interval

_SIDE = 0.12  # layers by which the dots of a set are moved, so that none hides another


def draw_direction(result: Direction) -> Figure:
    """Retention by layer, what tuning does along the direction and along random ones, and what it does beside it."""
    trend = result.depth_trend
    models = " to ".join(label(n) for n in (result.base_name, result.aligned_name))
    title = f"What {label(result.tuned_name)} keeps of the way from {models}"
    against = "no control" if result.control is None else f"control {label(result.control.name)}"
    slope = interval(trend.value, trend.low, trend.high)
    note = (
        f"{result.position}; {against}; slope over layers against the control: {slope} per layer; bars: 95 %, pointwise"
    )
    figure = empty_figure(WIDTH, 3.0, title, note)
    retained, along, beside = figure.subplots(1, 3)
    sets = [(result.whole, LEFT, -_SIDE)] + ([(result.control, CONTROL, _SIDE)] if result.control else [])
    for scope, colour, side in sets:
        _dots(
            retained, _layers(scope), [at.retention for at in scope.layers], colour, side=side, name=label(scope.name)
        )
        _dots(beside, _layers(scope), [at.remainder for at in scope.layers], colour, side=side)
    own = result.whole.layers
    noisy = [at.in_sample for at in own]
    retained.plot(
        _layers(result.whole), noisy, color=FAINT, linewidth=0.8, linestyle=":", label="fitted on the same rows"
    )
    retained.axhline(1, color=INK, linewidth=0.8)
    zero_line(retained.axhline)
    retained.set(title="1: as aligned, 0: as base", ylabel="retention")
    retained.legend(frameon=False, fontsize=6, loc="lower left")
    spread = NORMAL * np.array([at.random_sd for at in own])
    along.fill_between(_layers(result.whole), -spread, spread, color=FAINT, alpha=0.3, linewidth=0)
    _dots(along, _layers(result.whole), [Estimate(at.along) for at in own], LEFT)
    zero_line(along.axhline)
    along.set(title="shift along it (grey: random)", ylabel="share of the alignment shift")
    beside.set(title="shift orthogonal to it", ylabel="share of the alignment shift")
    return figure


def draw_refusal_direction(result: RefusalDirection) -> Figure:
    """The cosine of the two models' directions by layer, and how much of the gap between the prompts is left."""
    title = f"Refusal direction of {label(result.tuned_name)} and {label(result.aligned_name)}"
    sets = (
        f"{result.n_harmful} prompts of {label(result.harmful_name)}, {result.n_harmless} of "
        f"{label(result.harmless_name)}"
    )
    figure = empty_figure(
        WIDTH, 3.0, title, f"{result.position}; {sets}; bars: 95 %, pointwise; grey: random directions"
    )
    turned, moved = figure.subplots(1, 2)
    layers = [at.layer for at in result.layers]
    spread = NORMAL * np.array([at.random_sd for at in result.layers])
    turned.fill_between(layers, -spread, spread, color=FAINT, alpha=0.3, linewidth=0)
    _dots(turned, layers, [at.cosine for at in result.layers], LEFT)
    turned.set(title="cosine of the two directions", ylabel="cosine", ylim=COSINE)
    drifts = [
        ("gap", INK, 0.0),
        (label(result.harmful_name), LEFT, -_SIDE),
        (label(result.harmless_name), RIGHT, _SIDE),
    ]
    for name, colour, side in drifts:
        what = "drift" if name == "gap" else "harmful" if side < 0 else "harmless"
        _dots(moved, layers, [getattr(at, what) for at in result.layers], colour, side=side, name=name)
    moved.set(title="drift along the aligned model's", ylabel="share of the gap")
    moved.legend(frameon=False, fontsize=6.5, loc="lower left")
    for axes in (turned, moved):
        zero_line(axes.axhline)
    return figure


def _layers(scope: DirectionScope) -> list[int]:
    return [at.layer for at in scope.layers]


def _dots(
    axes: Axes,
    layers: Sequence[int],
    estimates: Sequence[Estimate],
    colour: str,
    *,
    side: float = 0.0,
    name: str | None = None,
) -> None:
    x = np.array(layers) + side
    axes.vlines(x, [e.low for e in estimates], [e.high for e in estimates], color=colour, linewidth=1.1)
    axes.plot(x, [e.value for e in estimates], color=colour, marker="o", markersize=3, linestyle="none", label=name)
    if not any(math.isfinite(e.value) for e in estimates):
        say(axes, "undefined at every layer")
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
