"""How much do the numbers of the pairs change when the prompts of a side are edited?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._alignment import Alignment
from graddiag.analyzers._conflict import Conflict
from graddiag.analyzers._loss_gap import LossGap
from graddiag.statistics import Estimate, mean_difference, optional


@dataclass(frozen=True)
class EditChange:
    """The mean change, with the edit minus as given, over the pairs that both comparisons have.

    `loss_gap` is that of the loss gap, nats/token; `paired_cosine` that of the cosine of a pair's gradients;
    `alignment_difference` that of left minus right in the cosine with safety, None without a safety set. Each is a mean
    of paired differences: the two comparisons share rows, so their own intervals do not say how far apart they are.
    An exact and a projected number are not subtracted: then the change is undefined.
    """

    n_pairs: int
    loss_gap: Estimate
    paired_cosine: Estimate
    alignment_difference: Estimate | None
    exact_pairs: bool
    exact_alignment: bool

    def summary(self) -> dict[str, int | float | None]:
        """The flat keys of this result; None where undefined."""
        named = {"loss_gap": self.loss_gap, "paired_cosine": self.paired_cosine}
        named["alignment_difference"] = self.alignment_difference or Estimate(math.nan)
        flat: dict[str, int | float | None] = {"change/n": self.n_pairs}
        for name, e in named.items():
            flat[f"change/{name}"] = optional(e.value)
            flat |= {f"change/{name}/{end}": optional(getattr(e, end)) for end in ("low", "high", "p")}
        return flat

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        kind = {True: "exact", False: "projected"}
        of = {"paired_cosine": kind[self.exact_pairs], "alignment_difference": kind[self.exact_alignment]}
        return {k: of.get(k.split("/")[1], "loss") for k in self.summary()}


def edit_change(
    given: tuple[LossGap, Conflict, Alignment | None],
    edited: tuple[LossGap, Conflict, Alignment | None],
    *,
    seed: int = 0,
) -> EditChange:
    """The change that the edit makes; `seed` draws the sign flips where there are more than 14 clusters."""
    gap, conflict, alignment = given
    new_gap, new_conflict, new_alignment = edited
    at = {i: k for k, i in enumerate(new_gap.ids)}
    kept = [(k, at[i]) for k, i in enumerate(gap.ids) if i in at]
    clusters = gap.clusters[[k for k, _ in kept]] if kept else gap.clusters[:0]

    def change(before: Float[np.ndarray, " p"], after: Float[np.ndarray, " q"]) -> Estimate:
        return mean_difference(_differences(before, after, kept), clusters, seed=seed)

    toward = None
    if alignment is not None and new_alignment is not None and alignment.exact == new_alignment.exact:
        toward = change(alignment.pair_difference, new_alignment.pair_difference)
    alike = conflict.exact_pairs == new_conflict.exact_pairs
    return EditChange(
        n_pairs=len(kept),
        loss_gap=change(gap.gap, new_gap.gap),
        paired_cosine=change(conflict.paired, new_conflict.paired) if alike else Estimate(math.nan),
        alignment_difference=toward,
        exact_pairs=conflict.exact_pairs,
        exact_alignment=alignment is not None and alignment.exact,
    )


def _differences(
    before: Float[np.ndarray, " p"], after: Float[np.ndarray, " q"], kept: Sequence[tuple[int, int]]
) -> Float[np.ndarray, " m"]:
    return np.array([after[b] - before[a] for a, b in kept], dtype=np.float64)
