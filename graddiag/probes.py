"""What a monitor saw at one training step: the step's gradient beside a fresh safety gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Against:
    """A direction beside the safety gradient, per block: its inner product with it, and its norm."""

    dot: Mapping[str, float]
    norm: Mapping[str, float]


@dataclass(frozen=True)
class Probe:
    """One probe: everything that rules, plots and logs need; numbers only, made during the step that it is of.

    `step` counts optimizer steps from 0. `safety_losses` [s] are those of the safety examples in their order, nats per
    token, the same examples at every probe, before the step. `safety_norms` are the norms of their mean gradient per
    block. `gradient` is the batch's own gradient, as it was before clipping. `update` is what the optimizer really
    subtracted from the weights, None where none is watched: `<update, safety>` is minus the `predicted_change` of the
    safety loss to first order, nats per token.

    Per example of the batch, in its order: `ids` [n] (a digest of tokens and mask), `dots` [n] with the mean safety
    gradient, all blocks, `norms` [n], `losses` [n]; each is of the gradient of the example's own mean loss.
    `dots_exact` is False where they were taken with a low-rank stand-in of the safety gradient, whose share of the
    squared norm is `captured`. `nonfinite` counts examples whose loss or gradient is not finite, `safety_nonfinite`
    safety examples. `seconds` is what the probe took beside the training step's own `step_seconds`.
    """

    step: int
    safety_losses: Float[np.ndarray, " s"]
    safety_norms: Mapping[str, float]
    gradient: Against
    ids: tuple[str, ...]
    dots: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    dots_exact: bool = True
    captured: float = 1.0
    update: Against | None = None
    predicted_change: float | None = None
    nonfinite: int = 0
    safety_nonfinite: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
