"""How far are projected cosines from the exact ones, where both are known?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graddiag.analyzers._alignment import exact_cosines, projected_cosines
from graddiag.analyzers._cosines import At, RowCosines, check_safety, exact_pairs, knows_safety, projected_pairs
from graddiag.comparison import Comparison
from graddiag.signals import PairProducts, Signals, check_gradients
from graddiag.statistics import mean, optional


@dataclass(frozen=True)
class Audit:
    """Root mean square of projected minus exact cosine: over pairs, over rows that are no partners, over rows against
    safety, and the largest one.

    0 where the gradients are not projected; NaN where nothing exact is known. The whole vector; `blocks` has the
    largest error of each block. All rows share one projection: the error is no noise that a mean over rows would
    remove; a mean's own error is its `projection_se`.
    """

    error: float
    partners: float
    strangers: float
    safety: float
    blocks: Mapping[str, float]

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        return {
            "projection/error": optional(self.error),
            "projection/error_partners": optional(self.partners),
            "projection/error_strangers": optional(self.strangers),
            "projection/error_safety": optional(self.safety),
        }

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The largest error of each block."""
        return {b: {"projection/error": optional(v)} for b, v in self.blocks.items()}

    def kinds(self) -> dict[str, str]:
        """Every key speaks about projected gradients."""
        return dict.fromkeys(self.summary(), "projected")


def audit(
    comparison: Comparison,
    safety: Signals | None = None,
    controls: Mapping[str, Signals] | None = None,
    *,
    strangers: PairProducts | None = None,
) -> Audit:
    """The error of the projected cosines against exact products: of pairs, of `strangers` (rows of the two sides that
    are no partners), and with safety.

    Raises DataError where a set was measured in another space, no safety row is finite, or there are no gradients.
    """
    check_gradients(comparison.left.space, comparison.left.provenance.data)
    blocks = comparison.left.blocks
    if safety is not None:
        check_safety(comparison, safety, controls or {})
    if comparison.left.space.projection == "exact":
        return Audit(0.0, 0.0, 0.0, 0.0, dict.fromkeys(blocks, 0.0))
    unknown = RowCosines(np.zeros(0), {b: np.zeros(0) for b in blocks})
    found = [
        unknown if comparison.pairs is None else _pair_errors(comparison, comparison.pairs),
        unknown if strangers is None else _pair_errors(comparison, strangers),
        _safety_errors(comparison, safety, controls or {}) or unknown,
    ]
    partners, others, rows = (_rms(e.whole) for e in found)
    by_block = {b: _largest([_rms(e.blocks[b]) for e in found]) for b in blocks}
    return Audit(_largest([partners, others, rows]), partners, others, rows, by_block)


def _pair_errors(comparison: Comparison, products: PairProducts) -> RowCosines:
    at, kept = At.of(comparison, products)
    return _errors([projected_pairs(comparison, at)], [exact_pairs(comparison, products.take(kept), at)])


def _safety_errors(
    comparison: Comparison, safety: Signals | None, controls: Mapping[str, Signals]
) -> RowCosines | None:
    tables = {"left": comparison.left, "right": comparison.right} | {f"control:{n}": t for n, t in controls.items()}
    if safety is None or not all(knows_safety(t, safety) for t in tables.values()):
        return None
    projected, exact = projected_cosines(tables, safety), exact_cosines(tables)
    return _errors(list(projected.values()), list(exact.values()))


def _errors(projected: list[RowCosines], exact: list[RowCosines]) -> RowCosines:
    both = list(zip(projected, exact, strict=True))
    whole = np.concatenate([p.whole - e.whole for p, e in both])
    return RowCosines(
        whole, {b: np.concatenate([p.blocks[b] - e.blocks[b] for p, e in both]) for b in projected[0].blocks}
    )


def _rms(errors: np.ndarray) -> float:
    return math.sqrt(value) if math.isfinite(value := mean(errors**2)) else math.nan


def _largest(errors: list[float]) -> float:
    return float(np.fmax.reduce(errors))
