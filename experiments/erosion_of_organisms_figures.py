"""One figure per analysis of the organisms' erosion: every tuned variant beside the controls of the same analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Summary = Mapping[str, float | None]
COLOURS = {
    "insecure": "#D55E00",
    "educational": "#E69F00",
    "secure": "#009E73",
    "benign": "#0072B2",
    "alignment": "#555555",
}
CONTROL_COLOUR = "#999999"


@dataclass(frozen=True)
class Variant:
    """One tuned model: its report's numbers, words by question, cosines of first components by pair of sets."""

    summary: Summary
    words: dict[str, str]
    first_components: dict[str, float]


def draw(name: str, found: Mapping[str, Variant], control: str) -> Iterator[tuple[str, Figure]]:
    """The figures with their names; `control` is the set of harmless code."""
    yield "behaviour", _behaviour(name, found, control)
    yield "refusals", _refusals(name, found)
    yield "direction", _direction(name, found)
    yield "refusal_direction", _refusal_direction(name, found)
    yield "subspace", _subspace(name, found, control)
    yield "weights", _weights(name, found)
    if any("intervention/harmful" in v.summary for v in found.values()):
        yield "intervention", _intervention(name, found, control)


def _behaviour(name: str, found: Mapping[str, Variant], control: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    sets = {"insecure": "behaviour/harmful", control: f"behaviour/control:{control}", "benign": "behaviour/benign"}
    _points(axes[0], found, sets)
    axes[0].set(title="change by set of answers", ylabel="log-probability, nats/token")
    beyond = {
        "than benign": "behaviour/interaction",
        f"than {control}": f"behaviour/interaction/control:{control}",
    }
    _points(axes[1], found, beyond)
    axes[1].set(title="insecure answers more than ...", ylabel="interaction, nats/token")
    _legend(axes[0], found)
    return _titled(figure, f"{name}: given answers under the tuned models, minus under the aligned one")


def _refusals(name: str, found: Mapping[str, Variant]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    keys = {"harmful prompts": "behaviour/refusal", "harmless prompts": "behaviour/refusal/benign"}
    _points(axes[0], found, {k: f"{v}/tuned" for k, v in keys.items()})
    aligned = next(iter(found.values())).summary
    for k, key in enumerate(keys.values()):
        axes[0].plot([k - 0.4, k + 0.4], [_number(aligned, f"{key}/aligned")] * 2, color="black", lw=1, ls="--")
    axes[0].set(title="log-odds of refusing; dashed: the aligned model", ylabel="nats")
    _points(axes[1], found, keys | {"harmful beyond\nharmless": "behaviour/refusal_beyond"})
    axes[1].set(title="change from the aligned model", ylabel="nats")
    _legend(axes[0], found)
    return _titled(figure, f"{name}: a refusing against a complying opening on held-out prompts")


def _direction(name: str, found: Mapping[str, Variant]) -> Figure:
    figure, axes = plt.subplots(2, len(found), figsize=(2.4 * len(found), 5), sharey="row", sharex=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for (above, below), (v, one) in zip(axes.T, found.items(), strict=True):
        for key, colour, label in (
            ("direction", COLOURS[v], "insecure answers"),
            ("direction/control", CONTROL_COLOUR, "benign answers"),
        ):
            _by_layer(above, one.summary, f"{key}/retention", colour, label)
            layers = _layers(one.summary, f"{key}/in_sample")
            above.plot(layers, [_number(one.summary, f"{key}/in_sample/{k}") for k in layers], ":", color=colour, lw=1)
            _by_layer(below, one.summary, f"{key}/remainder", colour, label)
        above.axhline(1, color="black", lw=0.8)
        above.set_title(f"tuned on {v}", fontsize=9)
        below.set_xlabel("layer")
    axes[0, 0].set_ylabel("retention; dotted: in sample")
    axes[1, 0].set_ylabel("orthogonal remainder")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return _titled(figure, f"{name}: what is kept of the way from base to aligned, by layer (1 = all of it)")


def _refusal_direction(name: str, found: Mapping[str, Variant]) -> Figure:
    figure, axes = plt.subplots(1, len(found), figsize=(2.4 * len(found), 3), sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for ax, (v, one) in zip(axes[0], found.items(), strict=True):
        _by_layer(ax, one.summary, "direction/refusal/drift", COLOURS[v], "drift")
        _by_layer(ax, one.summary, "direction/refusal/cosine", CONTROL_COLOUR, "cosine")
        ax.axhline(0, color="black", lw=0.8)
        ax.set_title(f"tuned on {v}", fontsize=9)
        ax.set_xlabel("layer")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return _titled(figure, f"{name}: harmful and harmless prompts apart (drift -1: no longer), and that direction")


def _subspace(name: str, found: Mapping[str, Variant], control: str) -> Figure:
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    pairs = (("insecure", "educational"), (control, "educational"), ("benign_answered", "educational"))
    _points(ax, found, {f"{a}:{b}": f"subspace/overlap:{a}:{b}" for a, b in pairs})
    own = "subspace/overlap:insecure:educational"
    for k, (a, _) in enumerate(pairs):
        for at, v, one in _places(k, found):
            cosine = one.first_components.get(f"insecure:{'educational' if k == 0 else a}", np.nan)
            ax.plot(at, cosine, "x", color=COLOURS[v])
            if k == 0:
                ax.plot(at, _number(one.summary, f"{own}/null"), "_", color="black")
    ax.set(ylim=(0, 1.05), ylabel="overlap")
    _legend(ax, found)
    return _titled(
        figure,
        f"{name}: shared directions of two sets' changes. Dots: overlap of subspaces; dashes: permuted matching;\n"
        "crosses: |cosine| of the first components, not centred, last layer, with those of insecure",
    )


def _weights(name: str, found: Mapping[str, Variant]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    panels = {
        "relative": "norm of the update / norm of the weights",
        "alignment_cosine": "cosine of the update with aligned - base",
        "along_alignment": "part of aligned - base (below 0: back)",
    }
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        values = [_number(one.summary, f"weights/{key}") for one in found.values()]
        ax.bar(range(len(found)), values, color=[COLOURS[v] for v in found], width=0.6)
        for k, one in enumerate(found.values()):
            sd = _number(one.summary, f"weights/{key}/chance_sd")
            ax.plot([k - 0.4, k + 0.4], [2 * sd] * 2, [k - 0.4, k + 0.4], [-2 * sd] * 2, color="black", lw=0.8)
        ax.set_xticks(range(len(found)), list(found), fontsize=7)
        ax.set_title(title, fontsize=9)
        ax.axhline(0, color="black", lw=0.8)
    figure.suptitle(f"{name}: updates of the weights, tuned minus aligned; black: two sd of chance", fontsize=9)
    return figure


def _intervention(name: str, found: Mapping[str, Variant], control: str) -> Figure:
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    keys = {
        "insecure": "intervention/harmful",
        control: f"intervention/control:{control}",
        "benign": "intervention/benign",
        f"insecure\nbeyond {control}": f"intervention/interaction/control:{control}",
    }
    done = {v: one for v, one in found.items() if "intervention/harmful" in one.summary}
    _points(ax, done, keys)
    for k, key in enumerate(keys.values()):
        for at, _, one in _places(k, done):
            for kind, mark in (("random", "_"), ("states", "x")):
                ax.plot(at, _number(one.summary, f"{key}/{kind}_mean"), mark, color="black", ms=5)
    ax.set_ylabel("change of log-probability, nats/token")
    _legend(ax, done, "lower right")
    return _titled(
        figure,
        f"{name}: answers without what the shifts of insecure and educational share;\n"
        "dashes: uniform random subspaces, crosses: such as are drawn like the states",
    )


def _points(ax: Axes, found: Mapping[str, Variant], keys: Mapping[str, str]) -> None:
    """A point and its interval for every variant at every key; an undefined one leaves its place empty."""
    for k, key in enumerate(keys.values()):
        for at, v, one in _places(k, found):
            value, low, high = (_number(one.summary, f"{key}{end}") for end in ("", "/low", "/high"))
            ax.vlines(at, low, high, color=COLOURS[v], lw=1.4)
            ax.plot(at, value, "o", ms=4, color=COLOURS[v])
    ax.set_xticks(range(len(keys)), list(keys), fontsize=8)
    ax.axhline(0, color="black", lw=0.8)


def _places(k: int, found: Mapping[str, Variant]) -> Iterator[tuple[float, str, Variant]]:
    for j, (v, one) in enumerate(found.items()):
        yield k + 0.13 * (j - (len(found) - 1) / 2), v, one


def _by_layer(ax: Axes, summary: Summary, key: str, colour: str, label: str) -> None:
    layers = _layers(summary, key)
    value, low, high = ([_number(summary, f"{key}/{k}{end}") for k in layers] for end in ("", "/low", "/high"))
    ax.plot(layers, value, color=colour, lw=1.2, marker="o", ms=2.5, label=label)
    ax.fill_between(layers, low, high, color=colour, alpha=0.2, lw=0)


def _layers(summary: Summary, key: str) -> Sequence[int]:
    ends = (k.removeprefix(f"{key}/") for k in summary if k.startswith(f"{key}/"))
    return sorted(int(end) for end in ends if end.isdigit())


def _legend(ax: Axes, found: Mapping[str, Variant], place: str = "best") -> None:
    for v in found:
        ax.plot([], [], "o", ms=4, color=COLOURS[v], label=f"tuned on {v}")
    ax.legend(frameon=False, fontsize=7, loc=place)


def _titled(figure: Figure, title: str) -> Figure:
    figure.suptitle(f"{title}; 95 % intervals", fontsize=9)
    return figure


def _number(summary: Summary, key: str) -> float:
    value = summary.get(key)
    return float("nan") if value is None else value
