"""Two tables side by side: pairs by id, refusals, warnings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tables import Recipe, only_read, products_of, random_pair, random_table, taken, with_states

from graddiag.analyzers import alignment, alignment_adam, audit, conflict, cosine_matrix, framing, training
from graddiag.comparison import Comparison
from graddiag.errors import DataError


def test_pairs_follow_ids_not_positions():
    left, right = random_pair(Recipe(n=6))
    shuffled = taken(right, [5, 3, 1, 0, 2, 4])
    comparison = Comparison(left.signals, shuffled.signals, products_of(left, shuffled))
    for a, b in zip(comparison.left_index, comparison.right_index, strict=True):
        assert left.signals.ids[a] == shuffled.signals.ids[b]
    straight = Comparison(left.signals, right.signals, products_of(left, right))
    for block in left.full:
        assert np.allclose(comparison.pairs.inner[block], straight.pairs.inner[block])


def test_products_are_matched_by_id_after_a_filter():
    left, right = random_pair(Recipe(n=6))
    products = products_of(left, right)
    part = Comparison(left.signals.take([4, 1]), right.signals, products)
    assert part.pairs.left_ids == ("row-4", "row-1")
    with pytest.raises(DataError, match=r"missing for 1 of 2 pairs.*'row-1'"):
        Comparison(left.signals.take([4, 1]), right.signals, products.take([0, 4]))


def test_different_spaces_are_refused_with_both_values():
    left, right = random_pair()
    other = replace(right.signals, space=replace(right.signals.space, target="all"))
    with pytest.raises(DataError, match=r"(?s)left and right .*target: answer  \|  all"):
        Comparison(left.signals, other)


def test_rows_that_are_not_finite_are_in_no_pair_and_are_told_of():
    left, right = random_pair(Recipe(n=5))
    signals = replace(left.signals, finite=np.array([True, False, True, True, True]))
    comparison = Comparison(signals, right.signals)
    assert comparison.n_pairs == 4
    assert 1 not in comparison.left_index
    assert any("1 of 5 rows have a loss or gradient that is not finite" in w for w in comparison.warnings)
    with pytest.raises(DataError, match="none of its 5 rows"):
        Comparison(replace(signals, finite=np.zeros(5, dtype=bool)), right.signals)


def test_rows_without_a_partner_cut_answers_and_different_answers_are_told_of():
    left, right = random_pair(Recipe(n=5))
    cut = replace(left.signals.take([0, 1, 2, 3]), n_cut=np.array([0, 3, 0, 0]))
    tokens = (np.array([1, 2, 3]), *right.signals.target_ids[1:])
    comparison = Comparison(cut, replace(right.signals, target_ids=tokens))
    text = " ".join(comparison.warnings)
    assert "right: 1 of 5 rows have no partner" in text
    assert "left: 1 of 4 rows had their answer cut" in text
    assert "1 of 4 pairs do not have the same target tokens" in text
    assert comparison.identical.tolist() == [False, True, True, True]


def test_data_and_model_that_both_differ_are_flagged():
    left, right = random_pair()
    tuned = replace(right.signals, provenance=replace(right.signals.provenance, weights="tuned"))
    assert Comparison(left.signals, right.signals).differs == ("data",)
    both = Comparison(left.signals, tuned)
    assert both.differs == ("data", "model")
    assert "both data and model" in both.warnings[0]
    assert Comparison(left.signals, left.signals).differs == ()


@pytest.mark.parametrize("longer", ["left", "right"])
def test_the_side_whose_prompts_are_longer_is_told_of_with_the_ratio(longer: str):
    tables = {t.signals.provenance.data: t.signals for t in random_pair(Recipe(n=5))}
    short = {name: replace(t, length=t.n_tokens + 20) for name, t in tables.items()}
    other = "left" if longer == "right" else "right"

    def said(lengths: list[int]) -> list[str]:
        sides = short | {longer: replace(tables[longer], length=tables[longer].n_tokens + np.array(lengths))}
        return [w for w in Comparison(sides["left"], sides["right"]).warnings if "times as long" in w]

    assert said([21, 21, 21, 21, 50]) == [], "the median counts, and a twentieth is nothing to tell"
    assert said([30, 30, 30, 30, 10]) == [
        f"The prompts of {longer} are 1.50 times as long as those of {other} (median over 5 pairs; 26 tokens against "
        "20, longer in 80% of pairs): length differs along with the request."
    ]


def test_clusters_are_numbered_in_order_of_appearance():
    table = random_table(Recipe(n=6, clusters=3)).signals
    comparison = Comparison(table, table)
    assert comparison.cluster_names == ("c0", "c1", "c2")
    assert comparison.clusters.tolist() == [0, 1, 2, 0, 1, 2]


def test_states_of_different_sizes_are_refused_with_both_sizes_and_models():
    table = random_table(Recipe(n=4))
    small, large = (only_read(with_states(table, width=w), model=m) for w, m in ((5, "small"), (8, "large")))
    with pytest.raises(DataError, match=r"of small have 5 numbers at 0/first:10 and those of large 8"):
        Comparison(small, large)


def test_tables_that_were_only_read_may_differ_in_their_template_and_a_reader_is_told():
    table = with_states(random_table(Recipe(n=4)))
    base, aligned = only_read(table, model="base", template="plain"), only_read(table, model="aligned")
    base = replace(base, digests=tuple(f"plain:{d}" for d in base.digests))
    comparison = Comparison(base, aligned)
    assert comparison.differs == ("model",), "the same answers, after prompts that are rendered otherwise"
    assert comparison.identical.all()
    assert "base and aligned have different chat templates" in comparison.warnings[0]
    other = replace(base, target_ids=(np.append(base.target_ids[0], 7), *base.target_ids[1:]))
    assert Comparison(other, aligned).differs == ("data", "model")
    measured = replace(table.signals, space=replace(table.signals.space, template="plain"))
    with pytest.raises(DataError, match=r"template: plain  \|  template"):
        Comparison(measured, table.signals)


def test_tables_that_were_only_read_may_differ_in_their_tokenizer_where_answers_have_the_same_tokens():
    one = only_read(random_table(Recipe(n=4)), model="aligned")
    other = replace(one, space=replace(one.space, tokenizer="other"))
    comparison = Comparison(one, other)
    assert comparison.identical.all()
    assert any("have different tokenizers: rows are matched by their answers" in w for w in comparison.warnings)
    cut = replace(other, target_ids=(other.target_ids[0][:1], *other.target_ids[1:]))
    assert not Comparison(one, cut).identical.all(), "the beginning of an answer is no other answer"
    changed = replace(other, target_ids=(other.target_ids[0] + 1, *other.target_ids[1:]))
    with pytest.raises(DataError, match=r"different tokenizers, and the answer of row '.*' has other tokens"):
        Comparison(one, changed)


def test_measured_tables_may_not_differ_in_their_tokenizer():
    one = random_table(Recipe(n=4)).signals
    with pytest.raises(DataError, match=r"tokenizer: tokenizer  \|  other"):
        Comparison(one, replace(one, space=replace(one.space, tokenizer="other")))


@pytest.mark.parametrize(
    "analyzer",
    [
        conflict,
        framing,
        training,
        audit,
        lambda c: alignment(c, c.left),
        lambda c: alignment_adam(c, c.left, {}),
        lambda c: cosine_matrix([c.left, c.right]),
    ],
)
def test_tables_that_were_only_read_are_refused_by_name_wherever_gradients_are_needed(analyzer):
    table = with_states(random_table(Recipe(n=4)))
    a, b = (only_read(table, model=m) for m in ("one", "two"))
    with pytest.raises(DataError, match=r"holds losses and hidden states only, no gradients.*graddiag extract"):
        analyzer(Comparison(a, b))
