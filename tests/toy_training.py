"""A small model with exact gradients, trained with momentum or Adam and probed as a monitor would.

The model is a vector w. A safety example is a vector z that points along a hidden direction in the first dimensions,
with the loss `log(1 + exp(-w z))`, nats. Any other example is an input x and a target y, with the loss of a Gaussian,
`(w x - y)^2 / 2`; the target is that of a teacher, and noise. A harmless teacher differs from the aligned model in
the task's dimensions alone: whether one of its examples pulls along or against safety is then a fair coin, of very
uneven sizes. An eroding teacher also wants the aligned model's weights along the hidden direction smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from graddiag.probes import Against, Probe

SAFE, TASK = 10, 30  # dimensions
ALIGNED = 10  # steps of gradient descent on safety examples: their loss is then a tenth of what it was, and falling
SPREAD = 0.5  # of safety examples; theirs is smaller than others', so that few of them know their mean gradient
BLOCKS = {"layers.0.w.weight": slice(0, SAFE + 15), "layers.1.w.weight": slice(SAFE + 15, SAFE + TASK)}


@dataclass(frozen=True)
class Batch:
    """Inputs [n, d], targets [n]; a NaN target marks a safety example."""

    x: np.ndarray
    y: np.ndarray

    def losses(self, w: np.ndarray) -> np.ndarray:
        out = self.x @ w
        return np.where(np.isnan(self.y), np.logaddexp(0, -out), np.square(out - np.nan_to_num(self.y)) / 2)

    def gradients(self, w: np.ndarray) -> np.ndarray:
        out = self.x @ w
        slope = np.where(np.isnan(self.y), -1 / (1 + np.exp(out)), out - np.nan_to_num(self.y))
        return slope[:, None] * self.x


Draw = Callable[[int, np.random.Generator], Batch]


@dataclass(frozen=True)
class Toy:
    """One world: the safety examples that are probed, the aligned model, and what a new task adds to its teacher."""

    probed: Batch
    aligned: np.ndarray
    task: np.ndarray
    safe: np.ndarray

    def harmless(self, n: int, rng: np.random.Generator) -> Batch:
        return _taught(self.aligned + self.task, n, rng)

    def eroding(self, n: int, rng: np.random.Generator, *, lean: float = 1.0) -> Batch:
        wanted = self.aligned + self.task
        wanted[:SAFE] *= 1 - lean
        return _taught(wanted, n, rng)

    def mix(self, n: int, rng: np.random.Generator) -> Batch:
        """What it was aligned on: safety examples and its old task, half and half."""
        half, old = safety(self.safe, n // 2, rng), _taught(self.aligned, n - n // 2, rng)
        return Batch(np.concatenate([half.x, old.x]), np.concatenate([half.y, old.y]))


def toy(seed: int, *, n_safety: int = 16) -> Toy:
    rng = np.random.default_rng(seed)
    safe = 2 * _unit(rng, SAFE)
    w = np.concatenate([np.zeros(SAFE), 1.5 * _unit(rng, TASK)])
    pool = safety(safe, 2_000, rng)
    for _ in range(ALIGNED):
        w[:SAFE] -= 0.5 * pool.gradients(w).mean(axis=0)[:SAFE]
    task = np.concatenate([np.zeros(SAFE), _unit(rng, TASK)])
    return Toy(safety(safe, n_safety, rng), w, task, safe)


def safety(safe: np.ndarray, n: int, rng: np.random.Generator) -> Batch:
    """Half of them mirror the other half in the task's dimensions: no task is for or against their mean there."""
    half = np.concatenate([safe, np.zeros(TASK)]) + SPREAD * rng.standard_normal((n // 2, SAFE + TASK))
    mirrored = half * np.where(np.arange(SAFE + TASK) < SAFE, 1, -1)
    return Batch(np.concatenate([half, mirrored]), np.full(2 * (n // 2), np.nan))


def probes(
    world: Toy, batch: Callable[[int, np.random.Generator], Batch], *, seed: int, steps: int = 200, every: int = 5,
    rate: float = 0.0005, adam: bool = False,
) -> Iterator[Probe]:  # fmt: skip
    """Trains on `batch(step, rng)` from the aligned model, and gives a probe at steps 0, every, 2 every, ..."""
    rng = np.random.default_rng([seed, 1])
    w, first, second = world.aligned.copy(), np.zeros(SAFE + TASK), np.zeros(SAFE + TASK)
    for step in range(steps):
        now = batch(step, rng)
        g = now.gradients(w).mean(axis=0)
        if adam:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            kept = 1 - np.array([0.9, 0.999]) ** (step + 1)
            update = rate * (first / kept[0]) / (np.sqrt(second / kept[1]) + 1e-8)
        else:
            first = 0.9 * first + g
            update = rate * first
        if step % every == 0:
            yield _probe(step, world.probed, w, now, update)
        w = w - update


def _probe(step: int, probed: Batch, w: np.ndarray, now: Batch, update: np.ndarray) -> Probe:
    s = probed.gradients(w).mean(axis=0)
    rows = now.gradients(w)
    return Probe(
        step=step,
        safety_losses=probed.losses(w),
        safety_norms={b: float(np.linalg.norm(s[at])) for b, at in BLOCKS.items()},
        gradient=_against(rows.mean(axis=0), s),
        ids=tuple(f"{step}-{k}" for k in range(len(rows))),
        dots=rows @ s,
        norms=np.linalg.norm(rows, axis=1),
        losses=now.losses(w),
        update=_against(update, s),
        predicted_change=-float(update @ s),
        seconds=0.01,
        step_seconds=0.1,
    )


def _against(x: np.ndarray, s: np.ndarray) -> Against:
    dot = {b: float(x[at] @ s[at]) for b, at in BLOCKS.items()}
    return Against(dot, {b: float(np.linalg.norm(x[at])) for b, at in BLOCKS.items()})


def _taught(teacher: np.ndarray, n: int, rng: np.random.Generator) -> Batch:
    x = rng.standard_normal((n, SAFE + TASK))
    return Batch(x, x @ teacher + rng.standard_normal(n))


def _unit(rng: np.random.Generator, n: int) -> np.ndarray:
    v = rng.standard_normal(n)
    return np.asarray(v / np.linalg.norm(v))
