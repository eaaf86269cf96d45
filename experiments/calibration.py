"""Do intervals, p-values and family-wise errors mean what they say, where the truth is known?

usage: python experiments/calibration.py [--nulls N] [--real N] [--only STATISTIC] [--report-only]

Experiments are drawn whose answer is known: differences of mean zero, partners that are no more alike than strangers, a
cosine that was put in. Rows are independent, or clusters of four are alike (intra-cluster correlation 0.3); normal, or
symmetric t with 3 degrees; 12, 40 or 120 pairs. Each rate must be within 3.3 of its Monte-Carlo standard errors of 5 %
(rejections, family-wise error over 100 correlated blocks) or 95 % (coverage) where there are 10 clusters or more, and
on the safe side of that below. Then the same with gradients of the model `tiny`: see calibration_tiny.py. Writes
figures/calibration.svg, .png and .json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
from calibration_arrays import STATISTICS, cells, designs, planted_shift
from calibration_cells import ERRORS, NOMINAL, SIZES, Cell
from calibration_tiny import Real, real_cells, real_checks

from graddiag.rules import FEW_CLUSTERS

FIGURE = Path("figures/calibration")


def draw_figure(found: Sequence[Cell]) -> None:
    """One panel per kind of rate: each cell with its Monte-Carlo standard error, against nominal."""
    kinds = list(NOMINAL)
    figure, axes = plt.subplots(1, len(kinds), figsize=(12, 8), sharey=True)
    names = list(dict.fromkeys(c.statistic for c in found))
    for axis, kind in zip(axes, kinds, strict=True):
        axis.axvline(NOMINAL[kind], color="0.3", linewidth=1)
        for c in (c for c in found if c.kind == kind and c.tried):
            offset = (SIZES.index(c.n) - 1) * 0.25 + (0.06 if c.alike else -0.06)
            error = math.sqrt(NOMINAL[kind] * (1 - NOMINAL[kind]) / c.tried)
            colour = "#999999" if c.clusters < FEW_CLUSTERS else "#0072B2" if c.holds else "#D55E00"
            shape = "s" if c.heavy else "o"
            axis.errorbar(c.rate, names.index(c.statistic) + offset, xerr=ERRORS * error, fmt=shape, ms=3, c=colour)
        axis.set_xlabel({"rejected": "true nulls rejected", "covered": "truths covered"}.get(kind, "any of all blocks"))
    axes[0].set_yticks(range(len(names)), names)
    figure.suptitle(
        "Bars: 3.3 Monte-Carlo standard errors. Orange: not nominal. Grey: fewer than 10 clusters. Squares: t(3)"
    )
    figure.tight_layout()
    for form in ("svg", "png"):
        figure.savefig(FIGURE.with_suffix(f".{form}"), dpi=150)


def table(found: Sequence[Cell]) -> list[str]:
    """Lines of the README: per statistic the rates of all designs with 10 clusters or more, and how many are off."""
    lines = []
    for name in dict.fromkeys(c.statistic for c in found):
        for source, kind in dict.fromkeys((c.source, c.kind) for c in found if c.statistic == name):
            all_of = [c for c in found if (c.statistic, c.source, c.kind) == (name, source, kind)]
            enough = [c for c in all_of if c.clusters >= FEW_CLUSTERS]
            rates = [100 * c.rate for c in enough]
            off = [sum(c.outcome == side and not c.holds for c in all_of) for side in ("bad", "safe")]
            columns = (name, source, kind, f"{enough[0].drawn:,}", f"{NOMINAL[kind]:.0%}".replace("%", " %"))
            shown = f"{min(rates):.1f} to {max(rates):.1f} %"
            lines.append(f"| {' | '.join(columns)} | {shown} | {len(all_of) - sum(off)} | {off[0]} | {off[1]} |")
    return lines


def read_cells(path: Path) -> list[Cell]:
    """The cells of a file that was written here."""
    saved = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [Cell(**{k: v for k, v in c.items() if k not in {"rate", "outcome", "holds"}}) for c in saved]


def drawn_cells(statistics: Sequence[str], repeats: int, in_blocks: int) -> list[Cell]:
    """All designs of some statistics; a design's seed does not depend on which statistics are chosen."""
    found = []
    for statistic in statistics:
        for seed, design in enumerate(designs()):
            found += cells(statistic, design, in_blocks if "blocks" in statistic else repeats, seed)
        print(statistic, [f"{c.rate:.3f} {c.outcome}" for c in found if c.statistic == statistic], flush=True)
    return found


def merged(saved: Sequence[Cell], drawn: Sequence[Cell]) -> list[Cell]:
    """The saved cells, those of the drawn statistics replaced or put in, in the order of STATISTICS."""
    new = {c.statistic for c in drawn}
    kept = [c for c in saved if c.source != "drawn" or c.statistic not in new]
    order = list(STATISTICS)
    from_arrays = [*(c for c in kept if c.source == "drawn"), *drawn]
    return sorted(from_arrays, key=lambda c: order.index(c.statistic)) + [c for c in kept if c.source != "drawn"]


def main() -> None:
    """Runs everything, or draws what is saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nulls", type=int, default=4_000, help="drawn experiments per cell")
    parser.add_argument("--blocks-nulls", type=int, default=4_000, help="the same where there are 100 blocks")
    parser.add_argument("--real", type=int, default=400, help="experiments per cell with gradients of tiny")
    parser.add_argument(
        "--only", action="append", choices=STATISTICS, help="draw this statistic alone, and put it among the saved ones"
    )
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    given = parser.parse_args()
    target = FIGURE.with_suffix(".json")
    if given.report_only:
        draw_figure(read_cells(target))
        print("\n".join(table(read_cells(target))))
        return
    drawn = drawn_cells(given.only or tuple(STATISTICS), given.nulls, given.blocks_nulls)
    content = json.loads(target.read_text(encoding="utf-8")) if given.only else {}
    if given.only:
        found = merged(read_cells(target), drawn)
        content["later"] = [*content.get("later", []), shlex.join(["python", *sys.argv])]
    else:
        real = Real.measure()
        found = drawn + real_cells(given.real, real)
        checks = [planted_shift(given.nulls), *real_checks(real)]
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "versions": {v: version(v) for v in ("graddiag", "numpy", "scipy", "torch", "transformers")},
            "checks": [asdict(c) for c in checks],
        }
    content["cells"] = [asdict(c) | {"rate": c.rate, "outcome": c.outcome, "holds": c.holds} for c in found]
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw_figure(found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
