"""Inner products of all rows: which, in what precision, how often they are made and what they take."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tables import BLOCKS, RECIPE, Recipe, Table, changed, compared, four_tables, random_pair, random_table, table_of

from graddiag import grams as module
from graddiag.analyzers import alignment, conflict, cosine_matrix, training
from graddiag.errors import UsageError
from graddiag.grams import Grams, gram
from graddiag.reporting import Analysis, conclude
from graddiag.signals import Signals


def _tables() -> dict[str, Table]:
    """Four tables, of which the left and the safety one have a row that is not finite."""
    tables = four_tables()
    for role, n in (("left", 12), ("safety", 9)):
        tables[role] = changed(tables[role], lambda s, n=n: replace(s, finite=np.arange(n) != 3))
    return tables


def test_the_gram_matrix_holds_the_finite_rows_of_all_tables_in_order() -> None:
    left, right = random_pair(RECIPE)
    left = changed(left, lambda s: replace(s, finite=np.arange(12) != 3))
    total = sum(gram((left.signals, right.signals), b) for b in BLOCKS)
    rows = np.concatenate([np.delete(left.projected(), 3, axis=0), right.projected()])
    assert total == pytest.approx(np.array([[a @ b for b in rows] for a in rows]))


def test_long_rows_of_single_precision_are_multiplied_in_double() -> None:
    full = {"a": np.random.default_rng(1).normal(size=(3, 20_000)).astype(np.float32)}
    table = table_of(full, projection="exact").signals
    wide = full["a"].astype(np.float64)
    assert gram((table,), "a") == pytest.approx(wide @ wide.T, rel=1e-12)


ONE = 32 * 32 * 8  # bytes of one block's products: 11 left, 12 right, 8 finite safety rows, and one more


@pytest.mark.parametrize("memory", [0, 2 * ONE, 2**30])
def test_products_are_the_same_whether_kept_or_made_again(memory: int) -> None:
    tables = [_tables()[role].signals for role in ("left", "right", "safety")]
    left, right, safety = tables
    known = Grams.of(tables, memory=memory)
    assert len(known.kept) == {0: 0, 2 * ONE: 2, 2**30: 3}[memory]
    for some in ([left, right], [safety], [right], [left, safety], [safety, left], tables):
        for b in BLOCKS:
            assert known.block(some, b) == pytest.approx(gram(some, b), abs=1e-12)
        assert known.whole(some) == pytest.approx(sum(gram(some, b) for b in BLOCKS), abs=1e-12)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_what_is_found_is_the_same_with_products_that_are_known(memory: int) -> None:
    tables = _tables()
    comparison = compared(tables["left"], tables["right"])
    safety, controls = tables["safety"].signals, {"benign": tables["control"].signals}
    some = [comparison.left, comparison.right, safety]
    known = Grams.of(some, memory=memory)
    for center in (False, True):
        pair = conflict(comparison, center=center), conflict(comparison, center=center, grams=known)
        assert pair[1].summary() == pytest.approx(pair[0].summary())
        for b in BLOCKS:
            assert pair[1].block_summary()[b] == pytest.approx(pair[0].block_summary()[b])
    one, other = alignment(comparison, safety, controls), alignment(comparison, safety, controls, grams=known)
    assert other.summary() == pytest.approx(one.summary())
    first, second = training(comparison, safety, controls), training(comparison, safety, controls, grams=known)
    assert second.summary() == pytest.approx(first.summary())
    for limit in (4, 200):
        plain, with_known = cosine_matrix(some, limit=limit), cosine_matrix(some, limit=limit, grams=known)
        assert with_known.ids == plain.ids
        assert with_known.values == pytest.approx(plain.values)


def test_products_of_other_rows_are_refused() -> None:
    tables = _tables()
    comparison = compared(tables["left"], tables["right"])
    with pytest.raises(UsageError, match="of the rows of left, safety, not of right"):
        conflict(comparison, grams=Grams.of([comparison.left, tables["safety"].signals]))


def test_a_report_multiplies_the_rows_of_each_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[tuple[str, str]] = Counter()
    real = module.gram

    def counted(tables: Sequence[Signals], block: str) -> np.ndarray:
        made.update((t.provenance.data, block) for t in tables)
        return real(tables, block)

    monkeypatch.setattr(module, "gram", counted)
    tables = {role.replace("control", "control-benign"): t.signals for role, t in _tables().items()}
    conclude(tables, {}, Analysis(controls=("benign",)), tmp_path, strangers={}, figures=False)
    assert set(made.values()) == {1}
    assert set(made) == {(name, b) for name in ("left", "right", "safety", "benign") for b in BLOCKS}


def test_no_more_memory_is_taken_than_was_allowed_and_the_sum_needs() -> None:
    n, blocks = 150, 12
    recipe = Recipe(n=n, blocks=tuple(map(str, range(blocks))), size=4, dim=2)
    table = random_table(recipe).signals
    one = 8 * n**2

    def peak(memory: int) -> int:
        tracemalloc.start()
        try:
            known = Grams.of([table], memory=memory)
            for block in table.blocks:
                known.block([table], block)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    slack = 2**16  # rows, names and the objects themselves
    assert peak(0) < 3 * one + slack
    assert peak(4 * one) < 7 * one + slack
    assert blocks * one < peak(blocks * one) < (blocks + 3) * one + slack
