"""What does the removal of the shared space change, beside what the removal of random subspaces does?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.canvas import CONTROL, FAINT, INK, LEFT, RIGHT, WIDTH, empty_figure, label, say, zero_line
from graddiag.erosion_removal import Effect, Removal
from graddiag.text import interval

_NAME = 14  # characters of a set's name on the axis
_APART = 0.16  # lines between the dots of the two kinds of random subspaces and the number that they stand below
_LINE = 0.34  # inches a line


def draw_removal(result: Removal) -> Figure:
    """The change of every set, and of harmful beyond each harmless one, with its interval and every random draw."""
    first = next(iter(result.beyond.values()))
    e = first.change
    note = (
        f"harmful minus benign: {interval(e.value, e.low, e.high)}; {result.setting.n_random} random subspaces of "
        f"either kind allow no p below {result.least_p:.2g}; bars: 95 % intervals, the fit taken as given"
    )
    name = label(result.name, _NAME)
    changes = [(f"{name} (harmful)", result.harmful, LEFT)]
    changes += [(label(k, _NAME), x, CONTROL) for k, x in result.harmless.items()]
    beyond = [(f"{name} - {label(k, _NAME)}", x, INK) for k, x in result.beyond.items()]
    height = 1.5 + _LINE * len(changes) + _LINE
    figure = empty_figure(WIDTH, height, f"Without what the two shifts share, {result.setting.where}", note)
    left, right = figure.subplots(1, 2)
    _panel(left, changes, "change of the log-probability")
    _panel(right, beyond, "harmful beyond harmless")
    if left.collections and not right.texts:
        left.legend(frameon=False, fontsize=6, loc="best")
    return figure


def _panel(axes: Axes, effects: Sequence[tuple[str, Effect, str]], title: str) -> None:
    zero_line(axes.axvline)
    for y, (_, effect, colour) in enumerate(effects):
        e = effect.change
        for kind, side, tint, name in (
            ("random", 1, FAINT, "random subspaces"),
            ("states", 2, RIGHT, "drawn like the states"),
        ):
            drawn = getattr(effect, kind)
            axes.scatter(
                drawn, np.full(len(drawn), y + side * _APART), s=7, color=tint, alpha=0.6, linewidth=0,
                label=name if y == 0 else None,
            )  # fmt: skip
        axes.hlines(y, e.low, e.high, color=colour, linewidth=1.6)
        axes.plot(e.value, y, marker="o", color=colour, markersize=4)
    if not any(math.isfinite(x.change.value) for _, x, _ in effects):
        say(axes, "undefined")
    axes.set_yticks(range(len(effects)), [name for name, _, _ in effects])
    axes.set_ylim(len(effects) - 0.4, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set(title=title, xlabel="nats/token")
