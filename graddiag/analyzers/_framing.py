"""Which way does the framing alone push the weights, how consistently, and how does that relate to safety?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from graddiag.analyzers._blocks import SURVIVING, BlockTests
from graddiag.analyzers._cosines import check_safety
from graddiag.analyzers._flips import Flips
from graddiag.analyzers._framing_sums import Places, Sums, block_sums
from graddiag.analyzers._projection_error import Spread, error_keys, layouts, spread
from graddiag.analyzers._rows import cosine_with_fixed
from graddiag.answers import clustered
from graddiag.comparison import Comparison
from graddiag.permutations import Null
from graddiag.row_layout import RowLayout
from graddiag.signals import Signals, check_gradients
from graddiag.statistics import Estimate, optional


@dataclass(frozen=True)
class FramingScope:
    """The framing gradient d = g_left - g_right of one block, or of all blocks as one vector; projected.

    `consistency` is `||sum d||^2 / sum ||d||^2`: n where all pairs agree, 1 for independent directions, 0 where they
    cancel. `consistency_null` is its mean over sign flips of clusters, `sum_c ||sum_{i in c} d_i||^2 / sum ||d||^2`:
    more than 1 where the pairs of a cluster agree. `p` is that of the sign flips. `safety_cosine` is the cosine of the
    mean d with the mean safety gradient; its interval is given this safety set, and the noise of both means pulls it
    towards 0. `safety_cosine_corrected` is that of the expected gradients, without that noise and with an interval over
    the clusters of pairs and of safety rows, which are taken as independent samples; NaN, not measurable, where a
    corrected squared norm is not above 0. `projection_se` has the standard error by the projection of the consistency
    and of the cosines, under their names.
    """

    consistency: float
    consistency_null: float
    p: float
    safety_cosine: Estimate
    safety_cosine_corrected: Estimate
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
        }
        cosines = {"": scope.safety_cosine, "_corrected": scope.safety_cosine_corrected}
        for name, e in cosines.items():
            key = f"framing/safety_cosine{name}"
            values |= {key: e.value, f"{key}/low": e.low, f"{key}/high": e.high}
        errors = error_keys({f"framing/{name}": e for name, e in scope.projection_se.items()})
        return {k: optional(v) for k, v in values.items()} | errors


def framing(comparison: Comparison, safety: Signals | None = None, *, seed: int = 0) -> Framing:
    """The framing gradient, projected; `seed` draws the sign flips where there are more than 14 clusters.

    Raises DataError where the safety set was measured in another space or has no finite row, or there are no gradients.
    """
    check_gradients(comparison.left.space, comparison.left.provenance.data)
    if safety is not None:
        check_safety(comparison, safety, {})
        (safety,) = clustered(safety)
    flips = Flips.of(len(comparison.cluster_names), seed)
    total: Sums | None = None
    blocks: dict[str, FramingScope] = {}
    lay = layouts(comparison.left.space)
    places: dict[str, Places] = {}
    nulls: dict[str, Null] = {}
    for block in comparison.left.blocks:
        by_cluster, sums, at = block_sums(comparison, safety, block)
        total = sums if total is None else total + sums
        nulls[block] = flips.add(by_cluster)
        places |= {} if lay[block].is_whole else {block: at}
        blocks[block] = _with_errors(_scope(sums, nulls[block].p), sums, {block: at} if block in places else {}, lay)
    assert total is not None, "a space has a block"
    overall = _scope(total, flips.whole(total.samples.first.inside).p)
    return Framing(
        overall=_with_errors(overall, total, places, lay),
        blocks=blocks,
        left_name=comparison.left.provenance.data,
        right_name=comparison.right.provenance.data,
        safety_name=None if safety is None else safety.provenance.data,
        projection=comparison.left.space.projection,
        tests=BlockTests.of(nulls),
    )


def _scope(sums: Sums, p: float) -> FramingScope:
    known = sums.squares > 0
    of_pairs = sums.samples.first
    consistency = of_pairs.square / sums.squares if known else math.nan
    null = float(of_pairs.inside.sum()) / sums.squares if known else math.nan
    toward = cosine_with_fixed(of_pairs, sums.with_safety, sums.safety_square)
    return FramingScope(consistency, null, p, toward, sums.samples.cosine())


def _with_errors(
    scope: FramingScope, total: Sums, places: Mapping[str, Places], lay: Mapping[str, RowLayout]
) -> FramingScope:
    """The scope with its standard errors by the projection, from the places of its blocks that are projected."""
    values = {
        "consistency": scope.consistency,
        "safety_cosine": scope.safety_cosine.value,
        "safety_cosine_corrected": scope.safety_cosine_corrected.value,
    }
    spreads = dict.fromkeys(values, Spread())
    for block, at in places.items():
        moves = at.influences(total)
        spreads = {name: s + spread(moves[name], lay[block]) for name, s in spreads.items()}
    errors = {k: s.standard_error if math.isfinite(values[k]) else math.nan for k, s in spreads.items()}
    return replace(scope, projection_se=errors)
