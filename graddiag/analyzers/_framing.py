"""Which way does the framing alone push the weights, how consistently, and how does that relate to safety?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._blocks import SURVIVING, BlockTests
from graddiag.analyzers._cosines import check_safety, mean_gradient
from graddiag.analyzers._projection_error import (
    Spread,
    cosine_influence,
    error_keys,
    layouts,
    ratio_influence,
    spread,
)
from graddiag.analyzers._rows import cosine_with_fixed
from graddiag.comparison import Comparison
from graddiag.permutations import Null, sign_flips, sign_flips_of_norm
from graddiag.row_layout import RowLayout
from graddiag.signals import Signals
from graddiag.statistics import (
    Estimate,
    cluster_sums,
    optional,
)


@dataclass(frozen=True)
class FramingScope:
    """The framing gradient d = g_left - g_right of one block, or of all blocks as one vector; projected.

    `consistency` is `||sum d||^2 / sum ||d||^2`: n where all pairs agree, 1 for independent directions, 0 where they
    cancel. `consistency_null` is its mean over sign flips of clusters, `sum_c ||sum_{i in c} d_i||^2 / sum ||d||^2`:
    more
    than 1 where the pairs of a cluster agree. `p` is that of the sign flips. `safety_cosine` is the cosine of the
    mean d with the mean safety
    gradient; its interval is given this safety set. `projection_se` has the standard error by the projection of the
    consistency and of the cosine, under their names.
    """

    consistency: float
    consistency_null: float
    p: float
    safety_cosine: Estimate
    projection_se: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Framing:
    """The framing gradient of the pairs, left minus right, and its relation to the safety set if there is one."""

    overall: FramingScope
    blocks: Mapping[str, FramingScope]
    left_name: str
    right_name: str
    safety_name: str | None
    projection: str
    tests: BlockTests

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        return self._keys(self.overall) | {f"framing/{SURVIVING}": self.tests.surviving}

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, and its p over blocks: `framing/q` and `framing/p_fwe`."""
        return {b: self._keys(s) | self.tests.keys("framing", b) for b, s in self.blocks.items()}

    def kinds(self) -> dict[str, str]:
        """Whether each key was computed from exact or from projected gradients."""
        return dict.fromkeys(self.summary(), "exact" if self.projection == "exact" else "projected")

    def _keys(self, scope: FramingScope) -> dict[str, float | None]:
        values = {
            "framing/consistency": scope.consistency,
            "framing/consistency_null": scope.consistency_null,
            "framing/p": scope.p,
            "framing/safety_cosine": scope.safety_cosine.value,
            "framing/safety_cosine/low": scope.safety_cosine.low,
            "framing/safety_cosine/high": scope.safety_cosine.high,
        }
        errors = error_keys({f"framing/{name}": e for name, e in scope.projection_se.items()})
        return {k: optional(v) for k, v in values.items()} | errors


@dataclass(frozen=True)
class _Places:
    """At each place of the rows in one block: the sum of d over pairs, its squares summed, the mean safety gradient."""

    d: Float[np.ndarray, " k"]
    squares: Float[np.ndarray, " k"]
    toward: Float[np.ndarray, " k"]

    def spreads(self, total: _Sums, layout: RowLayout) -> tuple[Spread, Spread]:
        """Of the consistency and of the cosine with safety whose sums over blocks are `total`."""
        d2, toward2 = self.d**2, self.toward**2
        length, inner = total.gram.sum(), total.with_safety.sum()
        consistency = ratio_influence(d2, self.squares, np.array([length, total.squares]))
        totals = np.array([inner, length, total.safety_square])
        cosine_with = cosine_influence(np.stack([self.d * self.toward, d2, toward2]), totals)
        return spread(consistency, layout), spread(cosine_with, layout)


