"""All analyses of four random tables, and their numbers by key."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tables import Table, compared, table_of

from graddiag.analyzers import (
    Alignment,
    Audit,
    Conflict,
    Framing,
    LossGap,
    alignment,
    audit,
    conflict,
    framing,
    loss_gap,
)

Result = LossGap | Conflict | Framing | Alignment | Audit


def all_results(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> list[Result]:
    comparison = compared(tables["left"], tables["right"], exact=exact)
    safety, controls = tables["safety"].signals, {"benign": tables["control"].signals}
    return [
        loss_gap(comparison),
        conflict(comparison, center=center),
        framing(comparison, safety),
        alignment(comparison, safety, controls),
        audit(comparison, safety, controls),
    ]


def summary_of(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> dict[str, float | None]:
    return {k: v for r in all_results(tables, exact=exact, center=center) for k, v in r.summary().items()}


def numbers_of(tables: Mapping[str, Table], *, exact: bool = True, center: bool = False) -> dict[str, float]:
    """The summary without what is undefined."""
    return {k: v for k, v in summary_of(tables, exact=exact, center=center).items() if v is not None}


def assert_same(got: Mapping[str, float], expected: Mapping[str, float], *, random: bool = False) -> None:
    """Equal up to rounding; with `random`, the p of permuted partners up to its Monte-Carlo error."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        rough = random and key == "conflict/p"
        assert got[key] == pytest.approx(value, rel=1e-9, abs=0.02 if rough else 1e-12), key


def scaled(table: Table, factor: float) -> Table:
    s = table.signals
    return table_of(
        {b: factor * g for b, g in table.full.items()},
        name=s.provenance.data,
        ids=s.ids,
        clusters=s.clusters,
        loss=s.loss.tolist(),
    )
