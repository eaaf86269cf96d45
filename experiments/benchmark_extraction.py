"""What extraction costs, as a share of a training step's forward and backward pass on the same batches.

usage: python experiments/benchmark_extraction.py [--data DIR] [--pairs N] [--rounds N] [--model NAME]

Real pairs from DIR (insecure.jsonl, educational.jsonl) where it is given, else the built-in sets. Everything is timed
in turn in one process, round after round, and divided by the plain step of the same round; peak memory is that of a
process of its own, without the peers. bergson and dattri-llm are timed in the same turns where they can be imported.
Run it alone.
Writes figures/benchmark_extraction.json, .svg and .png.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from benchmark_memory import growth_of_peak
from benchmark_peers import PEERS, Step
from transformers import PreTrainedModel

from graddiag.data import read_set
from graddiag.encoding import Encoded, batches, encode
from graddiag.extraction import ready
from graddiag.extractor import Extractor
from graddiag.head import Batch, loss_and_backward, split_model
from graddiag.mean_gradient import KnownMean, MeanGradient
from graddiag.models import load_model

BATCH_TOKENS = 1536  # padded tokens per batch: about two pairs of the real data
LONGEST = 384  # tokens; longer rows would make a round so long that the machine changes within it
PLAIN = "plain forward and backward"
AIMS = {
    "losses only": 0.28,
    "all linear blocks, logra 256": 0.58,
    "all linear blocks, exact pairs and alignment": 0.95,
    "the same with token scores": 1.25,
    "last quarter of the layers, logra 256": 0.38,
    "last layer, logra 256": 0.27,
}
FLOOR = "activation gradients only"
SPARSE = "exact pairs and alignment, sjlt 2048"  # what compare chooses for this model


@dataclass(frozen=True)
class Work:
    """The same batches for everyone: rows, and the pairs among them."""

    model: PreTrainedModel
    batches: tuple[tuple[list[Encoded], list[tuple[int, int]]], ...]
    make: Callable[..., Extractor]

    def padded(self) -> list[Batch]:
        """The batches as padded tensors."""
        any_extractor = self.make(blocks=None)
        return [any_extractor.collate(rows) for rows, _ in self.batches]

    def layers(self, last: int) -> list[str]:
        """Patterns of the last layers' linear weights."""
        n = self.model.config.num_hidden_layers
        return [f"model.layers.{k}.*_proj" for k in range(n - last, n)]


def prepare(model_name: str, data: Path | None, n_pairs: int) -> Work:
    """The first pairs of both sets that are short enough, the two members of a pair in one batch."""
    model, tokenizer = load_model(model_name, device="cpu")
    sides: list[Sequence[Encoded]] = []
    for name in ("insecure", "educational"):
        source = str(data / f"{name}.jsonl") if data else name
        sides.append(encode(read_set(source, limit=10 * n_pairs), tokenizer, max_length=1024).rows)
    both = [p for p in zip(*sides, strict=True) if max(len(r.tokens) for r in p) <= LONGEST][:n_pairs]
    sides = [[p[0] for p in both], [p[1] for p in both]]
    rows = [r for side in sides for r in side]
    units = [(k, len(sides[0]) + k) for k in range(len(sides[0]))]
    made = []
    for index in batches(rows, batch_tokens=BATCH_TOKENS, units=units):
        made.append(([rows[i] for i in index], [(k, k + 1) for k in range(0, len(index), 2)]))

    def make(blocks: Sequence[str] | None, projection: str = "logra", dim: int = 256) -> Extractor:
        return ready(
            model, tokenizer, blocks=blocks, projection=projection, dim=dim, seed=0, target="answer", max_length=1024
        )

    return Work(model, tuple(made), make)


def plain(work: Work) -> Step:
    """What a training step does without its optimizer: full logits, weight gradients of every parameter."""
    padded = work.padded()

    def step() -> None:
        work.model.requires_grad_(True)
        for b in padded:
            mask = (torch.arange(b.tokens.shape[1]) < torch.tensor(b.lengths)[:, None]).long()
            logits = work.model(input_ids=b.tokens, attention_mask=mask, use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), b.targets, ignore_index=-100)
            losses.backward()
            work.model.zero_grad(set_to_none=True)
        work.model.requires_grad_(False)

    return step


def floor(work: Work) -> Step:
    """Forward and backward with frozen weights, the head at target tokens, nothing recorded."""
    padded, split = work.padded(), split_model(work.model)
    root = work.model.get_input_embeddings()

    def step() -> None:
        work.model.requires_grad_(False)
        handle = root.register_forward_hook(lambda *a: a[2].detach().requires_grad_(True))
        for b in padded:
            loss_and_backward(work.model, split, b)
        handle.remove()

    return step


def extraction(
    work: Work,
    *,
    blocks: Sequence[str] | None = None,
    exact: bool = False,
    token_scores: bool = False,
    kind: str = "logra",
    dim: int = 256,
) -> Step:
    """The tool's own pass over the batches."""
    ex = work.make(blocks, kind, dim)
    known = mean_of(ex, work).wanting(token_scores=token_scores, optimizer=None) if exact else None

    def step() -> None:
        for rows, pairs in work.batches:
            ex.measure(rows, pairs=pairs if exact else (), known=known)

    return step


