"""Rows that are no partners: who is chosen, and that their exact products are those of whole gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from measured_runs import SMALL, rows_of, run

import graddiag
from graddiag.analyzers import audit
from graddiag.encoding import EncodedSet
from graddiag.models import load_model
from graddiag.reporting import report
from graddiag.store import read_pairs
from graddiag.strangers import choose_strangers


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def _sets(make_rows, n, **changes):
    rows = make_rows(n)
    return tuple(EncodedSet(name, tuple(replace(r, **changes) for r in rows), (), "answer", 64) for name in "ab")


@pytest.mark.parametrize(("n", "pairs"), [(2, 1), (39, 1), (40, 2), (100, 5), (400, 8)])
def test_there_is_a_pair_for_each_forty_rows_and_no_row_is_in_two(make_rows, n, pairs):
    chosen = choose_strangers(*_sets(make_rows, n))
    assert len(chosen) == pairs
    assert all(a.id != b.id for a, b in chosen)
    assert all(len({p[side].id for p in chosen}) == pairs for side in (0, 1))
    if pairs > 1:
        same = [a.cluster == b.cluster for a, b in chosen]
        assert same == [k % 2 == 0 for k in range(pairs)]


def test_the_choice_follows_the_seed(make_rows):
    sets = _sets(make_rows, 200)

    def ids(seed):
        return [(a.id, b.id) for a, b in choose_strangers(*sets, seed=seed)]

    assert ids(0) == ids(0) != ids(1)


def test_a_kind_that_is_not_there_is_replaced_and_partners_alone_give_nothing(make_rows):
    assert len(choose_strangers(*_sets(make_rows, 80, cluster="one"))) == 4
    assert choose_strangers(*_sets(make_rows, 1)) == ()


def test_products_of_strangers_are_those_of_whole_gradients_and_the_report_has_their_error(tmp_path, tiny):
    result = run(tmp_path, tiny)
    found = read_pairs(tmp_path / "audit")
    whole = {}
    for side, name in (("left", "insecure"), ("right", "educational")):
        signals = graddiag.extract(*tiny, rows_of(name, 6), blocks=SMALL, projection="exact")
        whole[side] = {i: {b: signals.gradients[b][k] for b in signals.blocks} for k, i in enumerate(signals.ids)}
    assert len(found) == 1
    for block, inner in found.inner.items():
        a, b = (whole[side][ids[0]][block] for side, ids in (("left", found.left_ids), ("right", found.right_ids)))
        assert inner[0] == pytest.approx(a @ b, rel=1e-4, abs=float(1e-5 * np.linalg.norm(a) * np.linalg.norm(b)))
    wanted = audit(result.findings.comparison, strangers=found).strangers
    assert result.summary()["projection/error_strangers"] == pytest.approx(wanted)
    assert report(tmp_path, figures=False).summary() == result.summary()


def test_gradients_that_are_not_projected_need_no_strangers(tmp_path, tiny):
    found = run(tmp_path, tiny, projection="exact", controls={}, safety=None)
    assert not (tmp_path / "audit").exists()
    assert found.summary()["projection/error_strangers"] == 0
