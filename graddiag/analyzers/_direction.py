"""How much of the alignment is left, layer by layer, and does its loss grow with depth more than on benign data?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._behaviour import check_same_models
from graddiag.analyzers._held_out import halves
from graddiag.analyzers._retention import Fit, LayerRetention, retention_of
from graddiag.analyzers._state_rows import Shifts, layers_at
from graddiag.comparison import Comparison
from graddiag.statistics import Estimate, contrast_of_two, jackknife, optional

N_RANDOM = 100  # directions: the smallest share that they can give is then 0.01
_UNDEFINED = Estimate(math.nan)


@dataclass(frozen=True)
class DirectionScope:
    """Retention on the rows of one set: its layers in order, and the slope of retention over them, per layer."""

    name: str
    n: int
    n_clusters: int
    layers: tuple[LayerRetention, ...]
    slope: Estimate

    def keys(self, prefix: str) -> dict[str, int | float | None]:
        """The flat keys of this set under a prefix; None where undefined."""
        out: dict[str, int | float | None] = {f"{prefix}/n": self.n, f"{prefix}/clusters": self.n_clusters}
        out |= self.slope.keys(f"{prefix}/slope", p=False)
        for at in self.layers:
            for name in ("retention", "fitted", "remainder"):
                out |= getattr(at, name).keys(f"{prefix}/{name}/{at.layer}", p=False)
            along = f"{prefix}/along/{at.layer}"
            out |= {along: optional(at.along), f"{prefix}/in_sample/{at.layer}": optional(at.in_sample)}
            out |= {f"{along}/random_sd": optional(at.random_sd), f"{along}/random_p": optional(at.random_p)}
        return out


@dataclass(frozen=True)
class Direction:
    """The alignment direction (aligned minus base) per layer, and how much of it the tuned model keeps.

    `contrast[k]` is the retention of layer k less that of the control, `depth_trend` the slope of retention over layers
    less the control's, both over the layers where both are known; undefined without a control, since every fine-tuning
    moves hidden states, the more so the deeper. Negative: alignment is lost beyond what the same fine-tuning does to
    the control's rows. Intervals are over clusters and pointwise; the two sets are taken as independent samples.
    """

    base_name: str
    aligned_name: str
    tuned_name: str
    position: str
    whole: DirectionScope
    control: DirectionScope | None
    contrast: tuple[Estimate, ...]
    depth_trend: Estimate

    def summary(self) -> dict[str, int | float | None]:
        """The flat keys of this result; None where undefined, also where there is no control."""
        out = self.whole.keys("direction") | self.depth_trend.keys("direction/depth_trend")
        if self.control is None:
            out |= dict.fromkeys(k.replace("direction/", "direction/control/", 1) for k in self.whole.keys("direction"))
        else:
            out |= self.control.keys("direction/control")
        for at, e in zip(self.whole.layers, self.contrast, strict=True):
            out |= e.keys(f"direction/contrast/{at.layer}")
        return out

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        return dict.fromkeys(self.summary(), "states")


def direction(
    reference: Comparison,
    change: Comparison,
    *,
    position: str = "first:10",
    control: tuple[Comparison, Comparison] | None = None,
    n_random: int = N_RANDOM,
    seed: int = 0,
) -> Direction:
    """Retention of the alignment direction at every layer whose states at `position` all tables have.

    `reference` has the aligned model on its left and the base on its right, `change` the tuned model on its left and
    the aligned on its right, both of the same rows; `control` is the same of a benign set. `seed` draws the halves of
    the clusters and `n_random` random directions per layer.

    Raises UsageError for an unknown position, and DataError where a table has no states there or of other layers, where
    the models are not the same as they should be, or where two comparisons have no row in common.
    """
    if control is not None:
        check_same_models(reference, control[0])
        check_same_models(change, control[1])
    both = [(reference, change)] if control is None else [(reference, change), control]
    layers = layers_at(position, *(c for pair in both for c in pair))
    shifts = [Shifts.of(*pair) for pair in both]
    fits = [_fits(s, layers, n_random, seed) for s in shifts]
    contrast, trend = [_UNDEFINED] * len(layers), _UNDEFINED
    if control is not None:
        contrast = [_less(a.ratios, b.ratios) for a, b in zip(*fits, strict=True)]
        known = [k for k, e in enumerate(contrast) if math.isfinite(e.value)]
        trend = _less(*(_slope([fit[k] for k in known]) for fit in fits))
    scopes = [_scope(s, f) for s, f in zip(shifts, fits, strict=True)]
    return Direction(
        base_name=reference.right.provenance.model,
        aligned_name=reference.left.provenance.model,
        tuned_name=change.left.provenance.model,
        position=position,
        whole=scopes[0],
        control=scopes[1] if control is not None else None,
        contrast=tuple(contrast),
        depth_trend=trend,
    )


def _fits(shifts: Shifts, layers: Mapping[int, str], n_random: int, seed: int) -> list[Fit]:
    first_half = halves(int(shifts.clusters.max()) + 1, seed=seed)
    return [
        retention_of(
            k, shifts.alignment(s), shifts.tuning(s), shifts.clusters, first_half, n_random=n_random, seed=seed
        )
        for k, s in layers.items()
    ]


def _scope(shifts: Shifts, fits: Sequence[Fit]) -> DirectionScope:
    known = [f for f in fits if math.isfinite(f.ratios[0])]
    slopes = _slope(known)
    return DirectionScope(
        name=shifts.change.left.provenance.data,
        n=len(shifts.clusters),
        n_clusters=int(shifts.clusters.max()) + 1,
        layers=tuple(f.result for f in fits),
        slope=jackknife(float(slopes[0]), slopes[1:]),
    )


def _slope(fits: Sequence[Fit]) -> Float[np.ndarray, " d"]:
    """Least-squares slope of retention over layers: with all clusters, then without each; NaN for fewer than two."""
    if len(fits) < 2:
        return np.full(1, np.nan)
    layers = np.array([f.result.layer for f in fits], dtype=np.float64)
    apart = layers - layers.mean()
    ratios = np.stack([f.ratios for f in fits])
    return np.asarray(apart @ (ratios - ratios[0]) / (apart @ apart))  # equal retentions: exactly 0


def _less(ours: Float[np.ndarray, " d"], theirs: Float[np.ndarray, " k"]) -> Estimate:
    """One number less that of an independent sample, each with all clusters and without each in turn."""
    a, b = float(ours[0]), float(theirs[0])
    return contrast_of_two(a - b, ours[1:] - b, a - theirs[1:])
