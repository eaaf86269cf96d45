"""The Adam form of alignment: cosines of what rows add to the step, from one and the same state, or none at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from findings import conclude
from tables import RECIPE, Table, added_by, changed, compared, four_tables, preconditioned, with_adam

from graddiag.analyzers import AdamAlignment, alignment_adam
from graddiag.findings import ALIGNMENT_KEYS


def adam_tables() -> dict[str, Table]:
    tables = four_tables(RECIPE)
    safety = tables["safety"]
    return {role: t if role == "safety" else with_adam(t, safety) for role, t in tables.items()}


def of(tables: dict[str, Table]) -> AdamAlignment | None:
    comparison = compared(tables["left"], tables["right"])
    return alignment_adam(comparison, tables["safety"].signals, {"x": tables["control"].signals})


def whole(table: Table) -> np.ndarray:
    return np.concatenate(list(added_by(table).values()), axis=1)


def test_the_cosines_are_those_of_what_rows_add_to_the_step() -> None:
    tables = adam_tables()
    got = of(tables)
    assert got is not None
    toward = tables["safety"].whole().mean(axis=0)
    for name, role in (("left", "left"), ("right", "right"), ("control:x", "control")):
        wanted = [slow.cos(d, toward) for d in whole(tables[role])]
        assert got.alignment.rows[name] == pytest.approx(wanted)
        assert got.summary()[f"alignment_adam/{name}"] == pytest.approx(slow.mean(wanted))
    for block, scope in got.alignment.blocks.items():
        mean = tables["safety"].full[block].mean(axis=0)
        wanted = [slow.cos(d, mean) for d in added_by(tables["left"])[block]]
        assert scope.left.value == pytest.approx(slow.mean(wanted))
    resting = np.concatenate([preconditioned(k, g.shape[1])[1] for k, g in enumerate(tables["left"].full.values())])
    assert got.summary()["alignment_adam/momentum"] == pytest.approx(slow.cos(resting, toward))
    clusters = tables["left"].signals.clusters
    e = got.alignment.overall.difference
    paired = got.alignment.pair_difference
    assert (e.value, e.low, e.high) == pytest.approx(slow.mean_with_interval(paired.tolist(), clusters))


@pytest.mark.parametrize("role", ["left", "right", "control"])
def test_tables_without_a_state_or_with_another_one_have_no_adam_form_and_that_is_said(role: str) -> None:
    tables = adam_tables()
    assert of(tables) is not None
    step = tables[role].signals.adam
    assert step is not None
    assert of(tables | {role: changed(tables[role], lambda s: replace(s, adam=replace(step, state="later")))}) is None
    assert of(tables | {role: four_tables(RECIPE)[role]}) is None


def test_its_keys_are_there_without_an_optimizer_and_undefined() -> None:
    tables = adam_tables()
    plain = conclude(compared(tables["left"], tables["right"]), four_tables(RECIPE))
    summary = plain.summary()
    got = of(tables)
    assert got is not None
    keys = {k.replace("control:x", "control:benign") for k in got.summary()}
    assert {k for k in summary if k.startswith("alignment_adam/")} == keys
    assert all(summary[k] is None for k in keys)
    with_form = replace(plain, alignment_adam=got)
    assert all(with_form.summary()[k] is not None for k in ALIGNMENT_KEYS if k.startswith("alignment_adam/"))
    assert plain.kinds().keys() == summary.keys()
