"""Do the standard errors of projected numbers hold: how often is the exact number within 1.96 of them?

usage: python experiments/projection_coverage.py [--seeds N] [--kind KIND] [--report-only]

Exact gradients once: of the built-in sets under the built-in model `tiny`, and drawn ones of known rank in blocks that
are large against the projection. Then, seed by seed, the mean gradients projected; a cosine of one block counts as
covered if the exact one lies within 1.96 of its KEY/projection_se. Writes
figures/projection_coverage.svg, .png and .json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import graddiag
from graddiag import Comparison, Signals
from graddiag.gradients import Dense
from graddiag.models import load_model
from graddiag.projection import Bases, make_projector, sides_basis
from graddiag.signals import Block

FIGURE = Path("figures/projection_coverage")
ROWS = 12  # of each set, of which the mean is taken
SHAPE, BLOCKS = (160, 120), 12  # of drawn gradients
RANKS = (1, 4, 16, 64)
PATTERNS = ["*layers.0.*proj", "*layers.3.*proj"]  # of tiny: 14 blocks
KEYS = {
    "conflict/mean_gradient_cosine": "two means",
    "framing/safety_cosine": "framing and safety",
}
NORMAL = 1.96
AIM = (0.93, 0.97)
Sets = Mapping[str, Signals]


@dataclass(frozen=True)
class Case:
    """Whose gradients, and how they are projected."""

    source: str
    kind: str
    dim: int


CASES = (
    *(Case("tiny", kind, 64) for kind in ("logra", "sjlt", "dense", "lowrank")),
    *(Case("tiny", kind, 256) for kind in ("logra", "sjlt", "lowrank")),
    *(Case(f"rank {r}", "logra", dim) for r in RANKS for dim in (256, 1024)),
    *(Case(f"rank {r}", "sjlt", 256) for r in RANKS),
)


def tiny_sets() -> Sets:
    """Exact mean gradients of the built-in sets under the built-in model, each as a table of one row."""
    model, tokenizer = load_model("tiny")
    names = {"left": "insecure", "right": "educational", "safety": "safety"}
    rows = {r: graddiag.extract(model, tokenizer, n, projection="exact", blocks=PATTERNS) for r, n in names.items()}
    return {
        role: mean_row(t.take(range(ROWS)), {b: t.gradients[b][:ROWS] for b in t.blocks}) for role, t in rows.items()
    }


def mean_row(table: Signals, gradients: Mapping[str, np.ndarray]) -> Signals:
    """The mean of some gradients as the only row of a table."""
    means = {b: g.mean(axis=0, keepdims=True) for b, g in gradients.items()}
    norms = {b: np.linalg.norm(m, axis=1) for b, m in means.items()}
    return replace(table.take([0]), gradients=means, norms=norms)


def drawn_sets(like: Sets, rank: int) -> Sets:
    """The same tables with drawn mean gradients, within `rank` outer products of each block, whose weights fall as
    1 / r; half of what a set has in a direction it has in common with the others."""
    rng = np.random.default_rng(rank)
    blocks = tuple(Block(f"drawn.{b}.weight", SHAPE) for b in range(BLOCKS))
    out: dict[str, dict[str, np.ndarray]] = {role: {} for role in like}
    for block in blocks:
        n = max(rank, 2)
        left, right = (np.linalg.qr(rng.normal(size=(d, n)))[0] for d in SHAPE)
        right = right if rank > 1 else right[:, [0, 0]]  # sets that differ need two directions on one side
        common = rng.normal(size=n)
        for role in like:
            weights = (common + rng.normal(size=n)) / np.arange(1, n + 1)
            out[role][block.name] = (left * weights @ right.T).reshape(1, -1)
    spaces = {role: replace(table.space, blocks=blocks) for role, table in like.items()}
    return {role: mean_row(replace(table, space=spaces[role]), out[role]) for role, table in like.items()}


def projected(sets: Sets, case: Case, seed: int, bases: Bases | None) -> Sets:
    """The tables as they would have been measured with this projection."""
    blocks = sets["left"].space.blocks
    projector = make_projector(case.kind, case.dim, seed, blocks=blocks, bases=bases)
    gradients: dict[str, dict[str, np.ndarray]] = {role: {} for role in sets}
    for block in blocks:
        dense = np.concatenate([table.gradients[block.name] for table in sets.values()]).reshape(-1, *block.shape)
        rows = projector.rows(block, Dense(torch.from_numpy(dense).double())).numpy()
        for role, row in zip(sets, rows, strict=True):
            gradients[role][block.name] = row[None]
    space = replace(sets["left"].space, projection=case.kind, dim=projector.dim)
    return {role: replace(table, space=space, gradients=gradients[role]) for role, table in sets.items()}


def low_rank_bases(sets: Sets, dim: int) -> Bases:
    """The fixed directions of `lowrank`: those of the mean safety gradient."""
    safety = sets["safety"]
    means = {b: torch.from_numpy(safety.gradients[b.name][0]).double() for b in safety.space.blocks}
    return Bases({b.name: sides_basis(mean, b, dim, 0) for b, mean in means.items()})


def numbers(sets: Sets) -> Iterator[tuple[str, str, float, float]]:
    """Each number of each block (and of "all") with its standard error."""
    comparison = Comparison(sets["left"], sets["right"])
    for result in (graddiag.conflict(comparison), graddiag.framing(comparison, sets["safety"])):
        for block, values in {**result.block_summary(), "all": result.summary()}.items():
            for key in KEYS.keys() & values.keys():
                value, error = values[key], values[f"{key}/projection_se"]
                yield block, key, math.nan if value is None else value, math.nan if error is None else error


def coverage(sets: Sets, case: Case, seeds: int) -> dict[str, dict[str, float]]:
    """Per number: how often it covers, in blocks and over all blocks; root mean square of error and standard error."""
    exact = {(b, k): v for b, k, v, _ in numbers(sets)}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    bases = low_rank_bases(sets, case.dim) if case.kind == "lowrank" else None
    for seed in range(seeds):
        for block, key, value, error in numbers(projected(sets, case, seed, bases)):
            found.setdefault((key, "all" if block == "all" else "blocks"), []).append(
                (abs(value - exact[block, key]), error)
            )
    out: dict[str, dict[str, float]] = {key: {} for key in KEYS}
    for (key, where), pairs in found.items():
        error, se = np.array(pairs).T
        out[key] |= {
            f"{where}/covered": float(np.mean(error <= NORMAL * se)),
            f"{where}/rms_error": float(np.sqrt(np.mean(error**2))),
            f"{where}/rms_se": float(np.sqrt(np.mean(se**2))),
            f"{where}/n": len(error),
        }
    return out


def draw(results: list[dict[str, object]]) -> None:
    """One line per case, one dot per number: blocks filled, all blocks as one vector open."""
    figure, axes = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
    axes.axvspan(*AIM, color="0.9")
    axes.axvline(0.95, color="0.5", lw=0.8)
    colours = ("#0072B2", "#D55E00")
    for row, result in enumerate(results):
        for k, (key, label) in enumerate(KEYS.items()):
            at = row + (k - 0.5) * 0.25
            for where, face in (("blocks", colours[k]), ("all", "white")):
                name = f"{label}, {'one block' if where == 'blocks' else 'all blocks as one vector'}"
                axes.plot(result["numbers"][key][f"{where}/covered"], at, "o", mec=colours[k], mfc=face, ms=5,
                          label=name if row == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(results)), [f"{r['source']}: {r['kind']} {r['dim']}" for r in results])
    axes.invert_yaxis()
    axes.set_xlabel("share of projections in which 1.96 standard errors reach the exact number")
    axes.set_title("Coverage of the projection's standard error; grey: the aim, 93 to 97 %", fontsize=10)
    axes.legend(fontsize=7, loc="lower left")
    for suffix in ("svg", "png"):
        figure.savefig(FIGURE.with_suffix(f".{suffix}"), dpi=150)


def main() -> None:
    """Counts, and writes numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--kind", help="only projections of this kind; the numbers of the others stay")
    parser.add_argument("--report-only", action="store_true", help="draw the saved numbers again")
    given = parser.parse_args()
    target = FIGURE.with_suffix(".json")
    if given.report_only:
        draw(json.loads(target.read_text(encoding="utf-8"))["cases"])
        return
    tiny = tiny_sets()
    sources = {"tiny": tiny} | {f"rank {r}": drawn_sets(tiny, r) for r in RANKS}
    saved = json.loads(target.read_text(encoding="utf-8"))["cases"] if given.kind else []
    at_hand = {Case(c["source"], c["kind"], c["dim"]): c["numbers"] for c in saved if c["kind"] != given.kind}
    results = []
    for case in CASES:
        found = at_hand.get(case) or coverage(sources[case.source], case, given.seeds)
        results.append({"source": case.source, "kind": case.kind, "dim": case.dim, "numbers": found})
        shown = [f"{v['blocks/covered']:.3f} ({v['all/covered']:.3f} all)" for v in found.values()]
        print(case, *shown, flush=True)
    content = {
        "command": f"python experiments/projection_coverage.py --seeds {given.seeds}",
        "seeds": given.seeds,
        "rows": ROWS,
        "shape": SHAPE,
        "versions": {v: version(v) for v in ("graddiag", "numpy", "torch", "transformers")},
        "cases": results,
    }
    target.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(results)


if __name__ == "__main__":
    main()
