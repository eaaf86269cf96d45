"""What do the statistics take: many permutations in many blocks, and more rows than a matrix of all of them allows?

usage: python experiments/benchmark_statistics.py [--rounds N]

One thread and two, each case in a process of its own: seconds by the clock and of the processor, which count less of
what else the machine does, and MiB of arrays at the peak of a further round, beside the drawn rows. 10,000 sign flips
of 200 pairs in each of 200 blocks, with the family-wise p over them: of rows of 256 numbers, through their products,
and of 64, through their sums. Then conflict and framing of 2 x 6,000 drawn rows of 256 numbers in 4 blocks, 30
clusters, in tiles. Writes figures/benchmark_statistics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

from graddiag.analyzers import conflict, framing
from graddiag.comparison import Comparison
from graddiag.permutations import familywise_p, sign_flips, sign_flips_of_norm
from graddiag.signals import Block, Provenance, Signals, Space

TARGET = Path("figures/benchmark_statistics.json")
PAIRS, BLOCKS = 200, 200
ROWS, WIDE, FEW_BLOCKS, CLUSTERS = 6_000, 256, 4, 30
THREADS = ("1", "2")
CASES = {"flips, 256 numbers": 256, "flips, 64 numbers": 64, "conflict and framing, 2 x 6,000 rows": ROWS}


def flips(numbers: int) -> Callable[[], object]:
    """10,000 sign flips per block, and the family-wise p."""
    blocks = np.random.default_rng(0).normal(size=(BLOCKS, PAIRS, numbers)).astype(np.float32)

    def run() -> object:
        wide = (block.astype(np.float64) for block in blocks)
        return familywise_p([sign_flips(d) if numbers < PAIRS else sign_flips_of_norm(d @ d.T) for d in wide])

    return run


def drawn(name: str, seed: int) -> Signals:
    """A table of independent normal rows."""
    rng, n = np.random.default_rng(seed), ROWS
    blocks = tuple(Block(f"layers.{k}.weight", (64, 64)) for k in range(FEW_BLOCKS))
    rows = {b.name: rng.normal(size=(n, WIDE)).astype(np.float32) for b in blocks}
    one = np.ones(n, dtype=np.int64)
    return Signals(
        space=Space("tokenizer", "template", "answer", 512, blocks, "logra", WIDE, 0, "probe", "float32"),
        provenance=Provenance("model", "main", "weights", name),
        ids=tuple(f"row-{i}" for i in range(n)),
        clusters=tuple(f"c{i % CLUSTERS}" for i in range(n)),
        digests=tuple(f"{name}:{i}" for i in range(n)),
        loss=np.ones(n),
        token_loss=(np.ones(1),) * n,
        target_ids=tuple(np.array([i]) for i in range(n)),
        n_tokens=one,
        length=2 * one,
        n_cut=0 * one,
        finite=one > 0,
        norms={b: np.linalg.norm(g, axis=1) for b, g in rows.items()},
        gradients=rows,
    )


def many_rows() -> Callable[[], object]:
    """Conflict and framing of more rows than fit."""
    comparison = Comparison(drawn("left", 1), drawn("right", 2))
    return lambda: (conflict(comparison), framing(comparison))


def measured(case: str, rounds: int) -> dict[str, object]:
    """Seconds of each round, by the clock and of the processor, and MiB of arrays at the peak of a further one."""
    run = many_rows() if CASES[case] == ROWS else flips(CASES[case])
    seconds, busy = [], []
    for _ in range(1 if CASES[case] == ROWS else rounds):
        start, used = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - used)
    tracemalloc.start()
    run()
    return {"seconds": seconds, "processor": busy, "mib": tracemalloc.get_traced_memory()[1] / 2**20}


def main() -> None:
    """Runs every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measured(given.case, given.rounds)))
        return
    found: dict[str, dict[str, object]] = {}
    for case, threads in product(CASES, THREADS):
        env = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, __file__, "--rounds", str(given.rounds), "--case", case]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        found.setdefault(case, {})[f"threads {threads}"] = json.loads(done.stdout)
        print(case, threads, done.stdout, flush=True)
    versions = {v: version(v) for v in ("graddiag", "numpy", "scipy")}
    content = {"command": shlex.join(["python", *sys.argv]), "versions": versions, "cases": found}
    TARGET.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
