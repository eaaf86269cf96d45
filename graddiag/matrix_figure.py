"""What does the matrix of cosines between all rows look like?"""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graddiag.analyzers import CosineMatrix
from graddiag.canvas import HALVES, INK, NAME_LENGTH, empty_figure, label

DIVERGING = "RdBu"  # red is -1, blue +1; readers with any common colour blindness tell them apart
MATRIX_LETTERS = 44  # as many fit along a side of the matrix
MOST_BORDERS = 60  # more lines between clusters than this hide the cells


def draw_matrix(result: CosineMatrix) -> Figure:
    """A heat map, rows of one cluster side by side, lines between sets and between clusters."""
    rows = "; ".join(label(s, 60) for s in result.selection) or "all rows"
    note = f"{rows}; by cluster within a set"
    figure = empty_figure(5.4, 4.9, "Cosine of every row's gradient with every other", note)
    axes = figure.subplots()
    axes.set_facecolor("#bbbbbb")
    sns.heatmap(
        result.values, vmin=-1, vmax=1, cmap=DIVERGING, square=True, xticklabels=False, yticklabels=False,
        rasterized=True, cbar_kws={"label": "cosine", "shrink": 0.8, "ticks": HALVES}, ax=axes,
    )  # fmt: skip
    _mark_clusters(axes, result)
    ends = np.cumsum(result.shown)
    for colour, width in (("white", 3), (INK, 1.2)):  # a black line alone is lost between dark cells
        axes.hlines(ends[:-1], 0, ends[-1], color=colour, linewidth=width)
        axes.vlines(ends[:-1], 0, ends[-1], color=colour, linewidth=width)
    middle = ends - np.array(result.shown) / 2
    limits = [int(np.clip(n / ends[-1] * MATRIX_LETTERS, 6, NAME_LENGTH)) for n in result.shown]
    names = [f"{label(name, k)}\n{n} rows" for name, k, n in zip(result.names, limits, result.shown, strict=True)]
    axes.set_xticks(middle, names, rotation=0)
    axes.set_yticks(middle, names, rotation=90, va="center")
    axes.tick_params(length=0)
    return figure


def _mark_clusters(axes: Axes, result: CosineMatrix) -> None:
    groups = list(zip(result.sides.tolist(), result.clusters, strict=True))
    borders = [k for k in range(1, len(groups)) if groups[k] != groups[k - 1]]
    if len(borders) <= MOST_BORDERS:
        axes.hlines(borders, 0, len(groups), color="white", linewidth=0.3)
        axes.vlines(borders, 0, len(groups), color="white", linewidth=0.3)
