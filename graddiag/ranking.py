"""Which rows of a set does learning them most harm safety with, and how well is that order known?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from graddiag.answers import by_answer
from graddiag.errors import UsageError
from graddiag.signals import Signals, digest_of
from graddiag.statistics import Estimate, cluster_mean, cosine

TAIL = 0.05  # share of a control's rows that count as its most harmful ones
BY = ("alignment", "harm", "matching")


@dataclass(frozen=True)
class Scalars:
    """A few numbers per row, all blocks as one vector: nothing here grows with the model.

    `products[i, r]` is the exact `<g_i, M_r>` with the r-th known mean gradient, `norm[i]` is `||g_i||`. `answers` are
    digests of the target tokens.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    loss: Float[np.ndarray, " n"]
    n_tokens: Int[np.ndarray, " n"]
    finite: Bool[np.ndarray, " n"]
    norm: Float[np.ndarray, " n"]
    products: Float[np.ndarray, "n r"]
    answers: tuple[str, ...]

    @staticmethod
    def of(table: Signals) -> Scalars:
        """Those of a table whose rows are products with known gradients: sums over its blocks."""
        squares = sum((table.norms[b].astype(np.float64) ** 2 for b in table.blocks), np.zeros(len(table)))
        start = np.zeros((len(table), table.space.dim))
        products = sum((table.gradients[b].astype(np.float64) for b in table.blocks), start)
        return Scalars(
            table.ids,
            table.clusters,
            table.loss,
            table.n_tokens,
            table.finite,
            np.sqrt(squares),
            np.asarray(products),
            tuple(digest_of([str(a.tolist())]) for a in table.target_ids),
        )

    @staticmethod
    def concat(parts: Sequence[Scalars]) -> Scalars:
        """The parts one after the other."""
        arrays = ("loss", "n_tokens", "finite", "norm", "products")
        loss, n_tokens, finite, norm, products = (np.concatenate([getattr(p, a) for p in parts]) for a in arrays)
        ids, clusters, answers = (
            tuple(v for p in parts for v in getattr(p, k)) for k in ("ids", "clusters", "answers")
        )
        return Scalars(ids, clusters, loss, n_tokens, finite, norm, products, answers)

    @property
    def names_clusters(self) -> bool:
        """Whether the data, or --cluster, says what rows have in common; else a row's cluster is its id."""
        return self.clusters != self.ids

    def clustered(self) -> Scalars:
        """The whole set with rows of one answer in one cluster, if no clusters are named."""
        return self if self.names_clusters else replace(self, clusters=by_answer(self.ids, self.answers))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def codes(self) -> Int[np.ndarray, " n"]:
        """The number of each row's cluster."""
        return np.unique(np.array(self.clusters), return_inverse=True)[1]


@dataclass(frozen=True)
class Means:
    """The known mean gradients: those of the parts of the safety set, then those of the harmful set, if there is one.

    `gram[r, s]` is `<M_r, M_s>` over all blocks, `n[r]` how many finite rows M_r is the mean of. A set has two parts,
    with no cluster in both, or one where it has a single cluster.
    """

    gram: Float[np.ndarray, "r r"]
    n: tuple[int, ...]
    safety: tuple[int, ...]
    harmful: tuple[int, ...] = ()

    def whole(self, parts: Sequence[int]) -> Float[np.ndarray, " r"]:
        """The weights with which the parts' means give the mean of the whole set."""
        weights = np.zeros(len(self.n))
        for r in parts:
            weights[r] = self.n[r]
        return np.asarray(weights / weights.sum())

    def half(self, parts: Sequence[int], k: int) -> Float[np.ndarray, " r"] | None:
        """The weights that choose the k-th half of a set; None where it has no halves."""
        if len(parts) < 2:
            return None
        weights = np.zeros(len(self.n))
        weights[parts[k]] = 1.0
        return weights


