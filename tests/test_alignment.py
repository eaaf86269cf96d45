"""Alignment with safety, exact or projected but never both, and the audit of the projected numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import RECIPE, changed, compared, four_tables, products_of, random_pair, random_table

from graddiag.analyzers import alignment, audit, framing
from graddiag.errors import DataError
from graddiag.signals import Signals


def test_alignment_is_exact_where_every_table_knows_the_mean_safety_gradient() -> None:
    tables = four_tables()
    got = alignment(
        compared(tables["left"], tables["right"]), tables["safety"].signals, {"x": tables["control"].signals}
    )
    assert got.exact
    toward = tables["safety"].whole().mean(axis=0)
    for name, table in (("left", tables["left"]), ("right", tables["right"]), ("control:x", tables["control"])):
        assert got.rows[name] == pytest.approx([slow.cos(g, toward) for g in table.whole()])
    assert got.pair_difference == pytest.approx(got.rows["left"] - got.rows["right"])
    for block, scope in got.blocks.items():
        toward = tables["safety"].full[block].mean(axis=0)
        assert scope.left.value == pytest.approx(slow.mean([slow.cos(g, toward) for g in tables["left"].full[block]]))


def test_one_table_without_exact_products_makes_all_of_alignment_projected() -> None:
    tables = four_tables()
    toward = tables["safety"].projected().mean(axis=0)
    plain = changed(tables["control"], lambda s: replace(s, reference=None, reference_dot={}))
    got = alignment(compared(tables["left"], tables["right"]), tables["safety"].signals, {"x": plain.signals})
    assert not got.exact
    for name, table in (("left", tables["left"]), ("right", tables["right"]), ("control:x", plain)):
        assert got.rows[name] == pytest.approx([slow.cos(g, toward) for g in table.projected()])
    assert got.kinds()["alignment/left"] == "projected"


def _with_reference_to_other(signals: Signals, field: str) -> Signals:
    assert signals.reference is not None
    rows, weights = signals.reference.rows, signals.reference.weights
    other = {"rows": ("other", weights), "weights": (rows, "other")}[field]
    return replace(signals, reference=replace(signals.reference, rows=other[0], weights=other[1]))


@pytest.mark.parametrize("field", ["rows", "weights"])
def test_exact_products_with_other_safety_rows_or_another_model_are_not_used(field: str) -> None:
    tables = four_tables()
    stale = changed(tables["left"], lambda s: _with_reference_to_other(s, field))
    assert not alignment(compared(stale, tables["right"]), tables["safety"].signals).exact
    assert alignment(compared(tables["left"], tables["right"]), tables["safety"].signals).exact


def test_the_difference_in_alignment_respects_pairs_and_clusters() -> None:
    tables = four_tables()
    got = alignment(compared(tables["left"], tables["right"]), tables["safety"].signals)
    clusters = tables["left"].signals.clusters
    e = got.overall.difference
    assert (e.value, e.low, e.high) == pytest.approx(slow.mean_with_interval(got.pair_difference.tolist(), clusters))
    assert e.p == slow.sign_flip_p(slow.cluster_totals([np.array([d]) for d in got.pair_difference], clusters))


def test_the_audit_is_the_error_of_the_projected_cosines() -> None:
    tables = four_tables()
    left, right, control = tables["left"], tables["right"], tables["control"]
    got = audit(compared(left, right, exact=True), tables["safety"].signals, {"benign": control.signals})
    pairs = [
        slow.cos(a, b) - slow.cos(c, d)
        for a, b, c, d in zip(left.projected(), right.projected(), left.whole(), right.whole(), strict=True)
    ]
    short, long = tables["safety"].projected().mean(axis=0), tables["safety"].whole().mean(axis=0)
    rows = [
        slow.cos(a, short) - slow.cos(b, long)
        for t in (left, right, control)
        for a, b in zip(t.projected(), t.whole(), strict=True)
    ]
    assert got.partners == pytest.approx(np.sqrt(np.mean(np.square(pairs))))
    assert got.safety == pytest.approx(np.sqrt(np.mean(np.square(rows))))
    assert got.error == max(got.partners, got.safety) > 0.01


def test_the_audit_of_strangers_is_the_error_of_the_rows_that_were_multiplied_and_of_no_others() -> None:
    tables = four_tables(exact=False)
    left, right = tables["left"], tables["right"]
    pairs = [(0, 4), (3, 2), (5, 9)]
    left = changed(left, lambda s: replace(s, finite=np.arange(12) != 5))
    got = audit(compared(left, right), strangers=products_of(left, right, pairs))
    errors = [
        slow.cos(left.projected()[i], right.projected()[j]) - slow.cos(left.whole()[i], right.whole()[j])
        for i, j in pairs[:2]  # the left row of the third is not finite
    ]
    assert got.error == got.strangers == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert got.summary()["projection/error_partners"] is None


def test_the_audit_takes_what_is_known_finds_nothing_in_exact_gradients_and_is_undefined_without() -> None:
    tables = four_tables()
    bare = four_tables(exact=False)
    assert audit(compared(bare["left"], bare["right"], exact=True)).error > 0
    assert audit(compared(tables["left"], tables["right"]), tables["safety"].signals).error > 0
    assert audit(compared(bare["left"], bare["right"]), bare["safety"].signals).summary()["projection/error"] is None
    assert audit(compared(*random_pair(replace(RECIPE, projection="exact")))).error == 0


def test_safety_from_another_space_or_without_finite_rows_is_refused() -> None:
    tables = four_tables()
    comparison = compared(tables["left"], tables["right"])
    other = random_table(replace(RECIPE, dim=8), name="safety").signals
    empty = replace(tables["safety"].signals, finite=np.zeros(9, dtype=bool))
    for refused, message in (
        (other, "not measured in the same space"),
        (empty, "none of its 9 rows has a finite loss"),
    ):
        with pytest.raises(DataError, match=message):
            framing(comparison, refused)
        with pytest.raises(DataError, match=message):
            alignment(comparison, refused)
        with pytest.raises(DataError, match=message):
            audit(comparison, refused)


def test_controls_from_another_space_are_refused() -> None:
    tables = four_tables()
    comparison = compared(tables["left"], tables["right"])
    other = {"benign": random_table(replace(RECIPE, dim=8)).signals}
    with pytest.raises(DataError, match="not measured in the same space"):
        alignment(comparison, tables["safety"].signals, other)
    with pytest.raises(DataError, match="not measured in the same space"):
        audit(comparison, tables["safety"].signals, other)
