"""Everything that conflict asks of the products of both sides' rows, without a matrix of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._row_sums import RowSums
from graddiag.analyzers._rows import Rows
from graddiag.permutations import Null
from graddiag.statistics import COSINE


@dataclass(frozen=True)
class MeanCosine:
    """A mean of cosines over `n` chosen pairs of rows; NaN where no cosine of such a pair is defined.

    `cosines[i]` is the sum over the pairs of row i of their cosines, `counts[i]` the number of those pairs, each over
    the sum of all counts.
    """

    value: float
    n: float
    cosines: Float[np.ndarray, " m"]
    counts: Float[np.ndarray, " m"]


@dataclass(frozen=True)
class SideProducts:
    """Of one block, or of all as one vector, centred where they are to be: what the rows `plain` have in common with
    their sides and clusters, and what they have at `unit` length, 0 for a row that is zero; the cosine of each pair;
    the mean cosine among permuted partners; the distance of the means among permuted labels, as a null, and
    `label_totals`, as it is and on average over relabellings."""

    plain: RowSums
    unit: RowSums
    paired: Float[np.ndarray, " p"]
    partners: Null
    labels: Null
    label_totals: Float[np.ndarray, " 2"]

    @property
    def label_distance(self) -> float:
        """The distance of the means over its mean under relabelling; NaN where that is not above zero."""
        real, middle = self.label_totals.tolist()
        return real / middle if middle > 0 and len(self.labels.values) else math.nan

    def means(self, rows: Rows) -> dict[str, MeanCosine]:
        """Mean cosines by name: within each side, across, of rows of one cluster and of others, of partners."""
        some = self.plain.squares > 0
        counting = RowSums.counting(some, rows.groups)
        values = _by_row(self.unit, rows.of_partners(np.nan_to_num(self.paired, nan=0.0)), rows)
        both = some[rows.left_at] & some[rows.n_left + rows.right_at]
        counts = _by_row(counting, rows.of_partners(both.astype(np.float64)), rows)
        return {k: _mean(values[k], counts[k], once=k.startswith("within")) for k in values}


def _by_row(sums: RowSums, matched: Float[np.ndarray, " m"], rows: Rows) -> dict[str, Float[np.ndarray, " m"]]:
    """For each row the sum over the pairs that it is in; `matched` has the term of its partner."""
    side = rows.groups.sides
    at = np.arange(len(side))
    own = sums.whole[at, side] - sums.squares
    other, near = sums.whole[at, 1 - side], sums.inside[at, 1 - side]
    return {
        "within_left": np.where(side == 0, own, 0.0),
        "within_right": np.where(side == 1, own, 0.0),
        "across": other - matched,
        "same_cluster": near - matched,
        "other_cluster": other - near,
        "paired": matched,
    }


def _mean(values: Float[np.ndarray, " m"], counts: Float[np.ndarray, " m"], *, once: bool) -> MeanCosine:
    """The mean over pairs, each of which both its rows have; `once` where a pair counts once from each of its ends."""
    total = float(counts.sum()) or math.nan
    value = float(np.clip(values.sum() / total, *COSINE))
    return MeanCosine(value, total if once else total / 2, values / total, counts / total)
