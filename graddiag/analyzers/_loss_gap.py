"""How much harder is the same answer under one framing than under the other, and at which tokens?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import wilcoxon

from graddiag.comparison import Comparison
from graddiag.statistics import ROUNDING, Estimate, cluster_mean, mean, mean_difference, optional

MIN_PAIRS_AT_POSITION = 5  # fewer long answers than this say more about themselves than about the position


@dataclass(frozen=True)
class LossGap:
    """Loss gaps of pairs, left minus right, nats per token: positive means that the left side finds the answer harder.

    `gap` and `mean` are over pairs by id; `left_mean` and `right_mean` over all finite rows of a side. `effect_size`
    is Cohen's d_z, the mean gap over the standard deviation of the gaps. `wilcoxon_p` (signed ranks) takes pairs for
    independent and is an extra beside `mean.p`. `position_gap[t]` is the mean gap at answer token t of the
    `position_n[t]` pairs that have the same target tokens and reach it, with a pointwise 95 % interval; positions with
    fewer than 5 such pairs are left out.
    """

    left_name: str
    right_name: str
    ids: tuple[str, ...]
    clusters: Int[np.ndarray, " p"]
    cluster_names: tuple[str, ...]
    left: Float[np.ndarray, " p"]
    right: Float[np.ndarray, " p"]
    gap: Float[np.ndarray, " p"]
    left_mean: float
    right_mean: float
    n_pairs: int
    n_identical: int
    n_clusters: int
    mean: Estimate
    effect_size: float
    wilcoxon_p: float
    position_gap: Float[np.ndarray, " t"]
    position_low: Float[np.ndarray, " t"]
    position_high: Float[np.ndarray, " t"]
    position_n: Int[np.ndarray, " t"]

    def summary(self) -> dict[str, int | float | None]:
        """The flat keys of this result, counts as whole numbers; None where undefined."""
        return {
            "pairs/n": self.n_pairs,
            "pairs/identical": self.n_identical,
            "pairs/clusters": self.n_clusters,
            "loss/left": optional(self.left_mean),
            "loss/right": optional(self.right_mean),
            "loss_gap/mean": optional(self.mean.value),
            "loss_gap/low": optional(self.mean.low),
            "loss_gap/high": optional(self.mean.high),
            "loss_gap/p": optional(self.mean.p),
            "loss_gap/effect_size": optional(self.effect_size),
            "loss_gap/wilcoxon_p": optional(self.wilcoxon_p),
        }

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """Empty: a loss has no blocks."""
        return {}

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        return dict.fromkeys(self.summary(), "loss")


def loss_gap(comparison: Comparison, *, seed: int = 0) -> LossGap:
    """Loss gaps of all pairs and by answer token; `seed` draws the sign flips where there are more than 14 clusters."""
    left, right = comparison.left, comparison.right
    loss_left = left.loss[comparison.left_index].astype(np.float64)
    loss_right = right.loss[comparison.right_index].astype(np.float64)
    gap = loss_left - loss_right
    at = _positions(comparison)
    by_position = [cluster_mean(column, comparison.clusters) for column in at.T]
    return LossGap(
        left_name=left.provenance.data,
        right_name=right.provenance.data,
        ids=tuple(left.ids[i] for i in comparison.left_index),
        clusters=comparison.clusters,
        cluster_names=comparison.cluster_names,
        left=loss_left,
        right=loss_right,
        gap=gap,
        left_mean=mean(left.loss[left.finite].astype(np.float64)),
        right_mean=mean(right.loss[right.finite].astype(np.float64)),
        n_pairs=comparison.n_pairs,
        n_identical=int(comparison.identical.sum()),
        n_clusters=len(comparison.cluster_names),
        mean=mean_difference(gap, comparison.clusters, seed=seed),
        effect_size=_effect_size(gap),
        wilcoxon_p=float(wilcoxon(gap).pvalue) if gap.any() else math.nan,
        position_gap=np.array([e.value for e in by_position], dtype=np.float64),
        position_low=np.array([e.low for e in by_position], dtype=np.float64),
        position_high=np.array([e.high for e in by_position], dtype=np.float64),
        position_n=np.isfinite(at).sum(axis=0),
    )


def _positions(comparison: Comparison) -> Float[np.ndarray, "p t"]:
    """Gaps by answer token, NaN where a pair lacks it or has other tokens; only positions that enough pairs reach."""
    token_left, token_right = comparison.left.token_loss, comparison.right.token_loss
    at = zip(comparison.left_index, comparison.right_index, comparison.identical, strict=True)
    rows = [np.subtract(token_left[a], token_right[b], dtype=np.float64) if same else np.zeros(0) for a, b, same in at]
    out = np.full((len(rows), max((len(r) for r in rows), default=0)), np.nan)
    for row, gaps in zip(out, rows, strict=True):
        row[: len(gaps)] = gaps
    return out[:, np.isfinite(out).sum(axis=0) >= MIN_PAIRS_AT_POSITION]


def _effect_size(gap: Float[np.ndarray, " p"]) -> float:
    if len(gap) < 2:
        return math.nan
    sd = float(gap.std(ddof=1))
    return float(gap.mean()) / sd if sd > ROUNDING * float(np.abs(gap).max()) else math.nan
