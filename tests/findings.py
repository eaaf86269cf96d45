"""Findings of random tables, as a run would have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tables import RECIPE, Recipe, Table, changed, compared, four_tables

from graddiag.analyzers import (
    HeadlineResults,
    alignment,
    audit,
    conflict,
    cosine_matrix,
    framing,
    loss_gap,
    repeats,
    token_view,
    training,
)
from graddiag.comparison import Comparison
from graddiag.findings import Findings
from graddiag.signals import Signals

TEXTS = {0: "def", 1: " <b>&amp;\x1b[31m", 2: "\n", 3: "\"'>", 4: " x"}  # of some tokens of the tables


def findings_of(
    recipe: Recipe = RECIPE,
    *,
    exact: bool = True,
    center: bool = False,
    safety: bool = True,
    change: Callable[[Signals], Signals] = lambda signals: signals,
) -> Findings:
    """Everything about four random tables whose signals were changed; without `safety`, about the two sides only."""
    tables = {role: changed(table, change) for role, table in four_tables(recipe, exact=exact).items()}
    return conclude(compared(tables["left"], tables["right"], exact=exact), tables, center=center, safety=safety)


def conclude(
    comparison: Comparison, tables: dict[str, Table], *, center: bool = False, safety: bool = True
) -> Findings:
    """Every analysis of a comparison."""
    safe = tables["safety"].signals if safety else None
    controls = {"benign": tables["control"].signals} if safety else {}
    headline = HeadlineResults(
        loss_gap(comparison),
        conflict(comparison, center=center),
        framing(comparison, safe),
        alignment(comparison, safe, controls) if safe is not None else None,
    )
    return Findings(
        comparison=comparison,
        safety=safe,
        controls=controls,
        loss_gap=headline.loss_gap,
        tokens=token_view(comparison, TEXTS),
        conflict=headline.conflict,
        framing=headline.framing,
        alignment=headline.alignment,
        training=training(comparison, safe, controls),
        audit=audit(comparison, safe, controls),
        repeats=repeats(comparison, headline, safe, controls, center=center),
        matrix=cosine_matrix([t for t in (comparison.left, comparison.right, safe) if t is not None]),
        command="graddiag compare left right",
        warnings=comparison.warnings,
    )


def zeroed(signals: Signals) -> Signals:
    """The same rows with gradients of zero: no cosine is defined."""
    nothing = {b: np.zeros_like(g) for b, g in signals.gradients.items()}
    return replace(signals, gradients=nothing, norms={b: np.zeros(len(signals)) for b in nothing})


def alone(signals: Signals) -> Signals:
    """The same rows under ids that no other table has: there are no pairs."""
    return replace(signals, ids=tuple(f"{signals.provenance.data}-{i}" for i in signals.ids))
