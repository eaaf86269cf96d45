"""Tables: splitting and joining, spaces, unique ids."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import Recipe, random_table, with_adam, with_scores, with_states

from graddiag.errors import DataError
from graddiag.signals import Block, PairProducts, Signals, digest_of


def same(a: Signals, b: Signals) -> bool:
    arrays = ("loss", "n_tokens", "length", "n_cut", "finite")
    by_block = ("norms", "gradients", "reference_dot", "adam_dot", "adam_norm", "adam_step_norm", "states")
    return (
        (a.ids, a.clusters, a.digests, a.space, a.provenance, a.reference, a.adam)
        == (b.ids, b.clusters, b.digests, b.space, b.provenance, b.reference, b.adam)
        and all(np.array_equal(getattr(a, k), getattr(b, k), equal_nan=True) for k in arrays)
        and all(list(getattr(a, k)) == list(getattr(b, k)) for k in by_block)
        and all(np.array_equal(v, getattr(b, k)[n], equal_nan=True) for k in by_block for n, v in getattr(a, k).items())
        and all(np.array_equal(x, y) for x, y in zip(a.token_loss, b.token_loss, strict=True))
        and all(np.array_equal(x, y) for x, y in zip(a.target_ids, b.target_ids, strict=True))
        and same_scores(a, b)
    )


def same_scores(a: Signals, b: Signals) -> bool:
    if a.token_alignment is None or b.token_alignment is None:
        return a.token_alignment is b.token_alignment and a.alignment_elsewhere is b.alignment_elsewhere
    return np.array_equal(a.alignment_elsewhere, b.alignment_elsewhere) and all(
        np.array_equal(x, y) for x, y in zip(a.token_alignment, b.token_alignment, strict=True)
    )


@given(cuts=st.lists(st.integers(0, 9), max_size=4), scores=st.booleans(), adam=st.booleans(), states=st.booleans())
def test_splitting_and_concatenating_is_the_identity(cuts, scores, adam, states):
    table = random_table(Recipe(n=9))
    table = with_adam(table, random_table(name="safety")) if adam else table
    table = with_states(table) if states else table
    table = (with_scores(table) if scores else table).signals
    borders = [0, *sorted(cuts), 9]
    parts = [table.take(range(a, b)) for a, b in pairwise(borders)]
    assert same(Signals.concat(parts), table)


def test_take_reorders_every_column():
    table = random_table(Recipe(n=5)).signals
    order = [3, 0, 4]
    taken = table.take(order)
    assert taken.ids == tuple(table.ids[i] for i in order)
    for block in table.blocks:
        assert np.array_equal(taken.gradients[block], table.gradients[block][order])
    assert [len(t) for t in taken.token_loss] == taken.n_tokens.tolist()


def test_an_id_that_occurs_twice_is_refused_by_name():
    table = random_table(Recipe(n=3)).signals
    with pytest.raises(DataError, match="'row-1' occurs twice"):
        replace(table, ids=("row-1", "row-0", "row-1"))


def test_a_column_of_the_wrong_length_is_named():
    table = random_table(Recipe(n=3)).signals
    with pytest.raises(DataError, match="loss has 2"):
        replace(table, loss=table.loss[:2])


def test_parts_of_different_models_are_not_joined():
    table = random_table(Recipe(n=3)).signals
    other = replace(table, provenance=replace(table.provenance, weights="others"))
    with pytest.raises(DataError, match="one model"):
        Signals.concat([table.take([0]), other.take([1])])
    with pytest.raises(DataError, match="no table"):
        Signals.concat([])


def test_parts_with_and_without_token_scores_are_not_joined():
    table = random_table(Recipe(n=3))
    with pytest.raises(DataError, match="Some parts of the table have token_alignment and some have not"):
        Signals.concat([table.signals.take([0]), with_scores(table).signals.take([1])])


def test_a_table_has_the_states_that_its_space_names_and_no_others():
    table = with_states(random_table(Recipe(n=3))).signals
    with pytest.raises(DataError, match=r"it has none, and 0/first:10, 3/last_prompt named"):
        replace(table, states={})
    with pytest.raises(DataError, match=r"states\[0/first:10\] has 2"):
        replace(table, states={site: x[:2] for site, x in table.states.items()})


def test_tables_with_states_of_other_sites_are_not_joined():
    table = with_states(random_table(Recipe(n=3))).signals
    other = with_states(random_table(Recipe(n=3)), ("0/first:10", "2/answer")).signals
    with pytest.raises(DataError, match=r"states: 2 sites, only here: 3/last_prompt  \|  2 sites, only here: 2/answer"):
        Signals.concat([table.take([0]), other.take([1])])


def test_differences_of_spaces_show_both_sides():
    space = random_table().signals.space
    other = replace(space, seed=5, blocks=(*space.blocks, Block("extra", (2, 3))))
    found = space.differences(other)
    assert found["seed"] == ("0", "5")
    assert "extra[2, 3]" in found["blocks"][1]
    assert set(found) == {"seed", "blocks"}
    assert space.differences(space) == {}


def test_a_digest_sees_order_and_borders():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of(["a", "b"]) != digest_of(["b", "a"])
    assert digest_of(["a"]) == digest_of(["a"])


def test_pair_products_are_split_and_joined_alike():
    whole = PairProducts(("a", "b", "c"), ("a", "c", "b"), {"x": np.arange(3.0)}, {"x": np.arange(3.0) + 1})
    again = PairProducts.concat([whole.take([0]), whole.take([1, 2])])
    assert (again.left_ids, again.right_ids) == (whole.left_ids, whole.right_ids)
    assert np.array_equal(again.inner["x"], whole.inner["x"])
