"""Words of a run of three models: a claim needs its interval, its p and every control."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest

from graddiag.erosion_rules import (
    MOVED_RULES,
    SAFETY_RULES,
    SHARED_RULES,
    WAY_RULES,
    Moved,
    Shared,
    Way,
    judge_move,
    judge_overlap,
    judge_way,
    turned,
    worst_layer,
)
from graddiag.removal_rules import REMOVED_RULES, Removed, judge_removal
from graddiag.statistics import Estimate

UP, DOWN = Estimate(1.0, 0.5, 1.5, 0.01), Estimate(-1.0, -1.5, -0.5, 0.01)
NEAR = Estimate(0.1, -0.2, 0.4, 0.5)
NONE, NO_INTERVAL = Estimate(math.nan), Estimate(1.0)
ALL = (UP, DOWN, NEAR, NONE, NO_INTERVAL)


def test_eroded_needs_the_harmful_rows_and_every_control():
    assert judge_move(Moved(UP, (UP, UP))).word == "eroded"
    for own, first, second in product(ALL, repeat=3):
        word = judge_move(Moved(own, (first, second))).word
        assert (word == "eroded") == ([own, first, second] == [UP] * 3)


def test_without_a_control_nothing_is_claimed():
    assert judge_move(Moved(UP)).word == "no control"
    assert judge_move(Moved(UP, (UP, NO_INTERVAL))).word == "no control"


@pytest.mark.parametrize(
    ("moved", "word"),
    [
        (Moved(NONE, (UP,)), "not measurable"),
        (Moved(NO_INTERVAL, (UP,)), "not measurable"),
        (Moved(NEAR, (UP,)), "no difference found"),
        (Moved(replace(UP, p=0.2), (UP,)), "no difference found"),
        (Moved(UP, (NEAR,)), "as with harmless rows"),
        (Moved(UP, (replace(UP, p=0.2),)), "as with harmless rows"),
        (Moved(UP, (UP,), random_p=0.3), "as along any direction"),
        (Moved(UP, (UP,), random_p=math.nan), "as along any direction"),
        (Moved(Estimate(0.0, 0.0, 0.0, 1.0), (Estimate(0.0, 0.0, 0.0, 1.0),)), "no difference found"),
        (Moved(DOWN, (DOWN, DOWN)), "strengthened"),
        (Moved(UP, (DOWN,)), "less than with harmless rows"),
        (Moved(UP, (UP, DOWN)), "less than with harmless rows"),
        (Moved(DOWN, (UP,)), "less than with harmless rows"),
    ],
)
def test_the_word_of_a_change(moved, word):
    assert judge_move(moved).word == word


@pytest.mark.parametrize(
    ("shared", "word"),
    [
        (Shared(0.9, 0.005, (UP, UP)), "shared"),
        (Shared(0.9, 0.005), "no control"),
        (Shared(0.9, 0.005, (UP, NO_INTERVAL)), "no control"),
        (Shared(0.9, 0.005, (UP, NEAR)), "as with harmless rows"),
        (Shared(0.9, 0.005, (UP, DOWN)), "as with harmless rows"),
        (Shared(0.9, 0.005, (replace(UP, p=0.2),)), "as with harmless rows"),
        (Shared(0.9, 0.3, (UP,)), "no more than chance"),
        (Shared(math.nan, math.nan, (UP,)), "not measurable"),
        (Shared(0.9, math.nan, (UP,)), "not measurable"),
    ],
)
def test_the_word_of_an_overlap(shared, word):
    assert judge_overlap(shared).word == word


def test_a_removal_is_called_a_change_only_beyond_every_harmless_set_and_random_subspaces():
    claims = {"less likely", "more likely"}
    for own, first, second in product(ALL, repeat=3):
        word = judge_removal(Removed(own, (first, second), 0.02, 0.01)).word
        assert (word in claims) == ([own, first, second] in ([UP] * 3, [DOWN] * 3))
        assert judge_removal(Removed(own, (first, second), 0.06, 0.01)).word not in claims
        assert judge_removal(Removed(own, (first, second), math.nan, 0.01)).word not in claims
    assert judge_removal(Removed(UP, (), 0.02, 0.01)).word not in claims


@pytest.mark.parametrize(
    ("removed", "word"),
    [
        (Removed(NONE, (UP,), 0.01, 0.01), "not measurable"),
        (Removed(UP, (NONE,), 0.01, 0.01), "not measurable"),
        (Removed(NEAR, (UP,), 0.01, 0.01), "no difference found"),
        (Removed(DOWN, (DOWN, NEAR), 0.01, 0.01), "as with harmless rows"),
        (Removed(DOWN, (DOWN, UP), 0.01, 0.01), "less than with harmless rows"),
        (Removed(DOWN, (DOWN,), 1 / 11, 1 / 11), "too few random subspaces"),
        (Removed(DOWN, (DOWN,), 1 / 20, 1 / 20), "too few random subspaces"),
        (Removed(DOWN, (DOWN,), 2 / 11, 1 / 11), "as with random subspaces"),
        (Removed(DOWN, (DOWN,), 1 / 21, 1 / 21), "less likely"),
        (Removed(UP, (UP,), 1 / 21, 1 / 21), "more likely"),
    ],
)
def test_the_word_of_a_removal(removed, word):
    assert judge_removal(removed).word == word


def test_every_word_is_used_by_some_evidence():
    moved = {judge_move(Moved(own, tuple(rest))) for own in ALL for rest in ((), (UP,), (DOWN,), (NEAR,), (NONE,))}
    moved.add(judge_move(Moved(UP, (UP,), random_p=1.0)))
    assert {r.when for r in moved} == {r.when for r in MOVED_RULES}
    shared = {
        judge_overlap(Shared(o, p, b)) for o in (0.5, math.nan) for p in (0.01, 0.5) for b in ((), (UP,), (NEAR,))
    }
    assert {r.when for r in shared} == {r.when for r in SHARED_RULES}
    removed = {
        judge_removal(Removed(own, (one,), p, least))
        for own in ALL
        for one in ALL
        for p, least in ((0.01, 0.01), (0.1, 0.1), (0.2, 0.1))
    }
    assert {r.when for r in removed} == {r.when for r in REMOVED_RULES}


def test_turning_twice_changes_nothing_and_once_swaps_the_words():
    assert turned(turned(UP)) == UP
    assert judge_move(Moved(turned(UP), (turned(UP),))).word == "strengthened"


def test_the_worst_layer_pays_for_all_layers_that_were_asked():
    by_layer = [(0, NEAR), (3, UP), (5, NONE), (7, replace(UP, p=0.02))]
    layer, e = worst_layer(by_layer)
    assert (layer, e.value) == (3, UP.value)
    assert e.p == pytest.approx(3 * 0.01)
    assert worst_layer([(0, replace(UP, p=0.9)), (1, replace(UP, p=0.8))])[1].p == 1.0
    assert worst_layer([(5, NONE)]) is None


@pytest.mark.parametrize(
    ("way", "word"),
    [
        (Way(-0.03, 0.01), "back, no control"),
        (Way(0.03, 0.01), "further on, no control"),
        (Way(-0.0195, 0.01), "no more than chance"),
        (Way(0.0195, 0.01), "no more than chance"),
        (Way(math.nan, math.nan), "not measurable"),
        (Way(math.nan, 0.01), "not measurable"),
        (Way(-1.0, math.nan), "not measurable"),
        (Way(-1.0, 0.0), "not measurable"),
    ],
)
def test_the_word_of_a_way(way, word):
    assert judge_way(way).word == word


def test_the_words_of_the_loss_on_safe_answers_go_by_the_same_numbers_and_below_0_is_raised():
    words = [judge_way(Way(cosine, 0.01), SAFETY_RULES).word for cosine in (-0.03, 0.03, 0.0195, math.nan)]
    assert words == ["raised, no control", "lowered, no control", "no more than chance", "not measurable"]


def test_no_word_of_a_way_claims_more_than_chance_without_saying_what_is_missing():
    for rule in (*WAY_RULES[2:], *SAFETY_RULES[2:]):
        assert "no control" in rule.word
        assert "any fine-tune may have some" in rule.means