@dataclass(frozen=True)
class Ranking:
    """Rows by how much learning them moves the model away from safe answers; NaN for rows that are not finite.

    `alignment` is the cosine of a row's gradient with the mean safety gradient, `inner` their inner product, and `harm`
    its negative: the change of the safety loss (nats/token) to first order by one step on this row, per unit of
    learning rate. `matching` is the cosine with the mean harmful gradient minus that with the mean safety gradient (He
    et al. 2024, arXiv 2404.01099), NaN without a harmful set. `score` is what rows are ranked by, the higher the more
    harmful: minus `alignment`, or `harm`, or `matching`; `rank` 1 is the highest, equal scores in the order of the
    set, and 0 says that there is no score.

    `halves` is the Spearman correlation of two scores, each from one half of the safety set (and of the harmful one);
    NaN where a set has no two clusters.
    """

    by: str
    rows: Scalars
    alignment: Float[np.ndarray, " n"]
    inner: Float[np.ndarray, " n"]
    matching: Float[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    halves: float

    @property
    def reliability(self) -> float:
        """How well the order is known, 0..1: what the correlation of halves says of the whole sets (Spearman-Brown).

        About the noise of the safety set only: that the score is the right one is not in it. One split in halves.
        """
        return math.nan if math.isnan(self.halves) else max(0.0, 2 * self.halves / (1 + max(self.halves, 0.0)))

    @property
    def harm(self) -> Float[np.ndarray, " n"]:
        """Predicted change of the safety loss, nats/token per unit of learning rate; above 0 it grows."""
        return -self.inner

    @property
    def order(self) -> Int[np.ndarray, " m"]:
        """The rows that have a score, the most harmful first."""
        ranked = np.flatnonzero(self.rank)
        return np.asarray(ranked[np.argsort(self.rank[ranked], kind="stable")])

    def mean(self, values: Float[np.ndarray, " n"], *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
        """The mean over rows of one of the columns, with its interval over clusters, given these safety rows."""
        return cluster_mean(values, self.rows.codes, bounds=bounds)

    @property
    def opposed_share(self) -> Estimate:
        """Share of the rows whose alignment is below 0, with its interval over clusters."""
        below = np.where(np.isfinite(self.alignment), (self.alignment < 0).astype(np.float64), np.nan)
        return self.mean(below, bounds=(0.0, 1.0))

    def beyond(self, control: Ranking) -> Estimate:
        """Share of the rows whose score is above all but 5 % of the control's scores, with its interval given that
        control; 0.05 where the two sets are alike."""
        known = control.score[np.isfinite(control.score)]
        if not len(known):
            return Estimate(math.nan)
        above = (self.score > np.quantile(known, 1 - TAIL)).astype(np.float64)
        return self.mean(np.where(np.isfinite(self.score), above, np.nan), bounds=(0.0, 1.0))

    def worst(self, share: float) -> Int[np.ndarray, " m"]:
        """The rows to drop: a share (0..1) of those that have a score, rounded, the most harmful first."""
        return self.order[: round(share * len(self.order))]


def check_choice(by: str | None, share: float, *, harmful: bool) -> None:
    """Raises UsageError for an unknown `by`, matching without a harmful set, and a share to drop that is none."""
    if by is not None and by not in BY:
        raise UsageError(f"Rows cannot be ranked by {by!r}. Allowed: {', '.join(BY)}.")
    if by == "matching" and not harmful:
        raise UsageError("Ranking by 'matching' needs harmful answers too: give them with --harmful SET.")
    if not 0 <= share < 1:
        raise UsageError(f"--drop {share:g}: give a share of the rows from 0 to below 1, such as 0.1.")


def rank_rows(rows: Scalars, means: Means, *, by: str | None = None) -> Ranking:
    """The rows ranked by `by`: "alignment", "harm" or "matching"; by default matching where there is a harmful set.

    Raises UsageError for another `by`, and for matching without a harmful set.
    """
    check_choice(by, 0.0, harmful=bool(means.harmful))
    by = by or ("matching" if means.harmful else "alignment")
    safe = means.whole(means.safety)
    alignment, inner = _cosines(rows, means, safe), _products(rows, safe)
    matching = np.full(len(rows), np.nan)
    if means.harmful:
        matching = _cosines(rows, means, means.whole(means.harmful)) - alignment
    score = {"alignment": -alignment, "harm": -inner, "matching": matching}[by]
    return Ranking(by, rows, alignment, inner, matching, score, _ranks(score), _halves(rows, means, by))


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation over the rows where both are defined; NaN for fewer than two, or where one is
    constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2:
        return math.nan
    x, y = (rankdata(v[both]) - (both.sum() + 1) / 2 for v in (a, b))
    lengths = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / lengths if lengths else math.nan


def _products(rows: Scalars, weights: Float[np.ndarray, " r"]) -> Float[np.ndarray, " n"]:
    """Inner products with the weighted sum of the known gradients."""
    # Row by row in one order, so that equal rows have equal products, which a product of matrices does not promise.
    return np.where(rows.finite, (rows.products * weights).sum(axis=1), np.nan)


def _cosines(rows: Scalars, means: Means, weights: Float[np.ndarray, " r"]) -> Float[np.ndarray, " n"]:
    """Cosines with the weighted sum of the known gradients."""
    length = np.full(len(rows), math.sqrt(max(float(weights @ means.gram @ weights), 0.0)))
    return cosine(_products(rows, weights), np.where(rows.finite, rows.norm, np.nan), length)


def _halves(rows: Scalars, means: Means, by: str) -> float:
    """Spearman correlation of the scores that the two halves of the safety set, and of the harmful one, give."""
    scores = []
    for k in (0, 1):
        safe = means.half(means.safety, k)
        harmful = means.half(means.harmful, k)
        if safe is None or (by == "matching" and harmful is None):
            return math.nan
        if by == "harm":
            scores.append(-_products(rows, safe))
        elif harmful is None or by == "alignment":
            scores.append(-_cosines(rows, means, safe))
        else:
            scores.append(_cosines(rows, means, harmful) - _cosines(rows, means, safe))
    return spearman(scores[0], scores[1])


def _ranks(score: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """1 for the highest score; 0 where there is none."""
    ranks = np.zeros(len(score), dtype=np.int64)
    defined = np.flatnonzero(np.isfinite(score))
    ranks[defined[np.argsort(-score[defined], kind="stable")]] = np.arange(1, len(defined) + 1)
    return ranks
