"""Do the two sides pull the model in opposite directions?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.analyzers._blocks import SURVIVING, BlockTests
from graddiag.analyzers._conflict_error import ConflictInfluences, LabelWeights
from graddiag.analyzers._cosines import exact_pairs, rows64
from graddiag.analyzers._projection_error import Spread, error_keys, layouts, spread
from graddiag.analyzers._rows import Rows, centre, corrected_cosines, cosines_of, label_products, mean_gradient_cosine
from graddiag.comparison import Comparison
from graddiag.grams import Grams, block_products
from graddiag.permutations import Null, partner_permutations, permuted_partners
from graddiag.relabelling import Relabellings
from graddiag.row_layout import RowLayout
from graddiag.signals import check_gradients
from graddiag.statistics import (
    COSINE,
    Estimate,
    cluster_mean,
    jackknife,
    mean,
    optional,
    share_negative,
)

LABELS = "conflict/label_distance"
KEYS = {  # of the numbers that have a projection error
    "paired": "conflict/paired_cosine",
    "same_cluster": "conflict/same_cluster",
    "within_left": "conflict/within_left",
    "within_right": "conflict/within_right",
    "across": "conflict/across",
    "mean_gradient_cosine": "conflict/mean_gradient_cosine",
    "corrected": "conflict/mean_gradient_cosine_corrected",
    "label_distance": LABELS,
}


@dataclass(frozen=True)
class ConflictScope:
    """Cosines between gradients of one block, or of all blocks as one vector.

    `paired` is the mean over pairs, its p against partners permuted inside clusters. `same_cluster` is the mean over
    rows of one cluster on different sides that are no partners: what a paired cosine would be if only the cluster
    mattered; `other_cluster` is that of rows of different clusters. `within_*` are means over i != j of one side,
    `across` over all rows of different sides but partners.
    `mean_gradient_cosine` is that of the two mean gradients, `corrected` the same without the noise of the means.
    `label_distance` is `||mu_left - mu_right||^2` over its mean when whole clusters change sides, 1 where sides named
    by chance are as far apart, its `label_p` the share of relabellings that are; centring changes neither. All rows
    count, with a partner or without. Where every row has one, this is the test of framing/p: relabelling a pair is
    turning the sign of its difference.
    `projection_se` has the standard error by the projection of each of them, under its name; NaN where it is exact.
    """

    paired: Estimate
    negative_fraction: float
    same_cluster: float
    other_cluster: float
    within_left: float
    within_right: float
    across: float
    mean_gradient_cosine: float
    corrected: Estimate
    label_distance: float
    label_p: float
    projection_se: Mapping[str, float] = field(default_factory=dict)

    def keys(self) -> dict[str, float | None]:
        """The flat keys of this scope; None where undefined."""
        values = {
            "conflict/paired_cosine": self.paired.value,
            "conflict/low": self.paired.low,
            "conflict/high": self.paired.high,
            "conflict/p": self.paired.p,
            "conflict/negative_fraction": self.negative_fraction,
            "conflict/same_cluster": self.same_cluster,
            "conflict/other_cluster": self.other_cluster,
            "conflict/within_left": self.within_left,
            "conflict/within_right": self.within_right,
            "conflict/across": self.across,
            "conflict/mean_gradient_cosine": self.mean_gradient_cosine,
            "conflict/mean_gradient_cosine_corrected": self.corrected.value,
            "conflict/mean_gradient_cosine_corrected/low": self.corrected.low,
            "conflict/mean_gradient_cosine_corrected/high": self.corrected.high,
            LABELS: self.label_distance,
            f"{LABELS}/p": self.label_p,
        }
        errors = error_keys({KEYS[name]: e for name, e in self.projection_se.items()})
        return {k: optional(v) for k, v in values.items()} | errors

    def with_errors(self, errors: Mapping[str, float]) -> ConflictScope:
        """The same numbers with their standard errors by the projection; undefined where the number is."""
        estimates = {"paired": self.paired.value, "corrected": self.corrected.value}
        values = {name: estimates[name] if name in estimates else float(getattr(self, name)) for name in KEYS}
        kept = {name: errors[name] if math.isfinite(v) else math.nan for name, v in values.items()}
        return replace(self, projection_se=kept)


@dataclass(frozen=True)
class Conflict:
    """Gradient conflict of two sides, of the whole vector and per block; cosines in [-1, 1], negative is opposition.

    `paired` holds one cosine per pair, NaN where a member's gradient is zero. With `centered`, the mean of all rows of
    both sides was subtracted first; then the mean inner product of a left and a right row is `forced`, a number that
    follows from arithmetic and is never positive: `-n_l n_r ||mu_l - mu_r||^2 / (n_l + n_r)^2`. Without centring it is
    NaN.
    """

    left_name: str
    right_name: str
    ids: tuple[str, ...]
    clusters: Int[np.ndarray, " p"]
    overall: ConflictScope
    blocks: Mapping[str, ConflictScope]
    paired: Float[np.ndarray, " p"]
    paired_by_block: Float[np.ndarray, "b p"]
    centered: bool
    forced: float
    exact_pairs: bool
    projection: str
    tests: BlockTests
    label_tests: BlockTests

    @property
    def n_undefined(self) -> int:
        """Pairs without a cosine, because the whole gradient of a member is zero."""
        return int(np.isnan(self.paired).sum())

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        forced = {"conflict/forced": optional(self.forced)} if self.centered else {}
        return self.overall.keys() | forced | {f"conflict/{SURVIVING}": self.tests.surviving}

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys per block, and both p over blocks: `conflict/q`, `conflict/p_fwe`, and those of the labels."""
        tests = {b: self.tests.keys("conflict", b) | self.label_tests.keys(LABELS, b) for b in self.blocks}
        return {b: s.keys() | tests[b] for b, s in self.blocks.items()}

    def kinds(self) -> dict[str, str]:
        """Whether each key was computed from exact or from projected gradients."""
        rows = "exact" if self.projection == "exact" else "projected"
        pairs = [f"conflict/{k}" for k in ("paired_cosine", "low", "high", "negative_fraction")]
        pairs.append("conflict/paired_cosine/projection_se")
        return {k: "exact" if self.exact_pairs and k in pairs else rows for k in self.summary()}


