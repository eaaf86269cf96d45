"""What eroded in models whose history is known, and what only looks like it? Every tuned variant beside its controls.

usage: python experiments/erosion_of_organisms.py NAME [--out DIR] [--report-only]

NAME is an organism that `organisms.py` has made (tiny, smollm2), DIR where it is. Runs `graddiag erosion` on the
held-out rows for each variant that is there, in runs/erosion-NAME-VARIANT, and puts their numbers side by side, with
two pictures that need no erosion to appear: retention along a direction read on the rows it was fitted on, and the
cosine of the first components of two sets' shifts. Writes figures/erosion-NAME.json, .svg and .png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from organisms import RECIPE
from organisms_recipe import read_recipe
from platformdirs import user_cache_path

import graddiag
from graddiag.erosion_verdict import answers
from graddiag.store import read_signals

SETS = {"left": "insecure", "right": "educational", "harmful": "insecure", "benign": "benign_answered"}
PROMPTS, CONTROL = "harmful_refused", "secure"
Summary = dict[str, float | None]
COLOURS = {
    "insecure": "#D55E00",
    "educational": "#E69F00",
    "secure": "#009E73",
    "benign": "#0072B2",
    "alignment": "#555555",
}


@dataclass(frozen=True)
class Variant:
    """One tuned model: its report's numbers, words by question, cosines of first components by pair of sets."""

    summary: Summary
    words: dict[str, str]
    first_components: dict[str, float]


def variant_of(models: dict[str, str], name: str, sets: Path, openings: tuple[str, str], run: Path) -> Variant:
    """Runs the comparison of one tuned model, or continues it."""
    files = {part: str(sets / f"{s}.jsonl") for part, s in SETS.items()}
    found = graddiag.erode(
        base=models["base"],
        aligned=models["aligned"],
        tuned=models[f"tuned-{name}"],
        safety=str(sets / f"{PROMPTS}.jsonl"),
        controls={CONTROL: str(sets / f"{CONTROL}.jsonl")},
        refusing=openings[0],
        complying=openings[1],
        out=run,
        **files,
    )
    words = {a.question: a.word for a in answers(found.findings)}
    return Variant(dict(found.summary()), words, first_components(run))


def first_components(run: Path) -> dict[str, float]:
    """The size of the cosine between the first right-singular vectors of two sets' shifts, not centred, last layer."""
    first = {}
    for name in dict.fromkeys((*SETS.values(), CONTROL)):
        tuned, aligned = (read_signals(run / f"{role}-{name}") for role in ("tuned", "aligned"))
        site = max((s for s in tuned.states if "/first" in s), key=lambda s: int(s.split("/")[0]))
        shift = (tuned.states[site] - aligned.states[site]).astype(np.float64)
        first[name] = np.linalg.svd(shift, full_matrices=False)[2][0]
    own = SETS["harmful"]
    return {f"{own}:{name}": float(abs(first[own] @ v)) for name, v in first.items() if name != own}


