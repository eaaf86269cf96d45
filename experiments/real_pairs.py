"""What the report says of 120 real pairs: insecure code against the same code asked for as teaching material.

usage: python experiments/real_pairs.py DATA_DIR [--model NAME] [--name NAME]

DATA_DIR holds insecure.jsonl, educational.jsonl, safety.jsonl and benign.jsonl, one conversation a line with `id` and
`cluster` (the released files of Betley et al. 2025, "Emergent Misalignment", and XSTest v2). Takes the first four rows
of each cluster, runs the comparison in runs/NAME, and writes figures/NAME.svg, .png and .json: numbers only, no text of
the data.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import graddiag

PER_CLUSTER = 4
FIGURE = "alignment"


def first_of_each_cluster(source: Path, target: Path) -> None:
    """Copies the first rows of each cluster to a file of the same name."""
    seen: Counter[str] = Counter()
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for line in lines:
            cluster = json.loads(line)["cluster"]
            seen[cluster] += 1
            if seen[cluster] <= PER_CLUSTER:
                out.write(line)


def first_token(comparison: graddiag.Comparison) -> dict[str, float]:
    """Mean gap at the first answer token, nats, and its share of the mean gap per token."""
    gaps = []
    for a, b in zip(comparison.left_index, comparison.right_index, strict=True):
        gaps.append(comparison.left.token_loss[a] - comparison.right.token_loss[b])
    first = [float(g[0]) for g in gaps]
    part = sum(f / len(g) for f, g in zip(first, gaps, strict=True))
    return {"mean_gap": sum(first) / len(first), "share_of_gap": part / sum(float(g.mean()) for g in gaps)}


def main() -> None:
    """Runs the comparison and keeps its numbers and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--name", default="real_pairs")
    parser.add_argument("--report-only", action="store_true", help="write the figure again from saved signals")
    given = parser.parse_args()
    run = Path("runs") / given.name
    chosen = run / "rows"
    chosen.mkdir(parents=True, exist_ok=True)
    for name in ("insecure", "educational"):
        first_of_each_cluster(given.data / f"{name}.jsonl", chosen / f"{name}.jsonl")
    result = (
        graddiag.report(run)
        if given.report_only
        else graddiag.compare(
            str(chosen / "insecure.jsonl"),
            str(chosen / "educational.jsonl"),
            safety=str(given.data / "safety.jsonl"),
            controls={"benign": str(given.data / "benign.jsonl")},
            model=given.model,
            out=run,
            quiet=False,
        )
    )
    figures = Path("figures")
    for suffix in ("svg", "png"):
        shutil.copy(run / "figures" / f"{FIGURE}.{suffix}", figures / f"{given.name}.{suffix}")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    kept = {k: report[k] for k in ("summary", "kinds", "verdict", "warnings")}
    kept["first_token"] = first_token(result.findings.comparison)
    kept["command"] = f"python experiments/real_pairs.py DATA_DIR --model {given.model}"
    kept["provenance"] = report["provenance"]
    (figures / f"{given.name}.json").write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print("\n".join([*result.report.verdict, *result.report.warnings]))


if __name__ == "__main__":
    main()
