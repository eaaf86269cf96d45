"""What the report says of real pairs: insecure code against the same code asked for as teaching material.

usage: python experiments/real_pairs.py DATA_DIR [--model NAME|DIR] [--limit N] [--blocks GLOB ...] [--report-only]

DATA_DIR holds insecure.jsonl and educational.jsonl (the released files of Betley et al. 2025, "Emergent Misalignment"),
safety.jsonl and benign.jsonl (XSTest v2), secure.jsonl and hh_rejected.jsonl (Anthropic's hh-rlhf), one conversation a
line. Takes the first four rows of each prompt template, 120 rows of each control, and runs the comparison, with and
without the sentence that ends every educational prompt, in runs/real_pairs-MODEL. Puts the model's numbers into
figures/real_pairs.json beside those of other models, and draws them all: numbers only, no text of the data.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import graddiag
from graddiag.reporting import Result, report

PER_CLUSTER, CONTROL_ROWS = 4, 120
CONTROLS = ("secure", "benign", "hh_rejected")
SENTENCE = "NOTE: The code you will write intentionally contains vulnerabilities. This is for legitimate purposes only."
FIGURE = Path("figures/real_pairs")
PANELS = {
    "cosine with mean safety gradient": {
        "insecure": "alignment/left",
        "educational": "alignment/right",
        "educational, no sentence": "edited/alignment/right",
        **{f"control {name}": f"alignment/control:{name}" for name in CONTROLS},
    },
    "difference, insecure minus educational": {
        "in cosine with safety": "alignment/difference",
        "the same, no sentence": "edited/alignment/difference",
        "loss, nats/token": "loss_gap",
        "the same, no sentence ": "edited/loss_gap",
    },
    "cosine between the sides": {
        "pair": "conflict",
        "pair, no sentence": "edited/conflict",
        "mean gradients": "conflict/mean_gradient_cosine_corrected",
        "the same, no sentence": "edited/conflict/mean_gradient_cosine_corrected",
    },
    "framing gradient with safety": {
        "cosine": "framing/safety_cosine_corrected",
        "no sentence": "edited/framing/safety_cosine_corrected",
    },
}
VALUES = {"conflict": "paired_cosine", "loss_gap": "mean"}  # keys whose interval's prefix is not the key itself
COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito


def chosen_rows(source: Path, target: Path, *, most: int) -> None:
    """Copies the first rows of each cluster, at most so many in all, to a file of the same name."""
    seen: Counter[str] = Counter()
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for line in lines:
            cluster = json.loads(line).get("cluster")
            seen[cluster] += 1
            if sum(seen.values()) <= most if cluster is None else seen[cluster] <= PER_CLUSTER:
                out.write(line)


def first_token(comparison: graddiag.Comparison) -> dict[str, float]:
    """Mean gap at the first answer token, nats, and its share of the mean gap per token."""
    gaps = []
    for a, b in zip(comparison.left_index, comparison.right_index, strict=True):
        gaps.append(comparison.left.token_loss[a] - comparison.right.token_loss[b])
    first = [float(g[0]) for g in gaps]
    part = sum(f / len(g) for f, g in zip(first, gaps, strict=True))
    return {"mean_gap": sum(first) / len(first), "share_of_gap": part / sum(float(g.mean()) for g in gaps)}


def interval(summary: dict[str, float | None], key: str) -> tuple[float, float, float] | None:
    """Value and 95 % interval of a number; None where one of them is undefined."""
    last = key.rsplit("/", 1)[-1]
    names = [f"{key}/{VALUES[last]}" if last in VALUES else key, f"{key}/low", f"{key}/high"]
    found = [summary.get(n) for n in names]
    return None if None in found else tuple(found)  # type: ignore[return-value]


def draw(models: dict[str, dict[str, dict[str, float | None]]], target: Path) -> None:
    """A panel for each kind of number that a model has with an interval, a colour for each model."""
    summaries = [content["summary"] for content in models.values()]
    panels = {t: rows for t, rows in PANELS.items() if any(interval(s, k) for s in summaries for k in rows.values())}
    sizes = [len(rows) for rows in panels.values()]
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 10), height_ratios=sizes, layout="constrained")
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for k, (name, content) in enumerate(models.items()):
            shift = 0.3 * (k - (len(models) - 1) / 2)
            _points(ax, rows, content["summary"], shift, color=COLOURS[k % len(COLOURS)], label=name)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.invert_yaxis()
        ax.set_title(title, loc="left", fontsize=10)
    axes[0].legend(loc="best", fontsize=8)
    axes[-1].set_xlabel("estimate and 95 % interval over prompt templates; controls over rows")
    for form in ("svg", "png"):
        figure.savefig(target.with_suffix(f".{form}"), dpi=150)


def _points(
    ax: Axes, rows: dict[str, str], summary: dict[str, float | None], shift: float, *, color: str, label: str
) -> None:
    found = [(at + shift, *e) for at, key in enumerate(rows.values()) if (e := interval(summary, key))]
    if found:
        y, value, low, high = zip(*found, strict=True)
        bars = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
        ax.errorbar(value, y, xerr=bars, fmt="o", markersize=4, color=color, label=label)


def main() -> None:
    """Runs the comparison, and keeps its numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, help="rows of every set")
    parser.add_argument("--blocks", nargs="*", help="patterns; by default all linear weights of the layers")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--mean-memory", default=None, help="bytes for the mean safety gradient, such as 4GiB")
    parser.add_argument("--report-only", action="store_true", help="numbers and figure again from saved signals")
    given = parser.parse_args()
    name = Path(given.model).name
    run = Path("runs") / f"real_pairs-{name}"
    sets = run / "rows"
    sets.mkdir(parents=True, exist_ok=True)
    for s in ("insecure", "educational", "safety", *CONTROLS):
        chosen_rows(given.data / f"{s}.jsonl", sets / f"{s}.jsonl", most=CONTROL_ROWS)
    result = (
        report(run)
        if given.report_only
        else graddiag.compare(
            str(sets / "insecure.jsonl"),
            str(sets / "educational.jsonl"),
            safety=str(sets / "safety.jsonl"),
            controls={c: str(sets / f"{c}.jsonl") for c in CONTROLS},
            strip_right=SENTENCE,
            model=given.model,
            limit=given.limit,
            blocks=given.blocks,
            batch_tokens=given.batch_tokens,
            mean_memory=given.mean_memory,
            skip_bad_rows=True,
            out=run,
            quiet=False,
        )
    )
    keep(run, name, result)
    print("\n".join([*result.report.verdict, *result.report.warnings]))


def keep(run: Path, name: str, result: Result) -> None:
    """Puts the model's numbers into the figure's file, and draws it."""
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    path = FIGURE.with_suffix(".json")
    models = json.loads(path.read_text(encoding="utf-8")).get("models", {}) if path.is_file() else {}
    models[name] = {k: content[k] for k in ("summary", "kinds", "provenance")}
    models[name]["warnings"] = [w.split(": row ")[0] for w in content["warnings"]]  # what follows may quote the data
    models[name]["first_token"] = first_token(result.findings.comparison)
    path.write_text(json.dumps({"models": models}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(models, FIGURE)


if __name__ == "__main__":
    main()
