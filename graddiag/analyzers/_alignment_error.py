"""How far may projected cosines with safety be off, on average over a set?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._cosines import RowCosines, mean_gradient
from graddiag.analyzers._projection_error import Influence, Spread, layouts, mean_cosine_influence, spread
from graddiag.comparison import Comparison
from graddiag.signals import Signals

Errors = dict[str, float]


@dataclass(frozen=True)
class AlignmentErrors:
    """Standard errors by the projection of the mean cosine of each table, and of "difference", left minus right over
    pairs: of the whole vector, and per block."""

    whole: Errors
    blocks: Mapping[str, Errors]


def alignment_errors(
    comparison: Comparison, safety: Signals, tables: Mapping[str, Signals], cosines: Mapping[str, RowCosines]
) -> AlignmentErrors:
    """Those of projected cosines; 0 where gradients are not projected."""
    lay = layouts(safety.space)
    overall = _Norms(comparison, safety, tables, safety.blocks)
    whole = {name: c.whole for name, c in cosines.items()}
    total = dict.fromkeys((*tables, "difference"), Spread())
    blocks: dict[str, Errors] = {}
    for block in safety.blocks:
        if lay[block].is_whole:
            blocks[block] = dict.fromkeys(total, 0.0)
            continue
        values = {name: c.blocks[block] for name, c in cosines.items()}
        alone = _Norms(comparison, safety, tables, (block,)).influences(block, values)
        blocks[block] = {name: spread(i, lay[block]).standard_error for name, i in alone.items()}
        shared = overall.influences(block, whole)
        total = {name: t + spread(shared[name], lay[block]) for name, t in total.items()}
    return AlignmentErrors({name: t.standard_error for name, t in total.items()}, blocks)


def no_errors(comparison: Comparison, tables: Mapping[str, Signals]) -> AlignmentErrors:
    """Those of cosines from exact products of gradients whose rows are projected: not defined, since none is made."""
    each = dict.fromkeys((*tables, "difference"), math.nan)
    return AlignmentErrors(each, dict.fromkeys(comparison.left.blocks, each))


class _Norms:
    """Projected norms over some blocks, by which cosines are divided."""

    def __init__(
        self, comparison: Comparison, safety: Signals, tables: Mapping[str, Signals], blocks: Sequence[str]
    ) -> None:
        self._comparison, self._safety, self._tables = comparison, safety, tables
        self._rows = {name: _norms([t.gradients[b] for b in blocks]) for name, t in tables.items()}
        self._mean = _norms([mean_gradient(safety, b)[None] for b in blocks])

    def influences(self, block: str, cosines: Mapping[str, Float[np.ndarray, " _"]]) -> dict[str, Influence]:
        """Of each table's mean cosine, and of the difference over pairs, in one block."""
        every = {name: np.arange(len(t)) for name, t in self._tables.items()}
        out = {name: self._influence(name, block, at, cosines[name]) for name, at in every.items()}
        left, right = self._comparison.left_index, self._comparison.right_index
        known = np.isfinite(cosines["left"][left] - cosines["right"][right])
        pairs = [
            self._influence(side, block, at[known], cosines[side]) for side, at in (("left", left), ("right", right))
        ]
        return out | {"difference": pairs[0].minus(pairs[1])}

    def _influence(
        self, name: str, block: str, at: Int[np.ndarray, " p"], cosines: Float[np.ndarray, " n"]
    ) -> Influence:
        rows = np.asarray(self._tables[name].gradients[block][at], dtype=np.float64)
        toward = mean_gradient(self._safety, block)[None]
        return mean_cosine_influence(rows, toward, self._rows[name][at], self._mean, cosines[at])


def _norms(parts: Sequence[np.ndarray]) -> Float[np.ndarray, " n"]:
    squares = [np.einsum("nk,nk->n", p, p, dtype=np.float64) for p in parts]
    return np.asarray(np.sqrt(sum(squares)))
