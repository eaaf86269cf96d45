"""What do the headline numbers say when every answer counts once?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graddiag.analyzers._alignment import Alignment, alignment
from graddiag.analyzers._conflict import Conflict, conflict
from graddiag.analyzers._framing import Framing, framing
from graddiag.analyzers._loss_gap import LossGap, loss_gap
from graddiag.answers import count_repeats
from graddiag.comparison import Comparison
from graddiag.signals import Signals

PREFIX = "without_repeats"
_HEADLINE = (
    "pairs/n",
    *("loss_gap/mean", "loss_gap/low", "loss_gap/high", "loss_gap/p"),
    *("conflict/paired_cosine", "conflict/low", "conflict/high", "conflict/p"),
    *("framing/consistency", "framing/p"),
    *("framing/safety_cosine", "framing/safety_cosine/low", "framing/safety_cosine/high"),
    *(f"framing/safety_cosine_corrected{end}" for end in ("", "/low", "/high")),
    *("alignment/difference", "alignment/difference/low", "alignment/difference/high", "alignment/difference/p"),
)


@dataclass(frozen=True)
class HeadlineResults:
    """The four results that a comparison's headline numbers are read from; `alignment` is None without a safety set."""

    loss_gap: LossGap
    conflict: Conflict
    framing: Framing
    alignment: Alignment | None

    @property
    def _parts(self) -> tuple[LossGap | Conflict | Framing | Alignment, ...]:
        known = (self.loss_gap, self.conflict, self.framing, self.alignment)
        return tuple(part for part in known if part is not None)

    def summary(self) -> dict[str, int | float | None]:
        """All of their flat keys."""
        return {k: v for part in self._parts for k, v in part.summary().items()}

    def kinds(self) -> dict[str, str]:
        """For each of these keys what it was computed from."""
        return {k: v for part in self._parts for k, v in part.kinds().items()}


@dataclass(frozen=True)
class Repeats:
    """How often answers are repeated, and the headline numbers of the first pair of each answer.

    `n_pairs` is how many pairs have an answer that another pair has too, `n_answers` how many such answers there are
    (target token ids; pairs linked on either side have one). `first` are the results of the first pair of each answer,
    and of the first of rows that are in no pair; those of the whole where no answer is repeated, so that a threshold on
    them works on any data. `stands_beside` says that there are repeats which the clusters do not speak of, since the
    data names others.
    """

    n_pairs: int
    n_answers: int
    first: HeadlineResults
    stands_beside: bool

    def summary(self) -> dict[str, int | float | None]:
        """The count, and the flat keys of the headline numbers under "without_repeats/"; None where undefined."""
        found = self.first.summary()
        return {"pairs/repeated_answers": self.n_pairs} | {f"{PREFIX}/{k}": found.get(k) for k in _HEADLINE}

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """Empty: the numbers are of all blocks as one vector."""
        return {}

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        found = self.first.kinds()
        return {"pairs/repeated_answers": "loss"} | {f"{PREFIX}/{k}": found.get(k, "exact") for k in _HEADLINE}


def repeats(
    comparison: Comparison,
    given: HeadlineResults,
    safety: Signals | None = None,
    controls: Mapping[str, Signals] | None = None,
    *,
    center: bool = False,
    seed: int = 0,
) -> Repeats:
    """The repeats of a comparison whose results are `given`; the other arguments are those of these results."""
    n_pairs, n_answers = count_repeats(comparison.answers)
    rest = comparison.without_repeats()
    first = given
    if rest is not comparison:
        first = HeadlineResults(
            loss_gap(rest, seed=seed),
            conflict(rest, center=center, seed=seed),
            framing(rest, safety, seed=seed),
            alignment(rest, safety, controls, seed=seed) if safety is not None else None,
        )
    return Repeats(n_pairs, n_answers, first, rest is not comparison and not comparison.by_answer)