@dataclass(frozen=True)
class _Sums:
    """Sums over pairs of which blocks can be added: products of the cluster sums D_c of d, and of them with safety."""

    gram: Float[np.ndarray, "c c"]
    squares: float
    with_safety: Float[np.ndarray, " c"]
    safety_square: float
    counts: Int[np.ndarray, " c"]

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram + other.gram,
            self.squares + other.squares,
            self.with_safety + other.with_safety,
            self.safety_square + other.safety_square,
            self.counts,
        )

    def scope(self, p: float) -> FramingScope:
        known = self.squares > 0
        consistency = float(self.gram.sum()) / self.squares if known else math.nan
        null = float(self.gram.trace()) / self.squares if known else math.nan
        return FramingScope(consistency, null, p, self.safety_cosine())

    def safety_cosine(self) -> Estimate:
        """Cosine of the mean d with safety."""
        return cosine_with_fixed(self.gram, self.with_safety, self.safety_square, self.counts)


def framing(comparison: Comparison, safety: Signals | None = None, *, seed: int = 0) -> Framing:
    """The framing gradient, projected; `seed` draws the sign flips where there are more than 14 clusters.

    Raises DataError where the safety set was measured in another space or has no finite row.
    """
    if safety is not None:
        check_safety(comparison, safety, {})
    n = len(comparison.cluster_names)
    total = _Sums(np.zeros((n, n)), 0.0, np.zeros(n), 0.0, np.bincount(comparison.clusters, minlength=n))
    blocks: dict[str, FramingScope] = {}
    lay = layouts(comparison.left.space)
    places: dict[str, _Places] = {}
    nulls: dict[str, Null] = {}
    for block in comparison.left.blocks:
        by_cluster, sums, at = _block_sums(comparison, safety, block)
        total = total + sums
        thin = by_cluster.shape[1] < n
        nulls[block] = sign_flips(by_cluster, seed=seed) if thin else sign_flips_of_norm(sums.gram, seed=seed)
        places |= {} if lay[block].is_whole else {block: at}
        blocks[block] = _with_errors(sums.scope(nulls[block].p), sums, {block: at} if block in places else {}, lay)
    overall = total.scope(sign_flips_of_norm(total.gram, seed=seed).p)
    return Framing(
        overall=_with_errors(overall, total, places, lay),
        blocks=blocks,
        left_name=comparison.left.provenance.data,
        right_name=comparison.right.provenance.data,
        safety_name=None if safety is None else safety.provenance.data,
        projection=comparison.left.space.projection,
        tests=BlockTests.of(nulls),
    )


def _with_errors(
    scope: FramingScope, total: _Sums, places: Mapping[str, _Places], lay: Mapping[str, RowLayout]
) -> FramingScope:
    """The scope with its standard errors by the projection, from the places of its blocks that are projected."""
    consistency = toward = Spread()
    for block, at in places.items():
        a, b = at.spreads(total, lay[block])
        consistency, toward = consistency + a, toward + b
    found = {
        "consistency": (consistency, scope.consistency),
        "safety_cosine": (toward, scope.safety_cosine.value),
    }
    errors = {k: e.standard_error if math.isfinite(value) else math.nan for k, (e, value) in found.items()}
    return replace(scope, projection_se=errors)


def _block_sums(
    comparison: Comparison, safety: Signals | None, block: str
) -> tuple[Float[np.ndarray, "c k"], _Sums, _Places]:
    left, right = comparison.left.gradients[block], comparison.right.gradients[block]
    d = np.subtract(left[comparison.left_index], right[comparison.right_index], dtype=np.float64)
    by_cluster = cluster_sums(d, comparison.clusters, len(comparison.cluster_names))
    toward = np.zeros(d.shape[1]) if safety is None else mean_gradient(safety, block)
    gram = by_cluster @ by_cluster.T
    counts = np.bincount(comparison.clusters, minlength=len(gram))
    squares = np.asarray((d**2).sum(axis=0))
    sums = _Sums(gram, float(squares.sum()), by_cluster @ toward, float(toward @ toward), counts)
    return by_cluster, sums, _Places(np.asarray(d.sum(axis=0)), squares, toward)
