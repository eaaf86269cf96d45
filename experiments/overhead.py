"""What the monitor costs, as a share of a step that is not monitored: each tier, per probed step and on average.

usage: python experiments/overhead.py [--model NAME] [--rows N] [--length N] [--safety N] [--rounds N]

A step is forward and backward pass and AdamW on N rows of the built-in set `insecure`, cut to `length` tokens; safety
are the first rows of the built-in set. All tiers are timed in turn in one process, round after round, in an order that
turns by one each round, and divided by the unmonitored step of the same round; the first round only warms up.

Of each tier two shares: of the whole, and of the step alone, from the loop's own forward pass to the update's end, as
if the safety gradient had been there (its pass, and the stand-in of low rank that is made of it, are timed by
themselves). The aims, 1.05 for what examples have to do with safety and 1.12 for kept rows, are of the step alone.
Run it alone. Writes figures/overhead.json, .svg and .png.
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
from overhead_figure import AIMS, BATCH, EVERY, draw, line
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
from graddiag.monitor._monitor import RANK
from graddiag.monitor._safety import measure_safety
from graddiag.monitor._standin import StandIn
from graddiag.projection import Toward
from graddiag.readings import bare_extractor

PLAIN = "not monitored"
RATE = 1e-6  # so small that all rounds train the same model
FREE = Limits(overhead=1e9)  # the cost guard would make probes rarer
Step = Callable[[], "Taken"]


@dataclass(frozen=True)
class Taken:
    """Seconds of a step: before the loop's own forward pass, and from there on."""

    before: float
    step: float

    @property
    def whole(self) -> float:
        """Both."""
        return self.before + self.step


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


def clocked(before: Callable[[], object], step: Callable[[], object]) -> Taken:
    """Does both and says how long each took."""
    start = time.perf_counter()
    before()
    middle = time.perf_counter()
    step()
    return Taken(middle - start, time.perf_counter() - middle)


def plain(work: Work) -> Step:
    """A step that nobody watches."""

    def step() -> None:
        work.passes()
        work.update()

    return lambda: clocked(lambda: None, step)


def of_batch(work: Work) -> Step:
    """Safety pass, and the batch's gradient beside it: what the monitor does without looking at examples."""
    blocks = select_blocks(work.model, None)
    extractor = bare_extractor(work.model, blocks, Toward())
    rows = encode(read_set(list(work.safety)), work.tokenizer, max_length=work.length).rows
    whole: dict[str, StandIn] = {}

    def before() -> None:
        safety = measure_safety(extractor, rows, batch_tokens=BATCH_TOKENS)
        whole.update({n: StandIn.of(m, None) for n, m in safety.means.items()})

    def step() -> None:
        gradient = BatchGradient(blocks, whole, lambda: 1.0)
        with gradient.running(Guard()):
            work.passes()
        gradient.against()
        work.update()

    return lambda: clocked(before, step)


def stand_in(work: Work) -> Step:
    """The safety pass; and instead of a step, the stand-in of low rank that is made of its gradient."""
    extractor = bare_extractor(work.model, select_blocks(work.model, None), Toward())
    rows = encode(read_set(list(work.safety)), work.tokenizer, max_length=work.length).rows
    means: dict[str, Tensor] = {}
    return lambda: clocked(
        lambda: means.update(measure_safety(extractor, rows, batch_tokens=BATCH_TOKENS).means),
        lambda: [StandIn.of(m, RANK) for m in means.values()],
    )


def monitored(work: Work, *, update: bool = False, **settings: object) -> Step:
    """A step of which every one is probed, the update too if wanted."""
    monitor: list[graddiag.Monitor] = []

    def before() -> None:
        if not monitor:
            monitor.append(
                graddiag.Monitor(
                    work.model,
                    work.tokenizer,
                    safety=list(work.safety),
                    every=1,
                    optimizer=work.optimizer if update else None,
                    max_length=work.length,
                    limits=FREE,
                    action="log",
                    strict=True,
                    **settings,
                )
            )
        monitor[0].begin(work.batch)

    def step() -> None:
        work.passes()
        monitor[0].end()
        work.update()

    return lambda: clocked(before, step)


def tiers(work: Work, folder: str) -> dict[str, Step]:
    """Everything that is timed, from less to more."""
    return {
        PLAIN: plain(work),
        "stand-in of low rank, made": stand_in(work),
        BATCH: of_batch(work),
        "each example, low rank": monitored(work),
        "each example, exactly": monitored(work, exact=True),
        "each example, low rank, and the update": monitored(work, update=True),
        "rows kept as well (logra 256)": monitored(work, projection="logra", folder=folder),
    }


def timed(steps: dict[str, Step], rounds: int) -> dict[str, list[Taken]]:
    """What each takes, in turn, round after round."""
    seconds: dict[str, list[Taken]] = {name: [] for name in steps}
    names = list(steps)
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            found = steps[name]()
            if k:
                seconds[name].append(found)
    return seconds


def spread(found: list[float]) -> dict[str, float]:
    """Median, quartiles and range."""
    ordered = sorted(found)
    n = len(ordered)
    return {
        "median": ordered[n // 2],
        "lower": ordered[n // 4],
        "upper": ordered[-1 - n // 4],
        "low": ordered[0],
        "high": ordered[-1],
    }


def shares(seconds: dict[str, list[Taken]]) -> dict[str, dict[str, object]]:
    """Each one's share of the plain step of the same round: of the whole, and of the step alone; the latter beside the
    step that reads the batch's gradient alone, too."""
    out: dict[str, dict[str, object]] = {}
    for name, mine in seconds.items():
        beside = zip(mine, seconds[PLAIN], seconds[BATCH], strict=True)
        ratios = [(m.whole / p.step, m.step / p.step, m.step / b.step) for m, p, b in beside]
        whole, alone, of_batch = (spread(list(column)) for column in zip(*ratios, strict=True))
        averages = {f"average_every_{k}": 1 + (whole["median"] - 1) / k for k in EVERY}
        out[name] = {
            **whole,
            **averages,
            "seconds": spread([m.whole for m in mine])["median"],
            "step_alone": alone,
            "beside_the_batch": of_batch,
            "aim": AIMS.get(name),
        }
    return out


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
        print(line(name, r))


if __name__ == "__main__":
    main()
