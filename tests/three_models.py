"""One set of rows as it was read under several models: hidden states and losses that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from tables import only_read, table_of

from graddiag.comparison import Comparison
from graddiag.signals import Signals

POSITION = "first:10"
LAYERS, DIM, N = 3, 12, 24
Layers = Sequence[Float[np.ndarray, "n d"]]


def read_under(
    states: Mapping[str, Layers],
    *,
    name: str = "harmful",
    position: str = POSITION,
    ids: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None,
) -> dict[str, Signals]:
    """The table of each model, with its states at every layer; row i is in cluster i mod 4 unless told otherwise."""
    n = len(next(iter(states.values()))[0])
    table = table_of({"b": np.zeros((n, 1))}, name=name, ids=ids, clusters=clusters)
    return {model: _with_states(only_read(table, model=model), layers, position) for model, layers in states.items()}


def _with_states(signals: Signals, layers: Layers, position: str) -> Signals:
    states = {f"{k}/{position}": h for k, h in enumerate(layers)}
    return replace(signals, space=replace(signals.space, states=tuple(states)), states=states)


def shifts(tables: Mapping[str, Signals]) -> tuple[Comparison, Comparison]:
    """Aligned and base, tuned and aligned: what `direction` asks for."""
    return Comparison(tables["aligned"], tables["base"]), Comparison(tables["tuned"], tables["aligned"])


@dataclass(frozen=True)
class World:
    """Three models whose mean states are known: those of aligned minus base and tuned minus aligned per layer, [l, d].

    Every model adds noise of its own: an effect of the row's cluster and one of the row, each of standard deviation
    `noise` per dimension. `sizes` are the rows of each cluster.
    """

    alignment: Float[np.ndarray, "l d"]
    tuning: Float[np.ndarray, "l d"]
    sizes: tuple[int, ...]
    noise: float = 1.0

    def draw(self, rng: np.random.Generator, name: str = "harmful") -> dict[str, Signals]:
        """The three tables of one experiment."""
        codes = np.repeat(np.arange(len(self.sizes)), self.sizes)
        rows = rng.normal(size=(*self.alignment.shape[:1], len(codes), self.alignment.shape[1]))
        means = {"base": 0 * self.alignment, "aligned": self.alignment, "tuned": self.alignment + self.tuning}
        states = {model: rows + m[:, None] + self._noise(rng, codes, rows.shape) for model, m in means.items()}
        return read_under(states, name=name, clusters=[f"c{c}" for c in codes])

    def _noise(self, rng: np.random.Generator, codes: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "l n d"]:
        by_cluster = rng.normal(size=(shape[0], len(self.sizes), shape[2]))[:, codes]
        return self.noise * (by_cluster + rng.normal(size=shape))


def with_losses(signals: Signals, token_loss: Sequence[Sequence[float]]) -> Signals:
    """The table with these losses at its target tokens, which keep their ids or get those of the answer's length."""
    losses = tuple(np.asarray(x, dtype=np.float64) for x in token_loss)
    n_tokens = np.array([len(x) for x in losses], dtype=np.int64)
    return replace(
        signals,
        token_loss=losses,
        loss=np.array([x.mean() for x in losses], dtype=np.float64),
        target_ids=tuple(100 * k + np.arange(n) for k, n in enumerate(n_tokens)),
        n_tokens=n_tokens,
        length=n_tokens + 10,
    )


def answered(
    tuned: Sequence[Sequence[float]],
    aligned: Sequence[Sequence[float]],
    *,
    name: str = "harmful",
    clusters: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> Comparison:
    """Tuned and aligned model on the same answers, with these losses at their tokens."""
    none = [np.zeros((len(tuned), 1))]
    tables = read_under({"tuned": none, "aligned": none}, name=name, clusters=clusters, ids=ids)
    return Comparison(with_losses(tables["tuned"], tuned), with_losses(tables["aligned"], aligned))


def drawn(seed: int = 0, *, n: int = N, dim: int = DIM, layers: int = LAYERS) -> dict[str, list[np.ndarray]]:
    """Hidden states of base and aligned: a mean shift of length about 3, and noise."""
    rng = np.random.default_rng(seed)
    base = [rng.normal(size=(n, dim)) for _ in range(layers)]
    aligned = [h + 3 / math.sqrt(dim) * rng.choice([-1, 1], size=dim) + rng.normal(size=h.shape) for h in base]
    return {"base": base, "aligned": aligned}


def interpolated(shares: list[float], seed: int = 0) -> dict[str, list[np.ndarray]]:
    """A tuned model that is this share of the way back to the base, layer by layer."""
    s = drawn(seed, layers=len(shares))
    return s | {"tuned": [h + a * (b - h) for a, h, b in zip(shares, s["aligned"], s["base"], strict=True)]}
