"""What follows from one probe alone: cosines and products of all blocks as one vector, losses with their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.probes import Against, Probe


def cosine_with_safety(against: Against | None, safety_norms: Mapping[str, float]) -> float:
    """The cosine of a direction with the safety gradient, all blocks as one vector; NaN where undefined."""
    if against is None:
        return math.nan
    return _cosine(sum(against.dot.values(), 0.0), length(against.norm), length(safety_norms))


def cosine_by_block(against: Against | None, safety_norms: Mapping[str, float]) -> dict[str, float]:
    """The cosine in each block of the safety gradient, in its order; NaN where undefined."""
    if against is None:
        return dict.fromkeys(safety_norms, math.nan)
    return {b: _cosine(against.dot[b], against.norm[b], norm) for b, norm in safety_norms.items()}


def length(norms: Mapping[str, float]) -> float:
    """The norm of all blocks as one vector."""
    return math.sqrt(sum(n * n for n in norms.values()))


def finite_dots(probe: Probe) -> Float[np.ndarray, " m"]:
    """The defined products of the examples with the mean safety gradient."""
    return np.asarray(probe.dots[np.isfinite(probe.dots)])


def cosine_scale(probe: Probe) -> float:
    """The standard deviation of the batch's cosine if each example's product were as likely with the other sign.

    `sqrt(sum_i d_i^2) / (n ||g|| ||s||)`, d_i the examples' products: of signs flipped at random, norms kept. NaN
    where undefined.
    """
    dots = finite_dots(probe)
    size = length(probe.gradient.norm) * length(probe.safety_norms)
    if not len(dots) or not math.isfinite(size) or size == 0:
        return math.nan
    return math.sqrt(float(np.square(dots).sum())) / len(dots) / size


def opposing(probe: Probe) -> Int[np.ndarray, " m"]:
    """Which examples oppose the mean safety gradient, the worst first: a step on them raises the safety loss."""
    order = np.argsort(probe.dots, kind="stable")  # NaN comes last
    return order[: int((probe.dots < 0).sum())]


def broken(probe: Probe) -> Bool[np.ndarray, " n"]:
    """Which examples have a loss, norm or product that is not finite."""
    return np.asarray(~(np.isfinite(probe.dots) & np.isfinite(probe.norms) & np.isfinite(probe.losses)))


def opposed_share(probe: Probe) -> float:
    """The share of the examples with a defined product that oppose, 0..1; NaN where there is none."""
    dots = finite_dots(probe)
    return float((dots < 0).mean()) if len(dots) else math.nan


def mean_and_error(values: Sequence[float] | Float[np.ndarray, " s"]) -> tuple[float, float]:
    """The mean of the defined values and its standard error; NaN where undefined (fewer than one, than two)."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    mean = float(known.mean()) if len(known) else math.nan
    error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return mean, error


def overhead(probe: Probe) -> float:
    """What the probe took, in training steps; NaN where a step's time is not known."""
    return probe.seconds / probe.step_seconds if probe.step_seconds > 0 else math.nan


def _cosine(dot: float, norm: float, safety: float) -> float:
    size = norm * safety
    if not math.isfinite(dot) or not math.isfinite(size) or size == 0:
        return math.nan
    return max(-1.0, min(1.0, dot / size))