@dataclass(frozen=True)
class _Nulls:
    """The mean paired cosine among permuted partners, the distance of the means among permuted labels."""

    partners: Null
    labels: Null


@dataclass(frozen=True)
class _Frame:
    """What all blocks share: where the rows stand, which cosines are averaged, and the permutations."""

    rows: Rows
    clusters: Int[np.ndarray, " p"]
    partners: Int[np.ndarray, "p b"]
    labels: Relabellings
    label_weights: LabelWeights
    same_cluster: Bool[np.ndarray, "l r"]
    layouts: Mapping[str, RowLayout]

    @staticmethod
    def of(comparison: Comparison, seed: int) -> _Frame:
        rows = Rows.of(comparison)
        same = rows.left_clusters[:, None] == rows.right_clusters[None, :]
        partners = permuted_partners(comparison.clusters, seed=seed)
        layout = layouts(comparison.left.space)
        counts = (np.bincount(c, minlength=rows.n_clusters) for c in (rows.left_clusters, rows.right_clusters))
        labels = Relabellings.of(*counts, seed=seed)
        weights = LabelWeights.of(labels)
        return _Frame(rows, comparison.clusters, partners, labels, weights, same & ~rows.partners, layout)

    def scope(
        self, products: Float[np.ndarray, "m m"], known: Float[np.ndarray, " p"] | None
    ) -> tuple[ConflictScope, Float[np.ndarray, " p"], _Nulls]:
        """All numbers of one Gram matrix, the paired cosines (the `known` ones, or those of the matrix itself), and
        what chance would do."""
        rows = self.rows
        left, right, across = rows.sides(cosines_of(products))
        matched = across[np.ix_(rows.left_at, rows.right_at)]
        paired = matched.diagonal().copy() if known is None else known
        corrected = corrected_cosines(products, rows)
        nulls = _Nulls(partner_permutations(matched, self.partners), self.labels.null(label_products(products, rows)))
        scope = ConflictScope(
            paired=replace(cluster_mean(paired, self.clusters, bounds=COSINE), p=nulls.partners.p),
            negative_fraction=share_negative(paired),
            same_cluster=mean(across[self.same_cluster]),
            other_cluster=mean(across[~(self.same_cluster | rows.partners)]),
            within_left=mean(left[~np.eye(rows.n_left, dtype=bool)]),
            within_right=mean(right[~np.eye(rows.n_right, dtype=bool)]),
            across=mean(across[~rows.partners]),
            mean_gradient_cosine=mean_gradient_cosine(products, rows),
            corrected=jackknife(float(corrected[0]), corrected[1:], bounds=COSINE),
            label_distance=nulls.labels.relative,
            label_p=nulls.labels.p,
        )
        return scope, paired, nulls

    def influences(self, products: Float[np.ndarray, "m m"], *, centered: bool) -> ConflictInfluences:
        """What places do to the numbers of a Gram matrix, centred already where it is to be."""
        return ConflictInfluences.of(products, self.rows, self.same_cluster, self.label_weights, centered=centered)

    def errors(
        self,
        comparison: Comparison,
        products: Float[np.ndarray, "m m"],
        blocks: Sequence[str],
        *,
        centered: bool,
        known: bool,
    ) -> dict[str, float]:
        """Standard errors by the projection of the numbers of a Gram matrix, which is the sum over `blocks`."""
        sides = comparison.left, comparison.right
        spreads = dict.fromkeys(KEYS, Spread())
        random = [b for b in blocks if not self.layouts[b].is_whole]
        if random:
            influences = self.influences(products, centered=centered)
        for b in random:
            at = influences.at(np.concatenate([rows64(t, b) for t in sides]))
            spreads = {name: s + spread(at[name], self.layouts[b]) for name, s in spreads.items()}
        errors = {name: s.standard_error for name, s in spreads.items()}
        return errors | ({"paired": math.nan} if known else {})


