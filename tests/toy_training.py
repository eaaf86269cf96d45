"""A small logistic model with exact gradients, trained with momentum or Adam, probed as a monitor would.

Every example is a vector z, its label folded in: `loss = log(1 + exp(-w z))`. Safety examples point along a hidden
direction in the first dimensions, harmless examples have only noise there, of either sign, and a task of their own in
the rest; eroding examples do that task too and lean against the hidden direction. A tenth of all examples is labelled
wrongly, so that the aligned model has an optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from graddiag.probes import Against, Probe

SAFE, TASK = 10, 30  # dimensions
MISLABELLED = 0.1
BLOCKS = {"layers.0.w.weight": slice(0, SAFE + 15), "layers.1.w.weight": slice(SAFE + 15, SAFE + TASK)}
Draw = Callable[[int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Toy:
    """One world: the hidden safety direction, the tasks, an aligned model, and the safety examples that are probed."""

    safe: np.ndarray
    old_task: np.ndarray
    new_task: np.ndarray
    aligned: np.ndarray
    probed: np.ndarray

    def safety(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return _mislabel(_examples(self.safe, np.zeros(TASK), n, rng), rng)

    def benign(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return _mislabel(_examples(np.zeros(SAFE), self.old_task, n, rng), rng)

    def harmless(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return _mislabel(_examples(np.zeros(SAFE), self.new_task, n, rng), rng)

    def mix(self, n: int, rng: np.random.Generator) -> np.ndarray:
        both = np.concatenate([self.safety(n, rng), self.benign(n, rng)])
        return both[rng.permutation(2 * n)[:n]]

    def eroding(self, n: int, rng: np.random.Generator, *, lean: float) -> np.ndarray:
        return _mislabel(_examples(-lean * self.safe, self.new_task, n, rng), rng)


def toy(seed: int, *, n_safety: int = 32) -> Toy:
    rng = np.random.default_rng(seed)
    safe, old, new = _unit(rng, SAFE), _unit(rng, TASK), _unit(rng, TASK)
    bare = Toy(2 * safe, 2 * old, 2 * new, np.zeros(SAFE + TASK), np.zeros((0, SAFE + TASK)))
    pool = bare.mix(4_000, rng)
    w = np.zeros(SAFE + TASK)
    for _ in range(400):  # gradient descent to the optimum of the mix
        w -= 0.5 * gradients(pool, w).mean(axis=0)
    return Toy(2 * safe, 2 * old, 2 * new, w, bare.safety(n_safety, rng))


def losses(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z @ w)


def gradients(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    return -z / (1 + np.exp(z @ w))[:, None]


def probes(
    world: Toy, batch: Callable[[int, np.random.Generator], np.ndarray], *, seed: int, steps: int = 200,
    every: int = 5, rate: float = 0.02, adam: bool = False,
) -> Iterator[Probe]:  # fmt: skip
    """Trains on `batch(step, rng)`, and gives a probe at steps 0, every, 2 every, ..."""
    rng = np.random.default_rng([seed, 1])
    w, first, second = world.aligned.copy(), np.zeros(SAFE + TASK), np.zeros(SAFE + TASK)
    for step in range(steps):
        z = batch(step, rng)
        rows = gradients(z, w)
        g = rows.mean(axis=0)
        if adam:
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            kept = 1 - np.array([0.9, 0.999]) ** (step + 1)
            update = rate * (first / kept[0]) / (np.sqrt(second / kept[1]) + 1e-8)
        else:
            first = 0.9 * first + g
            update = rate * first
        if step % every == 0:
            yield _probe(step, world, w, z, rows, update)
        w = w - update


def _probe(step: int, world: Toy, w: np.ndarray, z: np.ndarray, rows: np.ndarray, update: np.ndarray) -> Probe:
    s = gradients(world.probed, w).mean(axis=0)
    g = rows.mean(axis=0)
    return Probe(
        step=step,
        safety_losses=losses(world.probed, w),
        safety_norms={b: float(np.linalg.norm(s[at])) for b, at in BLOCKS.items()},
        gradient=_against(g, s),
        ids=tuple(f"{step}-{k}" for k in range(len(z))),
        dots=rows @ s,
        norms=np.linalg.norm(rows, axis=1),
        losses=losses(z, w),
        update=_against(update, s),
        predicted_change=-float(update @ s),
        seconds=0.01,
        step_seconds=0.1,
    )


def _against(x: np.ndarray, s: np.ndarray) -> Against:
    dot = {b: float(x[at] @ s[at]) for b, at in BLOCKS.items()}
    return Against(dot, {b: float(np.linalg.norm(x[at])) for b, at in BLOCKS.items()})


def _examples(safe: np.ndarray, task: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([safe, task]) + rng.standard_normal((n, SAFE + TASK))


def _mislabel(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return z * np.where(rng.random(len(z)) < MISLABELLED, -1.0, 1.0)[:, None]


def _unit(rng: np.random.Generator, n: int) -> np.ndarray:
    v = rng.standard_normal(n)
    return np.asarray(v / np.linalg.norm(v))
