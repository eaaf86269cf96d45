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
    overall = _Norms.of(safety, tables, safety.blocks)
    whole = {name: c.whole for name, c in cosines.items()}
    total = dict.fromkeys((*tables, "difference"), Spread())
    blocks: dict[str, Errors] = {}
    for block in safety.blocks:
        if lay[block].is_whole:
            blocks[block] = dict.fromkeys(total, 0.0)
            continue
        values = {name: c.blocks[block] for name, c in cosines.items()}
        near = _Near.of(comparison, safety, tables, block)
        alone = _Norms.of(safety, tables, (block,)).influences(near, values)
        blocks[block] = {name: spread(i, lay[block]).standard_error for name, i in alone.items()}
        shared = overall.influences(near, whole)
        total = {name: t + spread(shared[name], lay[block]) for name, t in total.items()}
    return AlignmentErrors({name: t.standard_error for name, t in total.items()}, blocks)


def no_errors(comparison: Comparison, tables: Mapping[str, Signals]) -> AlignmentErrors:
    """Those of cosines from exact products of gradients whose rows are projected: not defined, since none is made."""
    each = dict.fromkeys((*tables, "difference"), math.nan)
    return AlignmentErrors(each, dict.fromkeys(comparison.left.blocks, each))


@dataclass(frozen=True)
class _Near:
    """One block of all tables: rows and their squares, zero where a row is not finite, the mean safety gradient, and
    the rows of the pairs."""

    rows: Mapping[str, Float[np.ndarray, "_ k"]]
    squares: Mapping[str, Float[np.ndarray, "_ k"]]
    toward: Float[np.ndarray, " k"]
    pairs: tuple[tuple[str, Int[np.ndarray, " p"]], ...]

    @staticmethod
    def of(comparison: Comparison, safety: Signals, tables: Mapping[str, Signals], block: str) -> _Near:
        rows = {name: _zero_unless_finite(t, block) for name, t in tables.items()}
        pairs = (("left", comparison.left_index), ("right", comparison.right_index))
        return _Near(rows, {name: r * r for name, r in rows.items()}, mean_gradient(safety, block), pairs)


@dataclass(frozen=True)
class _Norms:
    """Projected norms over some blocks, by which cosines are divided."""

    rows: Mapping[str, Float[np.ndarray, " _"]]
    mean: float

    @staticmethod
    def of(safety: Signals, tables: Mapping[str, Signals], blocks: Sequence[str]) -> _Norms:
        rows = {name: _norms([t.gradients[b] for b in blocks]) for name, t in tables.items()}
        return _Norms(rows, float(_norms([mean_gradient(safety, b)[None] for b in blocks])[0]))

    def influences(self, near: _Near, cosines: Mapping[str, Float[np.ndarray, " _"]]) -> dict[str, Influence]:
        """Of each table's mean cosine, and of the difference over pairs, in one block."""
        out = {name: self._influence(name, near, cosines[name]) for name in near.rows}
        known = np.isfinite(np.subtract(*(cosines[side][at] for side, at in near.pairs)))
        parts = []
        for side, at in near.pairs:
            paired = np.full(len(cosines[side]), np.nan)
            paired[at[known]] = cosines[side][at[known]]
            parts.append(self._influence(side, near, paired))
        return out | {"difference": parts[0].minus(parts[1])}

    def _influence(self, name: str, near: _Near, cosines: Float[np.ndarray, " n"]) -> Influence:
        with np.errstate(divide="ignore", invalid="ignore"):
            toward = near.toward / self.mean
        return mean_cosine_influence(near.rows[name], near.squares[name], self.rows[name], toward, cosines)


def _zero_unless_finite(table: Signals, block: str) -> Float[np.ndarray, "n k"]:
    rows = table.gradients[block].astype(np.float64)
    rows[~table.finite] = 0.0
    return rows


def _norms(parts: Sequence[np.ndarray]) -> Float[np.ndarray, " n"]:
    squares = [np.einsum("nk,nk->n", p, p, dtype=np.float64) for p in parts]
    return np.asarray(np.sqrt(sum(squares)))