def conflict(comparison: Comparison, *, center: bool = False, seed: int = 0, grams: Grams | None = None) -> Conflict:
    """Cosines between and within the sides; `seed` draws the permutations of partners, `grams` are products of both
    sides' rows that are known already.

    Paired cosines are exact where the comparison has exact products. With `center` everything comes from the projected
    gradients, since exact products are of gradients that are not centred. Raises DataError where there are none.
    """
    left = comparison.left
    check_gradients(left.space, left.provenance.data)
    frame = _Frame.of(comparison, seed)
    known = exact_pairs(comparison, comparison.pairs) if comparison.pairs is not None and not center else None
    prepare: Callable[[Float[np.ndarray, "m m"]], Float[np.ndarray, "m m"]] = centre if center else np.asarray
    m = frame.rows.n_left + frame.rows.n_right
    total = np.zeros((m, m))
    blocks, by_block = {}, []
    nulls: dict[str, _Nulls] = {}
    for block in left.blocks:
        products = block_products((left, comparison.right), block, grams)
        total += products
        prepared = prepare(products)
        scope, paired, nulls[block] = frame.scope(prepared, None if known is None else known.blocks[block])
        errors = frame.errors(comparison, prepared, (block,), centered=center, known=known is not None)
        blocks[block] = scope.with_errors(errors)
        by_block.append(paired)
    prepared = prepare(total)
    overall, paired, _ = frame.scope(prepared, None if known is None else known.whole)
    errors = frame.errors(comparison, prepared, left.blocks, centered=center, known=known is not None)
    return Conflict(
        left_name=left.provenance.data,
        right_name=comparison.right.provenance.data,
        ids=tuple(left.ids[i] for i in comparison.left_index),
        clusters=comparison.clusters,
        overall=overall.with_errors(errors),
        blocks=blocks,
        paired=paired,
        paired_by_block=np.array(by_block, dtype=np.float64).reshape(len(blocks), len(paired)),
        centered=center,
        forced=_forced(total, frame.rows) if center else math.nan,
        exact_pairs=known is not None or left.space.projection == "exact",
        projection=left.space.projection,
        tests=BlockTests.of({b: n.partners for b, n in nulls.items()}),
        label_tests=BlockTests.of({b: n.labels for b, n in nulls.items()}),
    )


def _forced(products: Float[np.ndarray, "m m"], rows: Rows) -> float:
    """The mean inner product across the sides that centring forces, from the products before centring."""
    left, right, across = (float(part.mean()) for part in rows.sides(products))
    share = rows.n_left * rows.n_right / (rows.n_left + rows.n_right) ** 2
    return -share * (left + right - 2 * across)
