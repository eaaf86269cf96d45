"""What analyzers say where something is missing: rows that are not finite, pairs, clusters, directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from results import assert_same, numbers_of, scaled, summary_of
from tables import BLOCKS, Table, changed, compared, four_tables, table_of, taken

from graddiag.analyzers import (
    alignment,
)
from graddiag.signals import Signals


def _with_broken_rows(table: Table, where: list[int]) -> Table:
    """The table with rows put in at these places that are marked as not finite: gradients of NaN, a huge loss."""
    s = table.signals
    n = len(s) + len(where)
    extra = replace(s.take(range(len(where))), ids=tuple(f"broken-{i}" for i in where))
    bad = np.isin(np.arange(n), where)
    order = np.empty(n, dtype=np.int64)
    order[~bad], order[bad] = np.arange(len(s)), np.arange(len(s), n)
    out = Signals.concat([s, extra]).take(order)
    spoilt = replace(
        out,
        loss=np.where(bad, 1e3, out.loss),
        finite=~bad,
        norms={b: np.where(bad, np.nan, v) for b, v in out.norms.items()},
        gradients={b: np.where(bad[:, None], np.nan, v) for b, v in out.gradients.items()},
        reference_dot={b: np.where(bad, np.nan, v) for b, v in out.reference_dot.items()},
    )
    return Table(spoilt, table.full)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_rows_that_are_not_finite_are_in_no_statistic(center: bool, known: bool) -> None:
    tables = four_tables(exact=known)
    broken = {k: t if known and k == "safety" else _with_broken_rows(t, [0, 5]) for k, t in tables.items()}
    assert np.isnan(broken["left"].signals.gradients[BLOCKS[0]]).any()
    assert_same(numbers_of(broken, center=center, exact=False), numbers_of(tables, center=center, exact=False))
    rows = alignment(compared(broken["left"], broken["right"]), broken["safety"].signals).rows["left"]
    assert np.flatnonzero(np.isnan(rows)).tolist() == [0, 5]


def test_without_pairs_the_paired_numbers_are_undefined_and_the_others_the_same() -> None:
    tables = four_tables(exact=False)
    apart = changed(tables["right"], lambda s: replace(s, ids=tuple(f"other-{i}" for i in s.ids)))
    got, expected = summary_of({**tables, "right": apart}), summary_of(tables)
    assert got["pairs/n"] == got["pairs/identical"] == got["pairs/clusters"] == 0
    paired = [k for k in expected if k.startswith(("loss_gap/", "framing/", "alignment/difference"))]
    paired += ["conflict/paired_cosine", "conflict/low", "conflict/high", "conflict/p", "conflict/negative_fraction"]
    assert {got[k] for k in paired} == {None}
    same = (
        "loss/left",
        "alignment/left",
        "alignment/left/high",
        "conflict/within_left",
        "conflict/mean_gradient_cosine",
    )
    assert [got[k] for k in same] == pytest.approx([expected[k] for k in same])
    assert got["conflict/across"] is not None


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_one_row_a_side_is_enough_for_a_result(exact: bool, center: bool) -> None:
    tables = {k: taken(t, [0]) for k, t in four_tables(exact=False).items()}
    got = summary_of(tables, exact=exact, center=center)
    assert got["pairs/n"] == 1
    assert got["framing/consistency"] == pytest.approx(1)
    undefined = {"loss_gap/effect_size", "loss_gap/low", "loss_gap/p", "framing/p", "framing/safety_cosine/low"}
    undefined |= {"conflict/low", "conflict/p", "conflict/within_left", "conflict/mean_gradient_cosine_corrected"}
    assert {got[k] for k in undefined} == {None}
    if center:
        assert got["conflict/paired_cosine"] == pytest.approx(-1)


def test_one_cluster_has_values_but_neither_intervals_nor_flips() -> None:
    tables = {k: changed(t, lambda s: replace(s, clusters=("one",) * len(s))) for k, t in four_tables().items()}
    got = summary_of(tables)
    assert {v for k, v in got.items() if k.endswith(("/low", "/high"))} == {None}
    assert got["loss_gap/p"] is got["framing/p"] is got["alignment/difference/p"] is None
    assert got["conflict/label_distance/p"] is None
    assert got["conflict/mean_gradient_cosine_corrected"] is None
    values = ("conflict/p", "loss_gap/mean", "conflict/paired_cosine", "framing/safety_cosine", "alignment/left")
    assert all(isinstance(got[k], float) for k in values)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_that_are_all_zero_have_no_direction(exact: bool, center: bool) -> None:
    tables = four_tables(exact=False)
    zero = {k: scaled(t, 0.0) for k, t in tables.items()}
    got = summary_of(zero, exact=exact, center=center)
    cosines = [k for k in got if k.startswith(("conflict/", "alignment/", "framing/")) and not k.endswith("forced")]
    moved = {"framing/p", "framing/blocks_surviving", "conflict/label_distance/p"}  # by nothing, whatever the signs
    counted = {"alignment/safety_clusters", "alignment/safety_largest_cluster"}
    assert {got[k] for k in cosines if k not in moved | counted} == {None}
    assert got["framing/p"] == got["conflict/label_distance/p"] == 1
    assert got["framing/blocks_surviving"] == 0
    assert got["loss_gap/mean"] is not None


def test_equal_sides_have_no_gap_and_no_framing_gradient() -> None:
    tables = four_tables(exact=False)
    same = table_of(tables["left"].full, name="right", loss=tables["left"].signals.loss.tolist())
    got = summary_of({**tables, "right": same})
    assert got["loss_gap/mean"] == got["loss_gap/low"] == got["loss_gap/high"] == got["alignment/difference"] == 0
    assert got["loss_gap/p"] == got["framing/p"] == got["alignment/difference/p"] == 1
    assert got["conflict/label_distance/p"] == 1
    assert got["loss_gap/effect_size"] is got["loss_gap/wilcoxon_p"] is None
    assert got["framing/consistency"] is got["framing/safety_cosine"] is None
    assert got["conflict/paired_cosine"] == pytest.approx(1)
