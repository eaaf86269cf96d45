"""The figure of early_warning.py: what the monitor saw above, what behaviour did below, a column for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from early_warning_findings import Run
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "0.6"  # Okabe and Ito
STYLES = ("-", "--", ":", "-.")  # of seeds


@dataclass(frozen=True)
class Panel:
    """A row of the figure that shows changes of behaviour: its axis, and the label and colour of each kind."""

    axis: str
    kinds: dict[str, tuple[str, str]]


WATCHED = ("cosine with safety", "safety loss of the monitor's\nrows, change, nats/token")
BEHAVIOUR = (
    Panel(
        "log-probability of held-out\nanswers, change, nats/token",
        {
            "safe": ("safe answers", BLUE),
            "harmful": ("harmful answers", ORANGE),
            "benign": ("benign answers", GREEN),
            "refusing": ("the refusal's opening", PURPLE),
        },
    ),
    Panel(
        "log-odds of refusing against\ncomplying, change, nats",
        {"log_odds": ("after harmful prompts", PURPLE), "log_odds_benign": ("after benign prompts", GREEN)},
    ),
    Panel(
        "share of held-out prompts\nrefused, change",
        {"refused": ("harmful prompts", PURPLE), "refused_benign": ("benign prompts", GREEN)},
    ),
)


def draw(runs: Sequence[Run], title: str, target: Path) -> None:
    """Writes target.svg and target.png."""
    tasks = list(dict.fromkeys(r.task for r in runs))
    panels = [p for p in BEHAVIOUR if set(p.kinds) & set(runs[0].kinds)]
    rows = (*WATCHED, *(p.axis for p in panels))
    figure, axes = plt.subplots(
        len(rows), len(tasks), figsize=(3.3 * len(tasks) + 1, 2.5 * len(rows) + 0.5), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, task in enumerate(tasks):
        axes[0][column].set_title(task)
        for run in (r for r in runs if r.task == task):
            style = STYLES[run.seed % len(STYLES)]
            _cosines(axes[0][column], run, style)
            _losses(axes[1][column], run, style)
            for row, panel in enumerate(panels, len(WATCHED)):
                _behaviour(axes[row][column], run, panel, style)
        axes[-1][column].set_xlabel("optimizer step")
    for row, label in zip(axes, rows, strict=True):
        row[0].set_ylabel(label)
        row[0].legend(frameon=False, fontsize=8)
    axes[0][0].set_ylim(-1, 1)
    figure.suptitle(f"{title}; one line style a seed\ntriangle: first alarm; circle: behaviour beyond its error")
    for form in ("svg", "png"):
        figure.savefig(target.with_suffix(f".{form}"), dpi=130)
    plt.close(figure)


def _cosines(axes: Axes, run: Run, style: str) -> None:
    steps = [p.step for p in run.looked]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(steps, [p.cosine for p in run.looked], style, color=BLUE, label=_once(run, "batch's gradient"))
    axes.plot(steps, [p.update_cosine for p in run.looked], style, color=ORANGE, label=_once(run, "real update"))
    if run.first_told is not None:
        axes.plot([run.first_told], [-0.9], "^", color="black", markersize=7, clip_on=False)


def _losses(axes: Axes, run: Run, style: str) -> None:
    steps = [p.step for p in run.looked]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(steps, run.measured_rise, style, color=BLUE, label=_once(run, "measured"))
    axes.plot(steps, run.predicted_rise, style, color=ORANGE, label=_once(run, "predicted, summed"))


def _behaviour(axes: Axes, run: Run, panel: Panel, style: str) -> None:
    steps = [s.step for s in run.seen]
    axes.axhline(0, color=GREY, linewidth=0.8)
    for kind in (k for k in panel.kinds if k in run.kinds):
        label, colour = panel.kinds[kind]
        changes = [run.change(kind, k) for k in range(len(steps))]
        means = [m for m, _ in changes]
        axes.plot(steps, means, style, color=colour, label=_once(run, label))
        low, high = ([m + sign * e for m, e in changes] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        moved = run.moved(kind) if kind in run.eroding else None
        if moved is not None:
            axes.plot([moved], [means[steps.index(moved)]], "o", color=colour, markersize=6)


def _once(run: Run, label: str) -> str | None:
    return label if run.seed == 0 else None