def mean_of(ex: Extractor, work: Work) -> KnownMean:
    """A mean gradient to multiply with: that of the left rows of the first batch."""
    mean, rows = MeanGradient(), work.batches[0][0][::2]
    table = ex.measure(rows, mean=mean).table(range(len(rows)), rows, ex.space, ex.provenance("first batch"))
    return mean.known(table)


def losses(work: Work) -> Step:
    """Token losses without gradients."""
    ex = work.make(blocks=None)

    def step() -> None:
        for rows, _ in work.batches:
            ex.token_losses(rows)

    return step


def everything(work: Work) -> dict[str, Callable[[], Step | None]]:
    """All that is timed, by name: what makes it ready; None for a peer that cannot be imported."""
    n = work.model.config.num_hidden_layers
    ours: dict[str, Callable[[], Step | None]] = {
        PLAIN: lambda: plain(work),
        "losses only": lambda: losses(work),
        FLOOR: lambda: floor(work),
        "all linear blocks, logra 256": lambda: extraction(work),
        "all linear blocks, exact pairs and alignment": lambda: extraction(work, exact=True),
        "the same with token scores": lambda: extraction(work, exact=True, token_scores=True),
        SPARSE: lambda: extraction(work, exact=True, kind="sjlt", dim=2048),
        "last quarter of the layers, logra 256": lambda: extraction(work, blocks=work.layers(n // 4)),
        "last layer, logra 256": lambda: extraction(work, blocks=work.layers(1)),
    }
    return ours | {name: partial(make, work.model, work.padded()) for name, make in PEERS.items()}


def timed(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, in turn; a first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:
                seconds[name].append(time.perf_counter() - start)
            gc.collect()
        shares = ", ".join(f"{v[-1] / seconds[PLAIN][-1]:.2f}" for v in seconds.values() if v)
        print(f"round {round_} of {rounds}: {shares}", file=sys.stderr)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and range of each one's share of the plain step of the same round."""
    out = {}
    for name, mine in seconds.items():
        shares = sorted(a / b for a, b in zip(mine, seconds[PLAIN], strict=True))
        middle = sorted(mine)[len(mine) // 2]
        out[name] = {"median": shares[len(shares) // 2], "low": shares[0], "high": shares[-1], "seconds": middle}
    return out


def peak(arguments: Sequence[str], name: str) -> float:
    """MiB of memory at the peak above what the loaded model takes, in a process that runs one of them once."""
    command = [sys.executable, __file__, *arguments, "--only", name]
    # glibc raises its threshold as large pieces are freed, and then keeps them: held still, the peak is what is used
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.strip().splitlines()[-1])


def run_only(work: Work, name: str) -> float:
    """One of them, once, and the growth of the peak of resident memory, MiB."""
    step = everything(work)[name]()
    assert step is not None
    return growth_of_peak(step)


def draw(found: dict[str, dict[str, float]], target: Path) -> None:
    """Each one's share of the plain step, its range over the rounds, and the aim."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in found if n != PLAIN]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(names) + 1.4), layout="constrained")
    for k, name in enumerate(reversed(names)):
        r = found[name]
        axes.barh(k, r["median"], color="#0072B2" if name not in PEERS else "#999999", height=0.6)
        axes.plot([r["low"], r["high"]], [k, k], color="black", linewidth=1.5)
        if name in AIMS:
            axes.plot([AIMS[name]] * 2, [k - 0.4, k + 0.4], color="#D55E00", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel("share of a plain forward and backward pass\nmedian, range over rounds; orange: aim")
    for form in ("svg", "png"):
        figure.savefig(target.with_suffix(f".{form}"), dpi=150)


def main() -> None:
    """Times everything in turn, measures memory one by one, prints a table and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--only", help="run one of them once and print its peak memory, MiB")
    given = parser.parse_args()
    work = prepare(given.model, given.data, given.pairs)
    if given.only:
        print(run_only(work, given.only))
        return
    ready_to_run = {name: make() for name, make in everything(work).items()}
    steps = {name: step for name, step in ready_to_run.items() if step is not None}
    found = ratios(timed(steps, given.rounds))
    rows = [r for batch, _ in work.batches for r in batch]
    facts = {
        "rows": len(rows),
        "tokens": sum(len(r.tokens) for r in rows),
        "target_tokens": sum(r.n_targets for r in rows),
        "batches": len(work.batches),
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {p: importlib.metadata.version(p) for p in ("graddiag", "torch", "transformers")},
        "model": given.model,
        "data": "real pairs" if given.data else "built-in sets",
    }
    target = Path("figures") / "benchmark_extraction"
    keep({"facts": facts, "aims": AIMS, "results": found}, target)
    shared = [f"--pairs={given.pairs}", f"--model={given.model}", *([f"--data={given.data}"] if given.data else [])]
    for name in found if not given.no_memory else ():
        if name not in PEERS:
            found[name]["peak_mib"] = peak(shared, name)
    keep({"facts": facts, "aims": AIMS, "results": found}, target)
    print(json.dumps(facts))
    for name, r in found.items():
        aim = f"   aim {AIMS[name]:.2f}" if name in AIMS else ""
        memory = f"{r['peak_mib']:7.0f} MiB" if "peak_mib" in r else ""
        print(f"{name:46s} {r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}] {r['seconds']:6.2f} s {memory}{aim}")


def keep(numbers: dict[str, object], target: Path) -> None:
    """Writes the numbers and their figure."""
    target.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    draw(numbers["results"], target)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
