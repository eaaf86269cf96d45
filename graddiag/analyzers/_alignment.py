"""Does learning from these rows move the model towards safe answers or away from them?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._alignment_error import AlignmentErrors, alignment_errors, no_errors
from graddiag.analyzers._blocks import SURVIVING, BlockTests
from graddiag.analyzers._cosines import (
    RowCosines,
    check_safety,
    exact_with_reference,
    knows_safety,
    mean_gradient,
    projected_with,
)
from graddiag.analyzers._projection_error import error_keys
from graddiag.analyzers._safety_direction import SafetyDirection
from graddiag.answers import clustered
from graddiag.comparison import Comparison
from graddiag.grams import Grams
from graddiag.permutations import Null, sign_flips_each
from graddiag.signals import Signals
from graddiag.statistics import COSINE, Estimate, cluster_mean, cluster_sums, mean_difference, optional

DIFFERENCE = (-2.0, 2.0)  # the range of a difference of two cosines


@dataclass(frozen=True)
class AlignmentScope:
    """Mean cosines with the mean safety gradient, of one block or of all blocks as one vector.

    A negative cosine: to first order, one step on such a row raises the loss on safe answers. `difference` is left
    minus right over pairs, its p that of sign flips of clusters. Intervals are given this safety set. `projection_se`
    has the standard error by the projection of each of them, NaN where they come from exact products.
    """

    left: Estimate
    right: Estimate
    difference: Estimate
    controls: Mapping[str, Estimate] = field(default_factory=dict)
    projection_se: Mapping[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Estimate]:
        """The numbers by name: left, right, difference, control:NAME."""
        parts = {"left": self.left, "right": self.right, "difference": self.difference}
        return parts | {f"control:{name}": e for name, e in self.controls.items()}

    def keys(self, prefix: str) -> dict[str, float | None]:
        """The flat keys of this scope under a prefix; None where undefined."""
        out: dict[str, float | None] = {}
        for name, e in self.parts.items():
            out[f"{prefix}/{name}"] = optional(e.value)
            out[f"{prefix}/{name}/low"] = optional(e.low)
            out[f"{prefix}/{name}/high"] = optional(e.high)
        errors = error_keys({f"{prefix}/{name}": e for name, e in self.projection_se.items()})
        return out | {f"{prefix}/difference/p": optional(self.difference.p)} | errors


@dataclass(frozen=True)
class Alignment:
    """Cosines with the mean safety gradient, of gradients or of steps (`prefix` of the keys): all exact, or all
    projected.

    `rows` holds the whole-vector cosine of each row of "left", "right" and each control, under "control:NAME", NaN for
    a row that is not finite or zero; `pair_difference` left minus right of each pair. `names` are the sets under the
    same keys.
    """

    prefix: str
    names: Mapping[str, str]
    safety_name: str
    ids: tuple[str, ...]
    exact: bool
    overall: AlignmentScope
    blocks: Mapping[str, AlignmentScope]
    rows: Mapping[str, Float[np.ndarray, " _"]]
    pair_difference: Float[np.ndarray, " p"]
    tests: BlockTests
    projection: str
    direction: SafetyDirection | None = None

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        known = self.direction.summary(self.prefix) if self.direction else {}
        return self.overall.keys(self.prefix) | {f"{self.prefix}/{SURVIVING}": self.tests.surviving} | known

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, and its p over blocks: `difference/q` and `difference/p_fwe`."""
        stem = f"{self.prefix}/difference"
        known = {b: self.direction.block_summary(self.prefix, b) if self.direction else {} for b in self.blocks}
        return {b: s.keys(self.prefix) | self.tests.keys(stem, b) | known[b] for b, s in self.blocks.items()}

    def kinds(self) -> dict[str, str]:
        """Whether each key was computed from exact or from projected gradients."""
        kinds = dict.fromkeys(self.summary(), "exact" if self.exact else "projected")
        if self.direction is None:
            return kinds
        known = self.direction.summary(self.prefix) if self.projection != "exact" else {}
        counts = self.direction.cluster_keys(self.prefix)
        return kinds | dict.fromkeys(known, "projected") | dict.fromkeys(counts, "loss")


