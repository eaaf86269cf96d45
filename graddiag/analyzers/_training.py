"""What would training on a set do: to the safety loss, and how far do its gradients agree with each other?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._cosines import check_safety, knows_safety, mean_gradient
from graddiag.analyzers._gram import gram
from graddiag.analyzers._rows import cosines_of
from graddiag.answers import cluster_codes
from graddiag.comparison import Comparison
from graddiag.signals import Signals
from graddiag.statistics import COSINE, ROUNDING, Estimate, cluster_mean, cluster_sums, jackknife, optional

PREFIX = "training"
_NONE = Estimate(math.nan)


@dataclass(frozen=True)
class Agreement:
    """How far the gradients of a set agree, all blocks as one vector; NaN where undefined.

    `noise_scale` is `tr(Sigma) / ||G||^2` (McCandlish et al. 2018, arXiv 1812.06162), in examples: the batch size from
    which more examples stop to sharpen a step. `||G||^2` is the mean product of rows in different clusters and
    `tr(Sigma)` the mean squared norm minus it, both unbiased; NaN, not measurable, where `||G||^2` is not above 0.
    `stiffness` is the mean cosine over i != j, `sign_stiffness` that of its sign (Fort et al. 2019, arXiv 1901.09491).
    """

    noise_scale: Estimate
    stiffness: Estimate
    sign_stiffness: Estimate


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
    step raises the safety loss."""

    change: Estimate
    adam_change: Estimate
    opposed_share: Estimate

    def keys(self, prefix: str) -> dict[str, float | None]:
        """The flat keys under a prefix; None where undefined."""
        parts = {"change": self.change, "adam_change": self.adam_change, "opposed_share": self.opposed_share}
        return _flat(prefix, parts)


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
            agreement = self.agreement[role]
            names = ("noise_scale", "stiffness", "sign_stiffness")
            out |= scope.keys(f"{PREFIX}/{role}")
            out |= _flat(f"{PREFIX}/{role}", {n: getattr(agreement, n) for n in names})
        return out

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The keys of the predicted changes per block: those of all blocks add up to that of the whole."""
        return {
            block: {k: v for role, scope in scopes.items() for k, v in scope.keys(f"{PREFIX}/{role}").items()}
            for block, scopes in self.blocks.items()
        }

    def kinds(self) -> dict[str, str]:
        """Whether each key was computed from exact or from projected gradients."""
        agreement = "exact" if self.projection == "exact" else "projected"
        steps = "exact" if self.exact else "projected"
        return {k: agreement if "noise_scale" in k or "stiffness" in k else steps for k in self.summary()}


def training(
    comparison: Comparison, safety: Signals | None = None, controls: Mapping[str, Signals] | None = None
) -> Training:
    """What steps on the rows of both sides and of the controls would do.

    Products with safety are exact where every table knows them, otherwise all of them projected; Adam's form is there
    where every table knows it. Raises DataError where a set was measured in another space, or no safety row is finite.
    """
    controls = controls or {}
    tables = {"left": comparison.left, "right": comparison.right} | {f"control:{n}": t for n, t in controls.items()}
    known = safety is not None and all(knows_safety(t, safety) for t in tables.values())
    if safety is not None:
        check_safety(comparison, safety, controls)
    blocks = comparison.left.blocks
    by_block = {b: {role: _steps(t, safety, b, known=known) for role, t in tables.items()} for b in blocks}
    steps = {role: _sum([by_block[b][role] for b in blocks]) for role in tables}
    return Training(
        steps=steps,
        overall={role: _scope(t, steps[role]) for role, t in tables.items()},
        blocks={b: {role: _scope(t, by_block[b][role]) for role, t in tables.items()} for b in blocks},
        agreement={role: _agreement(t) for role, t in tables.items()},
        exact=known or comparison.left.space.projection == "exact",
        projection=comparison.left.space.projection,
    )


def _steps(table: Signals, safety: Signals | None, block: str, *, known: bool) -> Steps:
    """The part of one block in the predicted changes."""
    nothing = np.full(len(table), np.nan)
    if safety is None:
        return Steps(nothing, nothing)
    inner = table.reference_dot[block] if known else table.gradients[block] @ mean_gradient(safety, block)
    adam = nothing
    if known and table.adam is not None:
        adam = table.adam_dot[block] + table.adam.dot[block]
    return Steps(*(np.where(table.finite, -v.astype(np.float64), np.nan) for v in (inner, adam)))


def _sum(parts: list[Steps]) -> Steps:
    return Steps(
        np.stack([p.change for p in parts]).sum(axis=0),
        np.stack([p.adam_change for p in parts]).sum(axis=0),
    )


def _scope(table: Signals, steps: Steps) -> TrainingScope:
    codes = cluster_codes(table)
    defined = np.isfinite(steps.change)
    opposed = np.where(defined, (steps.change > 0).astype(np.float64), np.nan)
    return TrainingScope(
        cluster_mean(steps.change, codes),
        cluster_mean(steps.adam_change, codes),
        cluster_mean(opposed, codes, bounds=(0.0, 1.0)),
    )


def _agreement(table: Signals) -> Agreement:
    """From the products of the finite rows, of all blocks as one vector."""
    products = np.asarray(sum(gram([table], block) for block in table.blocks))
    present, codes = np.unique(cluster_codes(table)[table.finite], return_inverse=True)
    n_clusters = len(present)
    cosines = cosines_of(products)
    np.fill_diagonal(cosines, np.nan)
    return Agreement(
        _noise_scale(products, codes, n_clusters),
        _mean_product(cosines, codes, n_clusters),
        _mean_product(np.sign(cosines), codes, n_clusters),
    )


def _noise_scale(products: Float[np.ndarray, "m m"], codes: Int[np.ndarray, " m"], n_clusters: int) -> Estimate:
    squares, counts = cluster_sums(products.diagonal(), codes, n_clusters), np.bincount(codes, minlength=n_clusters)
    apart = np.where(codes[:, None] == codes, np.nan, products)
    signal = _with_deletions(apart, codes, n_clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = (squares.sum() - np.concatenate([[0.0], squares])) / (len(codes) - np.concatenate([[0], counts]))
        values = np.where(signal > ROUNDING * total, total / signal - 1, np.nan)
    return jackknife(float(values[0]), values[1:], bounds=(0.0, math.inf)) if np.isfinite(values[0]) else _NONE


def _mean_product(values: Float[np.ndarray, "m m"], codes: Int[np.ndarray, " m"], n_clusters: int) -> Estimate:
    """The mean of the defined entries of a symmetric matrix, with its interval over clusters."""
    found = _with_deletions(values, codes, n_clusters)
    return jackknife(float(found[0]), found[1:], bounds=COSINE) if np.isfinite(found[0]) else _NONE


def _with_deletions(
    values: Float[np.ndarray, "m m"], codes: Int[np.ndarray, " m"], n_clusters: int
) -> Float[np.ndarray, " d"]:
    """Mean of the defined entries: of all, then without the rows and columns of each cluster in turn; NaN if none."""
    defined = np.isfinite(values)
    sums, counts = (
        _left_over(v, codes, n_clusters) for v in (np.where(defined, values, 0.0), defined.astype(np.float64))
    )
    out = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out


def _left_over(
    values: Float[np.ndarray, "m m"], codes: Int[np.ndarray, " m"], n_clusters: int
) -> Float[np.ndarray, " d"]:
    """Sum of a symmetric matrix, then without the rows and columns of each cluster in turn."""
    by_cluster = cluster_sums(cluster_sums(values, codes, n_clusters).T, codes, n_clusters)
    total = by_cluster.sum()
    return np.concatenate([[total], total - 2 * by_cluster.sum(axis=0) + by_cluster.diagonal()])


def _flat(prefix: str, parts: Mapping[str, Estimate]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, e in parts.items():
        ends = {"": e.value, "/low": e.low, "/high": e.high}
        out |= {f"{prefix}/{name}{end}": optional(v) for end, v in ends.items()}
    return out
