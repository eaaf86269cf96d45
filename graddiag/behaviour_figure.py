"""What do the numbers of two models look like on the same answers: log-probabilities, and how likely a refusal is?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import Behaviour, RefusalScore
from graddiag.bands import Band
from graddiag.canvas import CONTROL, INK, LEFT, RIGHT, WIDTH, empty_figure, label, say, zero_line
from graddiag.statistics import Estimate
from graddiag.text import interval

_DIGITS = 2  # of a p


def draw_behaviour(result: Behaviour) -> Figure:
    """The change on both sets and the interaction, and the change of the first tokens with simultaneous bands."""
    e = result.interaction
    title = f"Log-probability of given answers: {label(result.tuned_name)} minus {label(result.aligned_name)}"
    read = "all answer tokens" if result.first is None else f"the first {result.first} answer tokens"
    note = f"interaction, harmful minus benign: {interval(e.value, e.low, e.high)}, {_p(e)}; {read}; bars: 95 %"
    figure = empty_figure(WIDTH, 3.2, title, note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    sets = ((result.harmful, LEFT), (result.benign, CONTROL))
    names = [f"{label(s.name)}\n{len(s.ids)} rows" for s, _ in sets]
    _lines(left, [*((s.change, c) for s, c in sets), (e, INK)], [*names, "interaction"])
    left.set(xlabel="change, nats/token", title="mean over rows")
    for s, colour in sets:
        _curve(right, s.cumulative, colour, label(s.name))
    zero_line(right.axhline)
    right.set(title="first tokens together (simultaneous 95 %)", xlabel="answer tokens read", ylabel="change, nats")
    right.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(right.lines) > 1:
        right.legend(frameon=False, fontsize=6.5, loc="upper left")
    else:
        say(right, "no position reached by enough rows")
    return figure


def draw_refusal_score(result: RefusalScore) -> Figure:
    """The log-odds of refusing of each prompt under both models, with means, and the change."""
    e = result.change
    title = f"Log-odds of a refusing against a complying opening: {label(result.name)}"
    note = f"tuned minus aligned: {interval(e.value, e.low, e.high)}, {_p(e)}; {len(result.ids)} prompts; bars: 95 %"
    figure = empty_figure(WIDTH, 2.8, title, note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    models = ((result.aligned, RIGHT, result.aligned_name), (result.tuned, LEFT, result.tuned_name))
    _lines(left, [(m, c) for m, c, _ in models], [label(n) for _, _, n in models])
    left.set(xlabel="log-odds, nats", title="mean over prompts")
    right.scatter(result.aligned_rows, result.tuned_rows, s=9, color=LEFT, alpha=0.6, linewidth=0)
    ends = np.concatenate([result.aligned_rows, result.tuned_rows])
    around = [float(ends.min()), float(ends.max())]
    right.plot(around, around, color=INK, linewidth=0.8)
    right.set(
        title="each prompt; on the line: unchanged", xlabel="under the aligned model", ylabel="under the tuned one"
    )
    return figure


def _lines(axes: Axes, estimates: list[tuple[Estimate, str]], names: list[str]) -> None:
    zero_line(axes.axvline)
    for y, (e, colour) in enumerate(estimates):
        axes.hlines(y, e.low, e.high, color=colour, linewidth=1.6)
        axes.plot(e.value, y, marker="o", color=colour, markersize=4)
    if not any(math.isfinite(e.value) for e, _ in estimates):
        say(axes, "undefined")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _curve(axes: Axes, band: Band, colour: str, name: str) -> None:
    if not len(band.mean):
        return
    position = np.arange(1, len(band.mean) + 1)
    axes.fill_between(position, band.low, band.high, color=colour, alpha=0.22, linewidth=0)
    dot = "o" if len(position) == 1 else None  # a line needs two points
    axes.plot(position, band.mean, color=colour, linewidth=1.1, marker=dot, label=name)


def _p(e: Estimate) -> str:
    return "p undefined" if math.isnan(e.p) else f"p = {e.p:.{_DIGITS}g}"