def alignment(
    comparison: Comparison,
    safety: Signals,
    controls: Mapping[str, Signals] | None = None,
    *,
    seed: int = 0,
    grams: Grams | None = None,
) -> Alignment:
    """Cosine of every row with the mean safety gradient; `seed` draws the sign flips of more than 14 clusters, `grams`
    are products of the safety rows that are known already.

    Exact where every table knows its exact products with the mean of these safety rows, otherwise all of it projected.
    Raises DataError where a set was measured in another space, or no safety row is finite.
    """
    controls = {name: clustered(t)[0] for name, t in (controls or {}).items()}
    check_safety(comparison, safety, controls)
    tables = {"left": comparison.left, "right": comparison.right} | {f"control:{n}": t for n, t in controls.items()}
    known = all(knows_safety(t, safety) for t in tables.values())
    cosines = exact_cosines(tables) if known else projected_cosines(tables, safety)
    whole_space = comparison.left.space.projection == "exact"
    measured = known and not whole_space
    errors = no_errors(comparison, tables) if measured else alignment_errors(comparison, safety, tables, cosines)
    exact = known or whole_space
    found = aligned(comparison, safety, tables, cosines, prefix="alignment", exact=exact, seed=seed, errors=errors)
    return replace(found, direction=SafetyDirection.of(safety, tables, grams))


def aligned(
    comparison: Comparison,
    safety: Signals,
    tables: Mapping[str, Signals],
    cosines: Mapping[str, RowCosines],
    *,
    prefix: str,
    exact: bool,
    seed: int,
    errors: AlignmentErrors | None = None,
) -> Alignment:
    """Means and differences of the rows' cosines, over all blocks and in each; `errors` are those by the projection."""
    whole = {name: c.whole for name, c in cosines.items()}
    overall = _scope(comparison, tables, whole, seed)
    blocks = {
        b: _scope(comparison, tables, {n: c.blocks[b] for n, c in cosines.items()}, seed)
        for b in comparison.left.blocks
    }
    return Alignment(
        prefix=prefix,
        names={name: t.provenance.data for name, t in tables.items()},
        safety_name=safety.provenance.data,
        ids=tuple(comparison.left.ids[i] for i in comparison.left_index),
        exact=exact,
        overall=_with_errors(overall, errors.whole if errors else {}),
        blocks={b: _with_errors(scope, errors.blocks[b] if errors else {}) for b, scope in blocks.items()},
        rows=whole,
        pair_difference=_difference(comparison, whole),
        tests=_block_tests(comparison, cosines, seed),
        projection=comparison.left.space.projection,
    )


def _block_tests(comparison: Comparison, cosines: Mapping[str, RowCosines], seed: int) -> BlockTests:
    """Sign flips of the differences, the same in every block; an undefined difference moves nothing."""
    names = comparison.left.blocks
    each = [_difference(comparison, {n: c.blocks[b] for n, c in cosines.items()}) for b in names]
    columns = np.array(each, dtype=np.float64).reshape(len(names), comparison.n_pairs).T  # [p, b]
    sums = cluster_sums(np.nan_to_num(columns, nan=0.0), comparison.clusters, len(comparison.cluster_names))
    known = [bool(np.isfinite(x).any()) for x in columns.T]
    nulls = zip(names, sign_flips_each(sums, seed=seed), known, strict=True)
    return BlockTests.of({b: null if some else Null(np.zeros(0)) for b, null, some in nulls})


def exact_cosines(tables: Mapping[str, Signals]) -> dict[str, RowCosines]:
    """Exact cosines of the rows of each table with the mean gradient that it knows."""
    return {name: exact_with_reference(t) for name, t in tables.items()}


def projected_cosines(tables: Mapping[str, Signals], safety: Signals) -> dict[str, RowCosines]:
    """Projected cosines of the rows of each table with the mean of the safety rows."""
    means = {block: mean_gradient(safety, block) for block in safety.blocks}
    return {name: projected_with(t, means) for name, t in tables.items()}


def _scope(
    comparison: Comparison, tables: Mapping[str, Signals], values: Mapping[str, Float[np.ndarray, " _"]], seed: int
) -> AlignmentScope:
    means = {name: _mean_by_cluster(t, values[name]) for name, t in tables.items()}
    difference = mean_difference(_difference(comparison, values), comparison.clusters, bounds=DIFFERENCE, seed=seed)
    controls = {name.removeprefix("control:"): e for name, e in means.items() if name not in ("left", "right")}
    return AlignmentScope(means["left"], means["right"], difference, controls)


def _with_errors(scope: AlignmentScope, errors: Mapping[str, float]) -> AlignmentScope:
    kept = {n: errors[n] if math.isfinite(e.value) else math.nan for n, e in scope.parts.items() if n in errors}
    return replace(scope, projection_se=kept)


def _mean_by_cluster(table: Signals, values: Float[np.ndarray, " n"]) -> Estimate:
    codes = np.unique(np.array(table.clusters), return_inverse=True)[1]
    return cluster_mean(values, codes, bounds=COSINE)


def _difference(comparison: Comparison, values: Mapping[str, Float[np.ndarray, " _"]]) -> Float[np.ndarray, " p"]:
    left, right = values["left"][comparison.left_index], values["right"][comparison.right_index]
    return np.asarray(left - right)
