"""What do the results look like? One figure per kind of result; everything drawn was computed before."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Literal

import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graddiag.analyzers import (
    Alignment,
    Behaviour,
    Conflict,
    CosineMatrix,
    Direction,
    Framing,
    LossGap,
    RefusalDirection,
    RefusalScore,
    Shift,
    SubspaceOverlap,
    TokenView,
)
from graddiag.behaviour_figure import draw_behaviour, draw_refusal_score
from graddiag.canvas import (
    CONTROL,
    FAINT,
    HALVES,
    INK,
    LEFT,
    RIGHT,
    WIDTH,
    empty_figure,
    label,
    look,
    say,
    zero_line,
)
from graddiag.direction_figure import draw_direction, draw_refusal_direction
from graddiag.erosion_figures import draw_overlap, draw_shift, draw_weights
from graddiag.erosion_removal import Removal
from graddiag.erosion_shifts import Shifts
from graddiag.layers import Panel, panels
from graddiag.matrix_figure import draw_matrix
from graddiag.removal_figure import draw_removal
from graddiag.shift_figure import draw_shifts
from graddiag.side_by_side import SideBySide, draw_side_by_side
from graddiag.statistics import Estimate
from graddiag.text import interval
from graddiag.token_figure import draw_tokens
from graddiag.weight_table import WeightChanges

MOST_STRIPS = 30  # more clusters than this cannot be labelled; pairs are then drawn in the order of their gaps
MOST_PANELS = 16  # more kinds of block than this make panels too small to read; the table has them all
PANELS_IN_A_ROW = 4
ROWS_FOR_A_SHAPE = 5  # fewer different values than this have no shape to draw, only dots
DPI = 200  # pixels per inch of a PNG, and of the matrix inside an SVG


@singledispatch
def _draw(result: object) -> Figure:
    raise TypeError(
        f"{type(result).__name__} has no figure; CosineMatrix, Conflict, Framing, LossGap, Alignment, TokenView, "
        "SideBySide, Behaviour, RefusalScore, Direction, RefusalDirection, Removal, Shift, Shifts, SubspaceOverlap and "
        "WeightChanges have."
    )


Drawn = CosineMatrix | Conflict | Framing | LossGap | Alignment | TokenView | SideBySide  # in a report of two sets
OfModels = (  # in a report of two or three models
    Behaviour | RefusalScore | Direction | RefusalDirection | Removal | Shift | Shifts | SubspaceOverlap | WeightChanges
)


def plot(result: Drawn | OfModels) -> Figure:
    """The figure of a result: the matrix, cosines by layer, the loss gap, its tokens, alignment with safety, or two
    comparisons beside each other; of several models, the change of behaviour, the refusal score, a direction, or what
    changed between two of them (states, their shared directions, weights).

    Cosines are drawn on [-1, 1]; bars and bands are 95 % intervals. Raises TypeError for any other result.
    """
    with look():
        return _draw(result)


def render(figure: Figure, form: Literal["svg", "png"]) -> bytes:
    """The figure as a file, without dates or random names: equal figures give equal bytes."""
    stream = io.BytesIO()
    with look():
        figure.savefig(stream, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else {"Software": None})
    return stream.getvalue()


@_draw.register
def _conflict(result: Conflict) -> Figure:
    by_block = {block: scope.paired for block, scope in result.blocks.items()}
    title = f"Cosine of the two gradients of a pair: {label(result.left_name)} and {label(result.right_name)}"
    note = f"{len(result.ids)} pairs, {'exact' if result.exact_pairs else 'projected'}"
    if result.centered:
        note += f"; grand mean subtracted, which forces a mean cross inner product of {result.forced:.3g}"
    return _by_layer(by_block, result.overall.paired, title, note)


@_draw.register
def _framing(result: Framing) -> Figure:
    by_block = {block: scope.safety_cosine for block, scope in result.blocks.items()}
    title = (
        f"Cosine of the mean framing gradient with safety: {label(result.left_name)} minus {label(result.right_name)}"
    )
    kind = "exact" if result.projection == "exact" else "projected"
    given = "no safety set" if result.safety_name is None else f"given the safety set {label(result.safety_name)}"
    return _by_layer(by_block, result.overall.safety_cosine, title, f"{kind}, {given}")


def _by_layer(by_block: Mapping[str, Estimate], overall: Estimate, title: str, note: str) -> Figure:
    """Small multiples, one per kind of block, over layers; the whole vector as a line with its interval in each."""
    found = panels(tuple(by_block))
    shown = found[:MOST_PANELS]
    columns = min(PANELS_IN_A_ROW, max(len(shown), 1))
    rows = math.ceil(len(shown) / columns) or 1
    left_out = f"; {len(found) - len(shown)} kinds more in the table" if len(found) > len(shown) else ""
    note += f"{left_out}; bars: 95 % intervals; grey: all blocks as one vector, {_interval(overall)}"
    figure = empty_figure(max(0.6 + 1.65 * columns, 4.4), 1.0 + 1.55 * rows, title, note)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, panel in zip(grid.flat, shown, strict=False):
        _panel(axes, panel, by_block, overall)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("cosine")
    return figure


def _panel(axes: Axes, panel: Panel, by_block: Mapping[str, Estimate], overall: Estimate) -> None:
    estimates = [by_block[b] for b in panel.blocks]
    zero_line(axes.axhline)
    if math.isfinite(overall.value):
        axes.axhspan(overall.low, overall.high, color=FAINT, alpha=0.25, linewidth=0)
        axes.axhline(overall.value, color=FAINT, linewidth=1)
    x = np.array(panel.layers if panel.layers is not None else range(len(estimates)), dtype=np.float64)
    values, low, high = (np.array([getattr(e, k) for e in estimates]) for k in ("value", "low", "high"))
    axes.vlines(x, low, high, color=LEFT, linewidth=1.1)
    sns.scatterplot(x=x, y=values, color=LEFT, s=10, linewidth=0, ax=axes)
    axes.set(ylim=(-1, 1), yticks=HALVES, title=label(panel.name, 20))
    axes.set_xlim(x.min() - 0.7, x.max() + 0.7)
    if panel.layers is None:
        axes.set_xticks(x, [label(b.removesuffix(".weight").rpartition(".")[2], 14) for b in panel.blocks], rotation=90)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("layer")


@_draw.register
def _loss_gap(result: LossGap) -> Figure:
    height = max(3.2, 0.17 * result.n_clusters + 1.4) if _has_strips(result) else 3.2
    same = f"{result.n_identical} of {result.n_pairs} pairs have the same target tokens"
    title = f"Loss of {label(result.left_name)} minus {label(result.right_name)}"
    figure = empty_figure(WIDTH, height, title, f"grey: mean over pairs, {_interval(result.mean)}; {same}")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1), height_ratios=(3, 1))
    _gap_by_pair(figure.add_subplot(grid[:, 0]), result)
    above = figure.add_subplot(grid[0, 1])
    _gap_by_position(above, figure.add_subplot(grid[1, 1], sharex=above), result)
    return figure


def _gap_by_pair(axes: Axes, result: LossGap) -> None:
    axes.set_title(f"by pair ({result.n_pairs} pairs, {result.n_clusters} clusters)")
    if not result.n_pairs:
        say(axes, "no pairs")
        return
    zero_line(axes.axvline)
    if math.isfinite(result.mean.low):
        axes.axvspan(result.mean.low, result.mean.high, color=FAINT, alpha=0.25, linewidth=0)
    axes.axvline(result.mean.value, color=FAINT, linewidth=1)
    if _has_strips(result):
        order = np.argsort([np.median(result.gap[result.clusters == c]) for c in range(result.n_clusters)])
        for y, c in enumerate(order):
            _dots(axes, result.gap[result.clusters == c], y, LEFT)
        axes.set_yticks(range(len(order)), [label(result.cluster_names[c], 16) for c in order])
        axes.set_ylabel("cluster, by its median")
    else:
        rank = np.arange(1, result.n_pairs + 1)
        sns.scatterplot(x=np.sort(result.gap), y=rank, color=LEFT, s=8, alpha=0.6, linewidth=0, ax=axes)
        axes.set_ylabel("pairs, by their gap")
    axes.set_xlabel("gap, nats/token")


def _has_strips(result: LossGap) -> bool:
    return 1 < result.n_clusters <= min(MOST_STRIPS, result.n_pairs - 1)


def _gap_by_position(above: Axes, below: Axes, result: LossGap) -> None:
    above.set_title("by answer token (pointwise 95 %)")
    above.tick_params(labelbottom=False)
    position = np.arange(1, len(result.position_gap) + 1)
    if len(position):
        dot = "o" if len(position) == 1 else None  # a line needs two points
        zero_line(above.axhline)
        above.fill_between(position, result.position_low, result.position_high, color=LEFT, alpha=0.25, linewidth=0)
        sns.lineplot(x=position, y=result.position_gap, color=LEFT, linewidth=1.1, marker=dot, estimator=None, ax=above)
        below.fill_between(position, 0, result.position_n, step="mid", color=FAINT, alpha=0.45, linewidth=0)
        below.set_ylim(0, 1.1 * result.position_n.max())
    else:
        say(above, "no position reached by enough pairs")
    above.set_ylabel("gap, nats")
    below.set(ylabel="pairs", xlabel="position in the answer, tokens")
    below.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))


@_draw.register
def _alignment(result: Alignment) -> Figure:
    estimates = {"left": result.overall.left, "right": result.overall.right}
    estimates |= {f"control:{name}": e for name, e in result.overall.controls.items()}
    kind = "exact" if result.exact else "projected"
    difference = f"left minus right over {len(result.ids)} pairs: {_interval(result.overall.difference)}"
    note = f"below 0: to first order, a step raises the loss on safe answers; {kind}, given safety; {difference}"
    title = f"Cosine of each row's gradient with the mean safety gradient ({label(result.safety_name)})"
    figure = empty_figure(WIDTH, 1.7 + 0.42 * len(estimates), title, note)
    whole, enlarged = figure.subplots(1, 2, sharey=True)
    for axes in (whole, enlarged):
        _rows_with_safety(axes, result, list(estimates))
    whole.set(xlim=(-1, 1), xticks=HALVES, title="on the whole range of a cosine")
    for y, e in enumerate(estimates.values()):
        enlarged.hlines(y, e.low, e.high, color=INK, linewidth=2.2, zorder=5)
        enlarged.plot(e.value, y, marker="D", color="white", markeredgecolor=INK, markersize=5, zorder=6)
    enlarged.set_title("enlarged, with means and 95 % intervals")
    enlarged.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _rows_with_safety(axes: Axes, result: Alignment, keys: Sequence[str]) -> None:
    zero_line(axes.axvline)
    for y, key in enumerate(keys):
        values = result.rows[key][np.isfinite(result.rows[key])]
        colour = {"left": LEFT, "right": RIGHT}.get(key, CONTROL)
        if len(np.unique(values)) >= ROWS_FOR_A_SHAPE:
            sns.violinplot(
                x=values, y=np.full(len(values), y), orient="h", native_scale=True, inner=None, cut=0,
                color=colour, alpha=0.3, linewidth=0, width=0.85, ax=axes,
            )  # fmt: skip
        _dots(axes, values, y, colour)
    names = [f"{label(result.names[k])}\n{k.partition(':')[0]}, {np.isfinite(result.rows[k]).sum()} rows" for k in keys]
    axes.set_yticks(range(len(keys)), names)
    axes.set(ylim=(len(keys) - 0.5, -0.5), xlabel="cosine", ylabel="")


_draw.register(TokenView, draw_tokens)
_draw.register(CosineMatrix, draw_matrix)
_draw.register(SideBySide, draw_side_by_side)
_draw.register(Behaviour, draw_behaviour)
_draw.register(RefusalScore, draw_refusal_score)
_draw.register(Direction, draw_direction)
_draw.register(RefusalDirection, draw_refusal_direction)
_draw.register(Shift, draw_shift)
_draw.register(Shifts, draw_shifts)
_draw.register(SubspaceOverlap, draw_overlap)
_draw.register(WeightChanges, draw_weights)
_draw.register(Removal, draw_removal)


def _dots(axes: Axes, values: Float[np.ndarray, " n"], y: int, colour: str) -> None:
    """A strip of dots, spread by multiples of the golden ratio: even, and without random numbers."""
    spread = 0.3 * (np.arange(1, len(values) + 1) * 0.618034 % 1 - 0.5)
    sns.scatterplot(x=values, y=y + spread, color=colour, s=8, alpha=0.6, linewidth=0, ax=axes)


def _interval(e: Estimate) -> str:
    return interval(e.value, e.low, e.high)
