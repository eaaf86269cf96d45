"""What the monitor costs, as a share of a step that is not monitored: each tier, per probed step and on average.

usage: python experiments/overhead.py [--model NAME] [--rows N] [--length N] [--safety N] [--rounds N]

A step is forward and backward pass and AdamW on N rows of the built-in set `insecure`, cut to `length` tokens; safety
are the first rows of the built-in set. All tiers are timed in turn in one process, round after round, and divided by
the unmonitored step of the same round; the first round only warms up. Run it alone.
Writes figures/overhead.json, .svg and .png.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from padding import padded
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import graddiag
from graddiag.alarms import Limits
from graddiag.blocks import select_blocks
from graddiag.data import read_set
from graddiag.encoding import encode
from graddiag.extraction import BATCH_TOKENS
from graddiag.monitor._batch_gradient import BatchGradient
from graddiag.monitor._guard import Guard
from graddiag.monitor._safety import measure_safety
from graddiag.monitor._standin import StandIn
from graddiag.projection import Toward
from graddiag.readings import bare_extractor

PLAIN = "not monitored"
EVERY = (10, 50)  # steps between probes, of which the average is given
RATE = 1e-6  # so small that all rounds train the same model
FREE = Limits(overhead=1e9)  # the cost guard would make probes rarer
Step = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What every tier trains: the model, its optimizer, one batch; and the safety examples."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]
    safety: tuple[dict[str, str], ...]
    length: int

    def passes(self) -> None:
        """Forward and backward pass."""
        self.model(**self.batch).loss.backward()

    def update(self) -> None:
        """What follows them."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def prepare(name: str, rows: int, length: int, safety: int) -> Work:
    """The model in training mode, and the first rows as a padded batch."""
    model, tokenizer = graddiag.load_model(name, device="cpu")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    encoded = encode(read_set("insecure", limit=rows), tokenizer, max_length=length).rows
    batch = padded(encoded)
    safe = tuple(
        {"prompt": e.messages[0].content, "completion": e.messages[-1].content}
        for e in read_set("safety", limit=safety).examples
    )
    return Work(model, tokenizer, optimizer, batch, safe, length)


def plain(work: Work) -> Step:
    """A step that nobody watches."""

    def step() -> None:
        work.passes()
        work.update()

    return step


def of_batch(work: Work) -> Step:
    """Safety pass, and the batch's gradient beside it: what the monitor does without looking at examples."""
    blocks = select_blocks(work.model, None)
    extractor = bare_extractor(work.model, blocks, Toward())
    rows = encode(read_set(list(work.safety)), work.tokenizer, max_length=work.length).rows

    def step() -> None:
        safety = measure_safety(extractor, rows, batch_tokens=BATCH_TOKENS)
        whole = {n: StandIn.of(m, None) for n, m in safety.means.items()}
        gradient = BatchGradient(blocks, whole, lambda: 1.0)
        with gradient.running(Guard()):
            work.passes()
        gradient.against()
        work.update()

    return step


def monitored(work: Work, **settings: object) -> Step:
    """A step of which every one is probed, the update included."""
    made: list[graddiag.Monitor] = []

    def step() -> None:
        if not made:
            made.append(
                graddiag.Monitor(
                    work.model,
                    work.tokenizer,
                    safety=list(work.safety),
                    every=1,
                    optimizer=work.optimizer,
                    max_length=work.length,
                    limits=FREE,
                    action="log",
                    strict=True,
                    **settings,
                )
            )
        with made[0].step(work.batch):
            work.passes()
        work.update()

    return step


def tiers(work: Work, folder: str) -> dict[str, Step]:
    """Everything that is timed, from less to more."""
    return {
        PLAIN: plain(work),
        "safety and the batch's gradient": of_batch(work),
        "each example, low rank, and the update": monitored(work),
        "each example, exactly, and the update": monitored(work, exact=True),
        "rows kept as well (logra 256)": monitored(work, projection="logra", folder=folder),
    }


def timed(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if k:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def shares(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and range of each one's share of the plain step of the same round, and what that is on average."""
    out = {}
    for name, mine in seconds.items():
        found = sorted(a / b for a, b in zip(mine, seconds[PLAIN], strict=True))
        middle = found[len(found) // 2]
        out[name] = {"median": middle, "low": found[0], "high": found[-1], "seconds": sorted(mine)[len(mine) // 2]}
        out[name] |= {f"average_every_{k}": 1 + (middle - 1) / k for k in EVERY}
    return out


def draw(found: dict[str, dict[str, float]], target: Path) -> None:
    """Each tier's share of the plain step, its range over the rounds, and the average over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in found if n != PLAIN]
    figure, axes = plt.subplots(figsize=(9, 0.6 * len(names) + 1.4), layout="constrained")
    for k, name in enumerate(reversed(names)):
        r = found[name]
        axes.barh(k, r["median"], color="#0072B2", height=0.6)
        axes.plot([r["low"], r["high"]], [k, k], color="black", linewidth=1.5)
        average = ", ".join(f"{r[f'average_every_{e}']:.3f} every {e}" for e in EVERY)
        axes.text(r["high"], k, f"  {average}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.5 * max(r["high"] for r in found.values()))
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel(
        "share of a step that is not monitored: median, range over rounds; beside it the average of all steps"
    )
    for form in ("svg", "png"):
        figure.savefig(target.with_suffix(f".{form}"), dpi=150)


def main() -> None:
    """Times all tiers, prints a table and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=4, help="of the batch")
    parser.add_argument("--length", type=int, default=256, help="tokens, at most")
    parser.add_argument("--safety", type=int, default=8, help="examples")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    given = parser.parse_args()
    work = prepare(given.model, given.rows, given.length, given.safety)
    with tempfile.TemporaryDirectory() as folder:
        found = shares(timed(tiers(work, folder), given.rounds))
    facts = {k: v for k, v in vars(given).items() if k != "out"} | {
        "tokens": int(work.batch["attention_mask"].sum()),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {p: importlib.metadata.version(p) for p in ("graddiag", "torch", "transformers")},
    }
    target = given.out / "overhead"
    target.with_suffix(".json").write_text(json.dumps({"facts": facts, "results": found}, indent=1) + "\n")
    draw(found, target)
    print(json.dumps(facts))
    for name, r in found.items():
        averages = "  ".join(f"{r[f'average_every_{e}']:.3f} every {e}" for e in EVERY)
        print(f"{name:42s} {r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}] {r['seconds']:6.2f} s  {averages}")


if __name__ == "__main__":
    main()
