"""What fine-tuning did to the weights: per block, and of all blocks as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from graddiag.statistics import optional


@dataclass(frozen=True)
class Spread:
    """Of an inner product and a squared norm over random directions: both variances, and the covariance."""

    inner: float = 0.0
    both: float = 0.0
    square: float = 0.0


@dataclass(frozen=True)
class Product:
    """A cosine as its parts, of which those of several blocks can be added: an inner product and two squared norms.

    `chance_inner` and `chance_square` are what the product and the second squared norm are on average for an update
    that has the same singular values in random directions, `spread` how they vary.
    """

    inner: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    chance_inner: float = 0.0
    chance_square: float = 0.0
    spread: Spread = Spread()

    def __add__(self, other: Product) -> Product:
        a, b = self.spread, other.spread
        return Product(
            self.inner + other.inner,
            (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1]),
            self.chance_inner + other.chance_inner,
            self.chance_square + other.chance_square,
            Spread(a.inner + b.inner, a.both + b.both, a.square + b.square),
        )

    @property
    def cosine(self) -> float:
        """The cosine; NaN where a norm is zero."""
        return _over(self.inner, *self.squares)

    @property
    def chance(self) -> float:
        """The cosine of an update in random directions, on average."""
        return _over(self.chance_inner, self.squares[0], self.chance_square)

    @property
    def chance_sd(self) -> float:
        """The standard deviation of that cosine, to first order in both parts."""
        slope = self.chance_inner / self.chance_square / 2 if self.chance_square > 0 else 0.0
        variance = self.spread.inner - 2 * slope * self.spread.both + slope**2 * self.spread.square
        return _over(math.sqrt(max(variance, 0.0)), self.squares[0], self.chance_square)


def _over(value: float, a: float, b: float) -> float:
    """Scaled first: the product of two squares of large models can be too large, or too small, for a float."""
    return value / math.sqrt(a) / math.sqrt(b) if a > 0 and b > 0 else math.nan


@dataclass(frozen=True)
class WeightChange:
    """The update, tuned minus aligned, of one block, or of all as one vector.

    `norm` is its Frobenius norm, `relative` that over the norm of the aligned weights. `shares` [m] are those of its
    singular values in its squared norm, largest first (empty for all blocks). `safety` is its cosine with minus the
    mean safety gradient: positive where the update lowers the loss on safe answers to first order. `alignment` is its
    cosine with aligned minus base, positive further that way, negative back towards the base. `safe_lora` is its cosine
    with its projection by `C = V V^T / ||V||`, V aligned minus base (Hsu et al. 2024, arXiv 2405.16833): a similarity
    of column spaces, never negative, and far from 0 by chance. The `chance` of each is what an update of the same
    singular values in random directions has.
    """

    norm: float
    relative: float
    safety: Product | None = None
    alignment: Product | None = None
    safe_lora: Product | None = None
    shares: Float[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0))

    @property
    def back(self) -> float:
        """`<update, aligned - base> / ||aligned - base||^2`: 0 for no change, -1 for one back to the base's
        weights; NaN without a base."""
        if self.alignment is None or not self.alignment.squares[1] > 0:
            return math.nan
        return self.alignment.inner / self.alignment.squares[1]

    @property
    def safety_change(self) -> float:
        """`<update, mean safety gradient>`, nats/token: how much the loss on safe answers changes to first order; NaN
        without that gradient."""
        return math.nan if self.safety is None else 0.0 - self.safety.inner

    @property
    def stable_rank(self) -> float:
        """Squared norm over the largest squared singular value: 1 for an update of rank 1; NaN for all blocks, or no
        update."""
        return float(1 / self.shares[0]) if len(self.shares) else math.nan

    def keys(self) -> dict[str, float | None]:
        """The flat keys; None where undefined, or nothing was given to compare with."""
        values = {
            "norm": self.norm,
            "relative": self.relative,
            "stable_rank": self.stable_rank,
            "along_alignment": self.back,
            "safety_change": self.safety_change,
        }
        for name, p in (
            ("safety_cosine", self.safety),
            ("alignment_cosine", self.alignment),
            ("safe_lora", self.safe_lora),
        ):
            parts = (math.nan,) * 3 if p is None else (p.cosine, p.chance, p.chance_sd)
            values |= dict(zip((name, f"{name}/chance", f"{name}/chance_sd"), parts, strict=True))
        return {f"weights/{k}": optional(v) for k, v in values.items()}


@dataclass(frozen=True)
class WeightChanges:
    """The updates of all blocks that were compared, in the order of the aligned model; `left_out` names parameters
    outside them that changed too."""

    overall: WeightChange
    blocks: Mapping[str, WeightChange]
    left_out: tuple[str, ...]

    def summary(self) -> dict[str, float | None]:
        """The flat keys of all blocks as one vector; None where undefined."""
        return self.overall.keys() | {
            "weights/blocks": float(len(self.blocks)),
            "weights/changed_outside": float(len(self.left_out)),
        }

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block."""
        return {b: c.keys() for b, c in self.blocks.items()}