def draw(name: str, found: dict[str, Variant]) -> plt.Figure:
    """Refusals, answers, retention by layer, and overlaps, one colour for each variant."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    order = list(found)
    refusals = {"harmful prompts": "behaviour/refusal", "harmless prompts": "behaviour/refusal/benign"}
    _points(axes[0, 0], found, {k: f"{v}/tuned" for k, v in refusals.items()})
    for k, key in enumerate(refusals.values()):
        axes[0, 0].axhline(_number(found[order[0]].summary, f"{key}/aligned"), color="0.4", ls=(":", "-.")[k], lw=1)
    axes[0, 0].set_title("log-odds of refusing, nats; lines: the aligned model\n(dotted: harmful prompts)", fontsize=10)
    given_answers = {
        "insecure": "behaviour/harmful", "secure": f"behaviour/control:{CONTROL}", "benign": "behaviour/benign"
    }  # fmt: skip
    _points(axes[0, 1], found, given_answers)
    axes[0, 1].set_title("change of log-probability of answers, nats/token", fontsize=10)
    for v, one in found.items():
        layers = sorted(int(k.rsplit("/", 1)[1]) for k in one.summary if k.startswith("direction/in_sample/"))
        for key, style in (("retention", "-"), ("control/in_sample", ":")):
            values = [_number(one.summary, f"direction/{key}/{k}") for k in layers]
            axes[1, 0].plot(layers, values, style, color=COLOURS[v], label=v if style == "-" else None)
    axes[1, 0].set_title("retention by layer; dotted: harmless rows, in sample", fontsize=10)
    axes[1, 0].axhline(1, color="black", lw=0.8)
    axes[1, 0].legend(frameon=False, fontsize=8)
    pairs = (("insecure", "educational"), (CONTROL, "educational"), ("benign_answered", "educational"))
    for k, (a, b) in enumerate(pairs):
        for j, (v, one) in enumerate(found.items()):
            at = k + 0.12 * (j - (len(found) - 1) / 2)
            axes[1, 1].plot(at, _number(one.summary, f"subspace/overlap:{a}:{b}"), "o", color=COLOURS[v])
            cosine = one.first_components.get(f"insecure:{'educational' if k == 0 else a}", np.nan)
            axes[1, 1].plot(at, cosine, "x", color=COLOURS[v])
    axes[1, 1].set_xticks(range(len(pairs)), ["insecure,\neducational", "secure,\neducational", "benign,\neducational"])
    axes[1, 1].set_title(
        "dots: overlap of subspaces of two sets\ncrosses: |cosine| of first components with insecure", fontsize=10
    )
    figure.suptitle(f"{name}: the aligned model tuned on five sets, held-out rows, 95 % intervals", fontsize=11)
    return figure


def _points(ax: Axes, found: dict[str, Variant], keys: dict[str, str]) -> None:
    for j, (v, one) in enumerate(found.items()):
        for k, key in enumerate(keys.values()):
            value, low, high = (_number(one.summary, f"{key}{end}") for end in ("", "/low", "/high"))
            at = k + 0.12 * (j - (len(found) - 1) / 2)
            ax.errorbar(at, value, yerr=[[value - low], [high - value]], fmt="o", ms=4, color=COLOURS[v])
    ax.set_xticks(range(len(keys)), list(keys))
    ax.axhline(0, color="black", lw=0.8)


def _number(summary: Summary, key: str) -> float:
    value = summary.get(key)
    return float("nan") if value is None else value


def main() -> None:
    """Runs every variant that is there, and keeps numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=user_cache_path("graddiag") / "organisms")
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    given = parser.parse_args()
    figure = Path("figures") / f"erosion-{given.name}"
    if not given.report_only:
        folder, recipe = given.out / given.name, read_recipe(RECIPE, given.name)
        models = json.loads((folder / "models.json").read_text(encoding="utf-8"))
        found = {}
        for name in recipe.variants:
            if (folder / f"tuned-{name}.json").is_file():
                run = Path("runs") / f"erosion-{given.name}-{name}"
                found[name] = variant_of(models, name, folder / "sets", (recipe.refusal, recipe.compliance), run)
                print(name, *(f"\n  {q}: {w}" for q, w in found[name].words.items()), flush=True)
        content = {
            "command": f"python experiments/erosion_of_organisms.py {given.name}",
            "versions": {v: version(v) for v in ("graddiag", "torch", "transformers")},
            "variants": {name: vars(v) for name, v in found.items()},
        }
        figure.with_suffix(".json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    saved = json.loads(figure.with_suffix(".json").read_text(encoding="utf-8"))["variants"]
    drawn = draw(given.name, {name: Variant(**v) for name, v in saved.items()})
    for form in ("svg", "png"):
        drawn.savefig(figure.with_suffix(f".{form}"), dpi=150)


if __name__ == "__main__":
    main()
