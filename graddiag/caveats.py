"""What the numbers do not show, and when that must be said beside them: one table, here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from graddiag.permutations import smallest_p
from graddiag.rules import ALPHA, FEW_CLUSTERS, PROJECTION_SE, Setting

HALF = 0.5  # of the safety rows in one cluster: all others together weigh less than it
LARGE_ERROR = 0.02  # cosine; a projection this coarse hides effects of the size that fine-tuning sets show


@dataclass(frozen=True)
class Facts:
    """What the limits are read from; NaN where nothing is known of it.

    `safety_clusters` is how many clusters the safety rows make, `largest_cluster` the share of them in the largest, and
    `direction_low` as in `Evidence`.
    """

    n_clusters: int
    error: float
    setting: Setting
    forced: float = math.nan  # mean inner product across the sides that centring makes, whatever the data
    safety_clusters: float = math.nan
    largest_cluster: float = math.nan
    direction_low: float = math.nan

    @property
    def smallest_p(self) -> float:
        """The smallest p that sign flips of this many clusters can give."""
        return smallest_p(self.n_clusters)


@dataclass(frozen=True)
class Limit:
    """What the numbers do not show, and when that must be said."""

    when: str
    says: str
    holds: Callable[[Facts], bool]


LIMITS = (
    Limit(
        "the grand mean was subtracted",
        "Centred: the grand mean was subtracted, which by itself makes cosines between the sides negative: it forces "
        "their mean inner product to -n_l n_r ||mu_l - mu_r||^2 / (n_l + n_r)^2 = {facts.forced:.3g}.",
        lambda f: f.setting.centered,
    ),
    Limit("no clusters", "There are no pairs: nothing paired is claimed.", lambda f: f.n_clusters == 0),
    Limit("one cluster", "One cluster: intervals and the p of sign flips are undefined.", lambda f: f.n_clusters == 1),
    Limit(
        f"too few clusters for any p below {ALPHA}",
        "Few clusters ({facts.n_clusters}): sign flips give no p below {facts.smallest_p:.3g}; none is claimed.",
        lambda f: f.smallest_p >= ALPHA,
    ),
    Limit(
        f"fewer than {FEW_CLUSTERS} clusters",
        "Few clusters ({facts.n_clusters}): intervals and p are rough.",
        lambda f: f.smallest_p < ALPHA and f.n_clusters < FEW_CLUSTERS,
    ),
    Limit(
        "the interval of alignment/safety_split_half reaches 0 or less, or is undefined",
        "The safety direction is not known: the safety set makes {facts.safety_clusters:.0f} clusters (rows of one "
        "answer are one where none are named), with {facts.largest_cluster:.0%} of its rows in one of them; halves of "
        "it do not agree, or are too few to tell. Numbers along it are given these answers. To claim more, use a set "
        "with other answers too; if just this kind of answer is meant, say in its `cluster` column what its rows share "
        "instead.",
        lambda f: f.direction_low <= 0,
    ),
    Limit(
        f"fewer than {FEW_CLUSTERS} clusters of safety rows, or one with more than half of the rows",
        "Few safety clusters ({facts.safety_clusters:.0f}, the largest has {facts.largest_cluster:.0%} of the rows): "
        "how well the direction of safety is known is itself rough.",
        lambda f: f.direction_low > 0 and (f.safety_clusters < FEW_CLUSTERS or f.largest_cluster > HALF),
    ),
    Limit(
        f"projection/error above {LARGE_ERROR}",
        f"Single projected cosines are off by about {{facts.error:.3f}} (more than {LARGE_ERROR}); what that does to a "
        f"mean is in its KEY/{PROJECTION_SE}. A larger --dim or --projection exact would sharpen them.",
        lambda f: f.error > LARGE_ERROR,
    ),
    Limit(
        "projection/error unknown",
        "The error of the projected cosines is unknown: there are no exact products to check them against.",
        lambda f: math.isnan(f.error),
    ),
    Limit("no safety set", "No safety set: nothing is said about safety.", lambda f: f.setting.safety is None),
    Limit(
        "no control",
        "No control: whether any other data would do the same to safety is not known.",
        lambda f: f.setting.safety is not None and not f.setting.controls,
    ),
)
