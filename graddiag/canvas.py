"""What all figures share: colours, letters, an empty figure with its title and note, names from data made safe."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graddiag.text import visible

_COLOURS = [str(c) for c in sns.color_palette("colorblind").as_hex()]
LEFT, RIGHT, CONTROL = _COLOURS[3], _COLOURS[0], _COLOURS[7]
INK, GREY, FAINT = "#222222", "#5a5a5a", "#8a8a8a"
HALVES = (-1, -0.5, 0, 0.5, 1)  # ticks of a cosine
NAME_LENGTH = 26  # characters of a name on an axis
TITLE_DENSITY, NOTE_DENSITY = 12, 17  # characters per inch at the sizes of a title and of a note
WIDTH = 7.2  # inches: the text width of a page


def label(text: str, limit: int = NAME_LENGTH) -> str:
    """A name for a figure: control characters visible, cut to `limit` characters, a dollar sign never mathematics."""
    return visible(text, limit=limit).replace("$", r"\$")


def look() -> AbstractContextManager[None]:
    """The settings under which a figure is drawn and written."""
    return mpl.rc_context(
        {
            **sns.axes_style("ticks"),
            **sns.plotting_context("paper", font_scale=0.85),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: every machine draws the same figure
            "svg.fonttype": "path",  # and every reader sees it, without that font
            "svg.hashsalt": "graddiag",  # equal numbers give equal files
        }
    )


def empty_figure(width: float, height: float, title: str, note: str) -> Figure:
    """An empty figure (sizes in inches) with a title above and a note below."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, int(width * TITLE_DENSITY)), x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel(textwrap.fill(note, int(width * NOTE_DENSITY)), x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def zero_line(line: Callable[..., object]) -> None:
    """The line of 0, along the axis of `line`."""
    line(0, color=INK, linewidth=0.8)


def say(axes: Axes, text: str) -> None:
    """A text in the place of a drawing that there is nothing for."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.set(xticks=(), yticks=())
