"""Do the two sides pull the model in opposite directions?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._blocks import SURVIVING, BlockTests
from graddiag.analyzers._conflict_error import ConflictInfluences, LabelWeights
from graddiag.analyzers._cosines import exact_pairs
from graddiag.analyzers._projection_error import Spread, error_keys, layouts, spread
from graddiag.analyzers._row_sums import RowSums
from graddiag.analyzers._rows import Rows, centre, corrected_cosines, mean_gradient_cosine
from graddiag.analyzers._side_products import SideProducts
from graddiag.analyzers._side_sources import Chance, of_gram, of_tiles
from graddiag.comparison import Comparison
from graddiag.grams import Grams, block_products
from graddiag.permutations import Null, permuted_partners
from graddiag.relabelling import Relabellings
from graddiag.row_layout import RowLayout
from graddiag.signals import Signals, check_gradients
from graddiag.statistics import COSINE, Estimate, cluster_mean, jackknife, optional, share_negative
from graddiag.tiles import Tiles, fits

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
class _Frame:
    """What all blocks share: the sides, where their rows stand, the permutations, and where products come from (tiles
    of rows where `grams` is None)."""

    sides: tuple[Signals, Signals]
    rows: Rows
    chance: Chance
    layouts: Mapping[str, RowLayout]
    centered: bool

    @staticmethod
    def of(comparison: Comparison, seed: int, *, centered: bool) -> _Frame:
        rows = Rows.of(comparison)
        partners = permuted_partners(comparison.clusters, seed=seed)
        labels = Relabellings.of(rows.groups.counts(0), rows.groups.counts(1), seed=seed)
        chance = Chance(comparison.clusters, partners, labels, LabelWeights.of(labels))
        layout = layouts(comparison.left.space)
        return _Frame((comparison.left, comparison.right), rows, chance, layout, centered)

    def from_gram(self, products: Float[np.ndarray, "m m"]) -> SideProducts:
        """From products of all rows, which are centred here where they are to be."""
        return of_gram(centre(products) if self.centered else products, self.rows, self.chance)

    def from_tiles(self, blocks: Sequence[str]) -> SideProducts:
        """From the rows themselves, of some blocks as one vector."""
        return of_tiles(Tiles(self.sides, tuple(blocks)), self.rows, self.chance, centered=self.centered)

    def scope(
        self, products: SideProducts, known: Float[np.ndarray, " p"] | None, blocks: Sequence[str]
    ) -> tuple[ConflictScope, Float[np.ndarray, " p"]]:
        """All numbers of some blocks as one vector, and the paired cosines: the `known` ones, or those of the rows."""
        rows, means = self.rows, products.means(self.rows)
        paired = products.paired if known is None else known
        corrected = corrected_cosines(products.plain, rows)
        scope = ConflictScope(
            paired=replace(cluster_mean(paired, self.chance.clusters, bounds=COSINE), p=products.partners.p),
            negative_fraction=share_negative(paired),
            same_cluster=means["same_cluster"].value,
            other_cluster=means["other_cluster"].value,
            within_left=means["within_left"].value,
            within_right=means["within_right"].value,
            across=means["across"].value,
            mean_gradient_cosine=mean_gradient_cosine(products.plain, rows),
            corrected=jackknife(float(corrected[0]), corrected[1:], bounds=COSINE),
            label_distance=products.label_distance,
            label_p=products.labels.p,
        )
        return scope.with_errors(self._errors(products, blocks, known=known is not None)), paired

    def influences(self, products: SideProducts) -> ConflictInfluences:
        """What places do to the numbers of some blocks as one vector."""
        return ConflictInfluences.of(products, self.rows, self.chance.weights, centered=self.centered)

    def _errors(self, products: SideProducts, blocks: Sequence[str], *, known: bool) -> dict[str, float]:
        """Standard errors by the projection of the numbers of `blocks` as one vector."""
        spreads = dict.fromkeys(KEYS, Spread())
        random = [b for b in blocks if not self.layouts[b].is_whole]
        if random:
            influences = self.influences(products)
        for b in random:
            at = influences.at(Tiles(self.sides, (b,)))
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
    frame = _Frame.of(comparison, seed, centered=center)
    known = exact_pairs(comparison, comparison.pairs) if comparison.pairs is not None and not center else None
    m = frame.rows.n_left + frame.rows.n_right
    total = np.zeros((m, m)) if fits(m) else None
    blocks, by_block = {}, []
    nulls: dict[str, tuple[Null, Null]] = {}
    for block in left.blocks:
        if total is None:
            products = frame.from_tiles((block,))
        else:
            gram = block_products(frame.sides, block, grams)
            total += gram
            products = frame.from_gram(gram)
        exact = None if known is None else known.blocks[block]
        blocks[block], paired = frame.scope(products, exact, (block,))
        nulls[block] = products.partners, products.labels
        by_block.append(paired)
    products = frame.from_tiles(left.blocks) if total is None else frame.from_gram(total)
    overall, paired = frame.scope(products, None if known is None else known.whole, left.blocks)
    return Conflict(
        left_name=left.provenance.data,
        right_name=comparison.right.provenance.data,
        ids=tuple(left.ids[i] for i in comparison.left_index),
        clusters=comparison.clusters,
        overall=overall,
        blocks=blocks,
        paired=paired,
        paired_by_block=np.array(by_block, dtype=np.float64).reshape(len(blocks), len(paired)),
        centered=center,
        forced=_forced(products.plain, frame.rows) if center else math.nan,
        exact_pairs=known is not None or left.space.projection == "exact",
        projection=left.space.projection,
        tests=BlockTests.of({b: partners for b, (partners, _) in nulls.items()}),
        label_tests=BlockTests.of({b: labels for b, (_, labels) in nulls.items()}),
    )


def _forced(sums: RowSums, rows: Rows) -> float:
    """The mean inner product across the sides that centring forces; it changes no distance, so that of the two means
    can be read off centred rows."""
    n, m = rows.n_left, rows.n_right
    left, right = float(sums.whole[:n, 0].sum()) / n**2, float(sums.whole[n:, 1].sum()) / m**2
    return -n * m / (n + m) ** 2 * (left + right - 2 * float(sums.whole[:n, 1].sum()) / (n * m))
