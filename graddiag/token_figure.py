"""What does the token view look like: the gap along the answer, the telling tokens, alignment by position."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import Telling, Through, TokenView
from graddiag.bands import MIN_ROWS, Band
from graddiag.canvas import FAINT, INK, LEFT, RIGHT, WIDTH, empty_figure, label, say, zero_line

_TOKEN_LENGTH = 14  # characters of a token beside its bar
_LOG_FROM = 30  # positions from which the first tokens need a logarithmic axis to be seen


def draw_tokens(result: TokenView) -> Figure:
    """The position curve with its band, the 20 most telling tokens, and, where measured, alignment by position."""
    rows = 2 if result.through is None else 3
    share = result.summary()["tokens/first_share"]
    first = "" if share is None else f"; the first token carries {share:.0%} of the mean gap"
    title = f"Loss of {label(result.left_name)} minus {label(result.right_name)} by answer token"
    note = f"{result.n_pairs} pairs with the same target tokens, {result.n_tokens:,} tokens{first}"
    figure = empty_figure(WIDTH, 4.2 if rows == 2 else 5.8, title, note)
    grid = figure.add_gridspec(rows, 2, width_ratios=(1.35, 1), height_ratios=(3, 1) if rows == 2 else (3, 1, 3))
    above = figure.add_subplot(grid[0, 0])
    _curve(above, result.gap, LEFT, "gap")
    above.set(title="mean gap (simultaneous 95 % band)", ylabel="gap, nats")
    above.tick_params(labelbottom=False)
    below = figure.add_subplot(grid[1, 0], sharex=above)
    _counts(below, result.gap)
    _tokens(figure.add_subplot(grid[:, 1]), result)
    if result.through is not None:
        _through(figure.add_subplot(grid[2, 0], sharex=above), result, result.through)
    return figure


def _curve(axes: Axes, band: Band, colour: str, name: str) -> None:
    shown = np.flatnonzero(band.n >= MIN_ROWS)
    if not len(shown):
        say(axes, "no position reached by enough pairs")
        return
    zero_line(axes.axhline)
    position = shown + 1
    axes.fill_between(position, band.low[shown], band.high[shown], color=colour, alpha=0.22, linewidth=0)
    dot = "o" if len(position) == 1 else None  # a line needs two points
    axes.plot(position, band.mean[shown], color=colour, linewidth=1.1, marker=dot, label=name)
    if len(position) >= _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _counts(axes: Axes, band: Band) -> None:
    shown = np.flatnonzero(band.n >= MIN_ROWS)
    axes.fill_between(shown + 1, 0, band.n[shown], step="mid", color=FAINT, alpha=0.45, linewidth=0)
    axes.set(ylabel="pairs", xlabel="position in the answer, tokens")
    axes.set_ylim(0, 1.1 * max(band.n.max(initial=1), 1))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _tokens(axes: Axes, result: TokenView) -> None:
    axes.set_title(f"the {len(result.top)} most telling tokens")
    if not result.top:
        say(axes, "no pair with the same target tokens")
        return
    parts = [t.contribution for t in result.top]
    y = np.arange(len(parts))
    axes.barh(y, parts, color=[LEFT if p > 0 else RIGHT for p in parts], alpha=0.75, height=0.7)
    axes.set_yticks(y, [f"{label(token_name(t), _TOKEN_LENGTH)}  x{t.count}" for t in result.top], fontsize=6.5)
    axes.set(ylim=(len(parts) - 0.4, -0.6), xlabel="part of the mean gap, nats/token")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    zero_line(axes.axvline)


def token_name(token: Telling) -> str:
    """The token's text in quotes, white space as escapes; its number where nobody kept the text."""
    return f"#{token.token}" if token.text is None else repr(token.text)


def _through(axes: Axes, result: TokenView, through: Through) -> None:
    _curve(axes, through.left, LEFT, label(result.left_name))
    _curve(axes, through.right, RIGHT, label(result.right_name))
    prompts = (through.prompt_left, through.prompt_right)
    said = ", ".join("undefined" if math.isnan(p) else f"{p:+.3f}" for p in prompts)
    axes.set(title="cosine with safety, through this position", ylabel="part of the cosine")
    axes.set_xlabel(f"answer token that the position predicts\n(through earlier positions: {said})", color=INK)
    if axes.lines:
        axes.legend(frameon=False, fontsize=6.5)
