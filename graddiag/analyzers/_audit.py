"""How far are projected cosines from the exact ones, where both are known?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graddiag.analyzers._alignment import exact_cosines, projected_cosines
from graddiag.analyzers._cosines import RowCosines, check_safety, exact_pairs, knows_safety, projected_pairs
from graddiag.comparison import Comparison
from graddiag.signals import Signals
from graddiag.statistics import mean, optional


@dataclass(frozen=True)
class Audit:
    """Root mean square of projected minus exact cosine: over pairs, over rows against safety, and the larger one.

    0 where the gradients are not projected; NaN where nothing exact is known. The whole vector; `blocks` has the
    larger error of each block. All rows share one projection: the error is no noise that a mean over rows would
    remove.
    """

    error: float
    partners: float
    safety: float
    blocks: Mapping[str, float]

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        return {
            "projection/error": optional(self.error),
            "projection/error_partners": optional(self.partners),
            "projection/error_safety": optional(self.safety),
        }

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """The larger error of each block."""
        return {b: {"projection/error": optional(v)} for b, v in self.blocks.items()}

    def kinds(self) -> dict[str, str]:
        """Every key speaks about projected gradients."""
        return dict.fromkeys(self.summary(), "projected")


def audit(
    comparison: Comparison, safety: Signals | None = None, controls: Mapping[str, Signals] | None = None
) -> Audit:
    """The error of the projected cosines against exact products of pairs, and against exact products with safety.

    Raises DataError where a set was measured in another space, or no safety row is finite.
    """
    blocks = comparison.left.blocks
    if safety is not None:
        check_safety(comparison, safety, controls or {})
    if comparison.left.space.projection == "exact":
        return Audit(0.0, 0.0, 0.0, dict.fromkeys(blocks, 0.0))
    unknown = RowCosines(np.zeros(0), {b: np.zeros(0) for b in blocks})
    partners = unknown
    if comparison.pairs is not None:
        partners = _errors([projected_pairs(comparison)], [exact_pairs(comparison, comparison.pairs)])
    rows = unknown
    tables = {"left": comparison.left, "right": comparison.right} | {
        f"control:{n}": t for n, t in (controls or {}).items()
    }
    if safety is not None and all(knows_safety(t, safety) for t in tables.values()):
        projected, exact = projected_cosines(tables, safety), exact_cosines(tables)
        rows = _errors(list(projected.values()), list(exact.values()))
    return Audit(
        error=_larger(_rms(partners.whole), _rms(rows.whole)),
        partners=_rms(partners.whole),
        safety=_rms(rows.whole),
        blocks={b: _larger(_rms(partners.blocks[b]), _rms(rows.blocks[b])) for b in blocks},
    )


def _errors(projected: list[RowCosines], exact: list[RowCosines]) -> RowCosines:
    both = list(zip(projected, exact, strict=True))
    whole = np.concatenate([p.whole - e.whole for p, e in both])
    return RowCosines(
        whole, {b: np.concatenate([p.blocks[b] - e.blocks[b] for p, e in both]) for b in projected[0].blocks}
    )


def _rms(errors: np.ndarray) -> float:
    return math.sqrt(value) if math.isfinite(value := mean(errors**2)) else math.nan


def _larger(a: float, b: float) -> float:
    return float(np.fmax(a, b))
