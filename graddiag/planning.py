"""What a comparison would cost, before it is run: rows, tokens, memory, disk, time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import psutil

from graddiag.capacity import Size
from graddiag.edits import SIDES, SUFFIX
from graddiag.encoding import Encoded, EncodedSet
from graddiag.extractor import Extractor
from graddiag.progress import clock
from graddiag.signals import Block, Signals

_TRIAL_TOKENS = 256  # enough for a rate, small enough to be over at once
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """Rows and tokens per set, bytes of memory and disk, seconds; `tokens_per_second` was measured on a few rows.

    `memory` is what measuring takes, `analysis` what the rows of all sets and their analysis do afterwards, at most.
    """

    rows: Mapping[str, int]
    tokens: Mapping[str, int]
    targets: Mapping[str, int]
    blocks: int
    parameters: int
    memory: int
    disk: int
    tokens_per_second: float
    seconds: float
    free_memory: int
    turns: int
    dim: int
    projection: str
    note: str = ""
    analysis: int = 0

    def summary(self) -> dict[str, float]:
        """Flat keys: `plan/rows:ROLE`, `plan/tokens:ROLE`, bytes and seconds."""
        flat: dict[str, float] = {f"plan/rows:{k}": v for k, v in self.rows.items()}
        flat |= {f"plan/tokens:{k}": v for k, v in self.tokens.items()}
        flat |= {f"plan/target_tokens:{k}": v for k, v in self.targets.items()}
        rest = ("blocks", "parameters", "memory", "disk", "tokens_per_second", "seconds", "free_memory", "turns", "dim")
        return flat | {f"plan/{k}": getattr(self, k) for k in rest} | {"plan/analysis_memory": self.analysis}

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        sets = [
            f"{role:<18} {n:>6,} rows {self.tokens[role]:>10,} tokens {self.targets[role]:>10,} targets"
            for role, n in self.rows.items()
        ]
        enough = (
            "" if self.memory <= self.free_memory else "  More than is free: use a smaller --batch-tokens or --dtype."
        )
        too_many = "" if self.analysis <= self.free_memory else "  More than is free: use --limit or a smaller --dim."
        in_turns = f", in {self.turns} turns (--mean-memory)" if self.turns > 1 else ""
        return [
            *sets,
            f"{self.blocks} blocks of {self.parameters:,} parameters{in_turns}",
            f"rows    {self.projection}{'. ' if self.note else ''}{self.note}",
            f"memory  about {_bytes(self.memory)} ({_bytes(self.free_memory)} free).{enough}",
            f"        afterwards, rows and their analysis up to {_bytes(self.analysis)}.{too_many}",
            f"disk    about {_bytes(self.disk)}",
            f"time    about {clock(self.seconds)}, at {self.tokens_per_second:,.0f} tokens/s measured on a few rows",
        ]


def _bytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def plan(
    extractor: Extractor,
    sets: Mapping[str, EncodedSet],
    turns: Sequence[Sequence[str]],
    size: Size,
    *,
    batch_tokens: int,
    exact_pairs: bool,
    adam: bool = False,
) -> Plan:
    """The cost of measuring these sets; a few rows are measured for the rate, nothing is written.

    Each turn of blocks is taken to last as long as one for all of them: it lasts less, by what the others would cost.
    Token scores and the Adam form are not in the time.
    """
    blocks = [b.block for b in extractor.blocks]
    rows = {role: len(s.rows) for role, s in sets.items()}
    tokens = {role: sum(len(r.tokens) for r in s.rows) for role, s in sets.items()}
    rate = _rate(extractor, [r for s in sets.values() for r in s.rows])
    parameters = sum(math.prod(b.shape) for b in blocks)
    longest = max(len(r.tokens) for s in sets.values() for r in s.rows)
    return Plan(
        rows=rows,
        tokens=tokens,
        targets={role: sum(r.n_targets for r in s.rows) for role, s in sets.items()},
        blocks=len(blocks),
        parameters=parameters,
        memory=_memory(extractor, blocks, max(batch_tokens, longest))
        + ("safety" in sets) * _means(blocks, turns, adam=adam),
        disk=_disk(extractor, blocks, rows, with_mean="safety" in sets, exact_pairs=exact_pairs),
        tokens_per_second=rate,
        seconds=len(turns) * (sum(tokens.values()) + (exact_pairs and _again(tokens))) / rate,
        free_memory=psutil.virtual_memory().available,
        turns=len(turns),
        dim=extractor.projector.dim,
        projection=f"{extractor.projector.kind}, {extractor.projector.dim} numbers per row and block",
        analysis=size.total,
    )


def size_of(extractor: Extractor, sets: Mapping[str, EncodedSet], saved: Mapping[str, Signals]) -> Size:
    """How large the comparison of these sets and saved tables is."""
    numbers = [extractor.projector.size(b.block) for b in extractor.blocks]
    rows = {role: len(s.rows) for role, s in sets.items()} | {role: len(t) for role, t in saved.items()}
    return Size(rows, sum(numbers), max(numbers), len(numbers))


def _again(tokens: Mapping[str, int]) -> int:
    """Tokens of the side that is not edited where the other one is: products with the edited rows need it again."""
    return sum(tokens.get(s, 0) for s in SIDES if s + SUFFIX not in tokens) if _is_edited(tokens) else 0


def _is_edited(roles: Collection[str]) -> bool:
    return any(s + SUFFIX in roles for s in SIDES)


def _rate(extractor: Extractor, rows: list[Encoded]) -> float:
    trial: list[Encoded] = []
    for row in sorted(rows, key=lambda r: len(r.tokens))[len(rows) // 2 :]:
        trial.append(row)
        if sum(len(r.tokens) for r in trial) >= _TRIAL_TOKENS:
            break
    extractor.measure(trial[:1])
    start = time.perf_counter()
    extractor.measure(trial)
    return sum(len(r.tokens) for r in trial) / (time.perf_counter() - start)


def _means(blocks: list[Block], turns: Sequence[Sequence[str]], *, adam: bool) -> int:
    """The safety mean and its sum, and Adam's two moments, of the largest turn."""
    size = {b.name: math.prod(b.shape) * _FLOAT for b in blocks}
    return (4 if adam else 2) * max(sum(size[name] for name in names) for names in turns)


def _memory(extractor: Extractor, blocks: list[Block], batch_tokens: int) -> int:
    """Weights, two gradients of the largest block, inputs and outputs of the blocks for one batch."""
    weights = sum(p.numel() * p.element_size() for p in extractor.model.parameters())
    kept = sum(sum(b.shape[-2:]) for b in blocks) * batch_tokens * _FLOAT
    work = 2 * max(math.prod(b.shape) for b in blocks) * _FLOAT
    return weights + 2 * kept + work


def _disk(
    extractor: Extractor, blocks: list[Block], rows: Mapping[str, int], *, with_mean: bool, exact_pairs: bool
) -> int:
    row = sum(extractor.projector.size(b) * _FLOAT + 16 for b in blocks)
    pairs = min(rows.get("left", 0), rows.get("right", 0)) * len(blocks) * 16 if exact_pairs else 0
    pairs *= 2 if _is_edited(rows) else 1
    means = sum(math.prod(b.shape) for b in blocks) * _FLOAT if with_mean else 0
    return row * sum(rows.values()) + pairs + means
