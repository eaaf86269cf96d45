"""What does a monitored run look like: alignment, safety loss, layers, and the examples that oppose most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.alarms import RULES, Alarm
from graddiag.canvas import CONTROL, FAINT, INK, LEFT, RIGHT, WIDTH, empty_figure, label, look, say, zero_line
from graddiag.training_view import Course, LayerCourse, Suspect

DIVERGING = "RdBu"  # as the matrix of rows: red is -1, blue +1
HALVES = (-1, -0.5, 0, 0.5, 1)  # ticks of a cosine
MOST_BARS = 20  # examples that can be labelled
MOST_LETTERS = 24  # of an example's id
DOTS = 12  # probes up to which each is marked
TICKS = 8  # steps that can be written below a heat map


@dataclass(frozen=True)
class Losses:
    """The course of a run, to be drawn as its losses."""

    course: Course


@dataclass(frozen=True)
class Worst:
    """The examples that oppose most, the worst first, of how many that opposed."""

    suspects: tuple[Suspect, ...]
    of: int


def worst(suspects: Sequence[Suspect]) -> Worst:
    """The examples that are drawn."""
    return Worst(tuple(suspects[:MOST_BARS]), len(suspects))


def plot_training(result: Course | Losses | LayerCourse | Worst) -> Figure:
    """The figure of a part of a run. Raises TypeError for any other result."""
    with look():
        return _draw(result)


@singledispatch
def _draw(result: object) -> Figure:
    raise TypeError(f"{type(result).__name__} is no part of a training run that has a figure.")


@_draw.register
def _alignment(result: Course) -> Figure:
    note = f"below 0: to first order, the step raises the loss on safe answers; {_said(result.alarms)}"
    figure = empty_figure(WIDTH, 5.4, "Alignment of training steps with the safety gradient", note)
    whole, enlarged, below = figure.subplots(3, 1, sharex=True, height_ratios=(1.4, 1.8, 1))
    for axes in (whole, enlarged):
        zero_line(axes.axhline)
        _line(axes, result, result.cosine, LEFT, "the batch's gradient")
        _line(axes, result, result.update_cosine, RIGHT, "the optimizer's step")
    whole.set(ylim=(-1, 1), yticks=HALVES, ylabel="cosine\nwith safety")
    enlarged.set(ylabel="the same,\nenlarged")
    _legend(enlarged)
    below.axhline(0.5, color=FAINT, linewidth=0.8)
    _line(below, result, result.opposed, CONTROL, "examples that oppose")
    below.set(ylim=(-0.05, 1.05), yticks=(0, 0.5, 1), ylabel="share that\nopposes", xlabel="training step")
    for axes in (whole, enlarged, below):
        _mark(axes, result.alarms)
    return figure


@_draw.register
def _losses(result: Losses) -> Figure:
    course = result.course
    note = f"bands: one standard error, for the change paired over examples; {_said(course.alarms)}"
    figure = empty_figure(WIDTH, 4.6, "Loss on safe answers", note)
    above, below = figure.subplots(2, 1, sharex=True)
    _band(above, course, course.loss, course.loss_error)
    _line(above, course, course.loss, LEFT, "measured")
    above.set(ylabel="loss, nats/token")
    zero_line(below.axhline)
    _band(below, course, course.change, course.change_error)
    _line(below, course, course.change, LEFT, "measured since the first probe")
    _line(below, course, course.predicted, RIGHT, "predicted, summed over steps")
    below.set(ylabel="change, nats/token", xlabel="training step")
    _legend(below)
    for axes in (above, below):
        _mark(axes, course.alarms)
    return figure


@_draw.register
def _layers(result: LayerCourse) -> Figure:
    rows = max(len(result.layers), 1)
    title = "Cosine of the batch's gradient with the safety gradient by layer"
    figure = empty_figure(WIDTH, 1.6 + min(0.16 * rows, 5.0), title, _said(result.alarms))
    axes = figure.subplots()
    if not result.cosine.size:
        say(axes, "no probes")
        return figure
    axes.set_facecolor("#bbbbbb")
    sns.heatmap(
        result.cosine[::-1], vmin=-1, vmax=1, cmap=DIVERGING, rasterized=True, ax=axes, xticklabels=False,
        yticklabels=[label(n, MOST_LETTERS) for n in result.layers[::-1]], cbar_kws={"label": "cosine"},
    )  # fmt: skip
    shown = np.unique(np.linspace(0, len(result.steps) - 1, TICKS).round().astype(int))
    axes.set_xticks(shown + 0.5, [str(s) for s in result.steps[shown]], rotation=0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="training step", ylabel="layer")
    at = [int(np.searchsorted(result.steps, a.step)) + 0.5 for a in result.alarms]
    axes.vlines(at, 0, rows, color=INK, linewidth=0.8, linestyle=":")
    return figure


@_draw.register
def _worst(result: Worst) -> Figure:
    shown = result.suspects
    note = f"the {len(shown)} lowest sums of {result.of} examples that opposed at a probe; black: named by an alarm"
    figure = empty_figure(WIDTH, 1.5 + 0.2 * max(len(shown), 3), "Examples that oppose safety most", note)
    axes = figure.subplots()
    if not shown:
        say(axes, "no example opposed safety at a probe")
        return figure
    zero_line(axes.axvline)
    colours = [INK if s.named else LEFT for s in shown]
    axes.barh(range(len(shown)), [s.total for s in shown], color=colours, height=0.7)
    axes.set_yticks(range(len(shown)), [f"{label(s.id, MOST_LETTERS)}  {s.opposed}/{s.seen}" for s in shown])
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="sum of its products with the safety gradient over probes")
    axes.set_ylabel("example, probes at which it opposed")
    return figure


def _line(axes: Axes, course: Course, values: np.ndarray, colour: str, name: str) -> None:
    if np.isfinite(values).any():
        mark = "o" if len(values) <= DOTS else None
        axes.plot(course.steps, values, color=colour, linewidth=1.2, marker=mark, markersize=3, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _band(axes: Axes, course: Course, middle: np.ndarray, error: np.ndarray) -> None:
    axes.fill_between(course.steps, middle - error, middle + error, color=LEFT, alpha=0.22, linewidth=0)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False, fontsize=7.5)


def _mark(axes: Axes, alarms: Sequence[Alarm]) -> None:
    for step in sorted({a.step for a in alarms}):
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")


def _said(alarms: Sequence[Alarm]) -> str:
    """Where each rule gave its first alarm."""
    if not alarms:
        return "no alarm"
    first = {r.name: [a.step for a in alarms if a.rule == r.name] for r in RULES}
    return "dotted: alarms, first of " + ", ".join(f"{name} at {min(s)}" for name, s in first.items() if s)
