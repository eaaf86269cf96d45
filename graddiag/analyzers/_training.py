"""What would training on a set do: to the safety loss, and how far do its gradients agree with each other?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._agreement import Agreement, agreement
from graddiag.analyzers._cosines import check_safety, knows_safety, mean_gradient, rows64
from graddiag.analyzers._projection_error import Influence, Spread, error_keys, layouts, spread
from graddiag.answers import cluster_codes
from graddiag.comparison import Comparison
from graddiag.grams import Grams
from graddiag.signals import Signals, check_gradients
from graddiag.statistics import Estimate, cluster_mean, optional

PREFIX = "training"


@dataclass(frozen=True)
class Steps:
    """Predicted change of the safety loss, nats/token per unit of learning rate, by one step on each row alone.

    To first order. `change[i]` is `-<g_i, M>`, M the mean safety gradient; its mean is that of one SGD step on the
    whole set. `adam_change[i]` is `-<Gamma(g_i), M>`, momentum included, NaN where no optimizer's state is known; its
    mean is over steps on single rows, which is not the step on their mean. NaN for a row that is not finite, and
    without safety.
    """

    change: Float[np.ndarray, " n"]
    adam_change: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class TrainingScope:
    """Means over rows with intervals over clusters, given this safety set. `opposed_share` is the share of rows whose
    step raises the safety loss. `change_se` is the standard error of `change` by the projection, NaN where it comes
    from exact products; Adam's form always does, and a share of signs has none."""

    change: Estimate
    adam_change: Estimate
    opposed_share: Estimate
    change_se: float = math.nan

    def keys(self, prefix: str) -> dict[str, float | None]:
        """The flat keys under a prefix; None where undefined."""
        parts = {"change": self.change, "adam_change": self.adam_change, "opposed_share": self.opposed_share}
        return _flat(prefix, parts) | error_keys({f"{prefix}/change": self.change_se})


@dataclass(frozen=True)
class Training:
    """Of "left", "right" and each control, under "control:NAME". `exact` says how the safety products were computed,
    `projection` how the rows of which `agreement` speaks."""

    steps: Mapping[str, Steps]
    overall: Mapping[str, TrainingScope]
    blocks: Mapping[str, Mapping[str, TrainingScope]]
    agreement: Mapping[str, Agreement]
    exact: bool
    projection: str

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        out: dict[str, float | None] = {}
        for role, scope in self.overall.items():
            prefix, agreed = f"{PREFIX}/{role}", self.agreement[role]
            out |= scope.keys(prefix) | _flat(prefix, agreed.parts)
            out |= error_keys({f"{prefix}/{name}": e for name, e in agreed.projection_se.items()})
        return out

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The keys of the predicted changes per block: those of all blocks add up to that of the whole."""
        return {
            block: {k: v for role, scope in scopes.items() for k, v in scope.keys(f"{PREFIX}/{role}").items()}
            for block, scopes in self.blocks.items()
        }

    def kinds(self) -> dict[str, str]:
        """Whether each key was computed from exact or from projected gradients."""
        agreed = "exact" if self.projection == "exact" else "projected"
        steps = "exact" if self.exact else "projected"
        return {k: agreed if "noise_scale" in k or "stiffness" in k else steps for k in self.summary()}


def training(
    comparison: Comparison,
    safety: Signals | None = None,
    controls: Mapping[str, Signals] | None = None,
    *,
    grams: Grams | None = None,
) -> Training:
    """What steps on the rows of both sides and of the controls would do; `grams` are products of both sides' rows that
    are known already.

    Products with safety are exact where every table knows them, otherwise all of them projected; Adam's form is there
    where every table knows it. Raises DataError where a set was measured in another space, no safety row is finite, or
    there are no gradients.
    """
    check_gradients(comparison.left.space, comparison.left.provenance.data)
    controls = controls or {}
    tables = {"left": comparison.left, "right": comparison.right} | {f"control:{n}": t for n, t in controls.items()}
    known = safety is not None and all(knows_safety(t, safety) for t in tables.values())
    if safety is not None:
        check_safety(comparison, safety, controls)
    blocks = comparison.left.blocks
    by_block = {b: {role: _steps(t, safety, b, known=known) for role, t in tables.items()} for b in blocks}
    steps = {role: _sum([by_block[b][role] for b in blocks]) for role in tables}
    whole_space = comparison.left.space.projection == "exact"
    projected = None if known and not whole_space else safety
    spreads = {b: {role: _spread(t, projected, b) for role, t in tables.items()} for b in blocks}
    totals = {role: sum((spreads[b][role] for b in blocks), Spread()) for role in tables}
    return Training(
        steps=steps,
        overall={role: _scope(t, steps[role], totals[role]) for role, t in tables.items()},
        blocks={
            b: {role: _scope(t, by_block[b][role], spreads[b][role]) for role, t in tables.items()} for b in blocks
        },
        agreement={r: agreement(t, grams if r in {"left", "right"} else None) for r, t in tables.items()},
        exact=known or whole_space,
        projection=comparison.left.space.projection,
    )


def _steps(table: Signals, safety: Signals | None, block: str, *, known: bool) -> Steps:
    """The part of one block in the predicted changes."""
    nothing = np.full(len(table), np.nan)
    if safety is None:
        return Steps(nothing, nothing)
    inner = table.reference_dot[block] if known else _projected(table, safety, block)
    adam = nothing
    if known and table.adam is not None:
        adam = table.adam_dot[block] + table.adam.dot[block]
    return Steps(*(np.where(table.finite, -v.astype(np.float64), np.nan) for v in (inner, adam)))


def _projected(table: Signals, safety: Signals, block: str) -> Float[np.ndarray, " n"]:
    """Products with the mean safety gradient; NaN for a row that is not finite, whose product would warn."""
    out = np.full(len(table), np.nan)
    out[table.finite] = rows64(table, block) @ mean_gradient(safety, block)
    return out


def _sum(parts: list[Steps]) -> Steps:
    return Steps(
        np.stack([p.change for p in parts]).sum(axis=0),
        np.stack([p.adam_change for p in parts]).sum(axis=0),
    )


def _spread(table: Signals, safety: Signals | None, block: str) -> Spread:
    """By the projection, of the mean change in one block; NaN where it is not computed from projected rows."""
    layout = layouts(table.space)[block]
    if safety is None or not table.finite.any():
        return Spread(math.nan)
    return Spread() if layout.is_whole else spread(change_influence(table, safety, block), layout)


def change_influence(table: Signals, safety: Signals, block: str) -> Influence:
    """What each place of the rows in one block does to the mean change; it is divided by no norm."""
    moves = -rows64(table, block).mean(axis=0) * mean_gradient(safety, block)
    return Influence(moves, np.zeros(len(moves)))


def _scope(table: Signals, steps: Steps, by_projection: Spread) -> TrainingScope:
    codes = cluster_codes(table)
    defined = np.isfinite(steps.change)
    opposed = np.where(defined, (steps.change > 0).astype(np.float64), np.nan)
    return TrainingScope(
        cluster_mean(steps.change, codes),
        cluster_mean(steps.adam_change, codes),
        cluster_mean(opposed, codes, bounds=(0.0, 1.0)),
        by_projection.standard_error,
    )


def _flat(prefix: str, parts: Mapping[str, Estimate]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, e in parts.items():
        ends = {"": e.value, "/low": e.low, "/high": e.high}
        out |= {f"{prefix}/{name}{end}": optional(v) for end, v in ends.items()}
    return out
