"""The change of probabilities of given answers: against loops, where nothing changed, and in repeated experiments."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from three_models import answered

from graddiag.analyzers import behaviour, refusal_score
from graddiag.bands import MIN_ROWS
from graddiag.comparison import Comparison
from graddiag.errors import DataError, UsageError

REPEATS = 200
Losses = list[np.ndarray]


def losses(rng: np.random.Generator, n: int, *, longest: int = 9) -> tuple[Losses, Losses]:
    """Losses of tuned and aligned at the tokens of n answers."""
    lengths = rng.integers(2, longest, n)
    return [rng.gamma(2.0, 1.0, k) for k in lengths], [rng.gamma(2.0, 1.0, k) for k in lengths]


def names(n: int, k: int) -> list[str]:
    return [f"c{i % k}" for i in range(n)]


@pytest.mark.parametrize("first", [None, 2])
def test_the_interaction_is_the_change_on_harmful_answers_less_that_on_benign_ones(first: int | None) -> None:
    rng = np.random.default_rng(0)
    harmful, benign = losses(rng, 15), losses(rng, 9)
    clusters = names(15, 6), names(9, 4)
    got = behaviour(
        answered(*harmful, clusters=clusters[0]), answered(*benign, name="benign", clusters=clusters[1]), first=first
    )
    gains = [
        [float(np.mean(a[:first]) - np.mean(t[:first])) for t, a in zip(*s, strict=True)] for s in (harmful, benign)
    ]
    expected = slow.interaction(gains[0], clusters[0], gains[1], clusters[1])
    e = got.interaction
    assert (e.value, e.low, e.high, e.p) == pytest.approx(expected, rel=1e-9)
    assert got.harmful.change.value - got.benign.change.value == pytest.approx(e.value)
    assert got.harmful.tuned.value == pytest.approx(-np.mean([np.mean(t[:first]) for t in harmful[0]]))
    assert got.benign.rows == pytest.approx(gains[1])


def test_a_model_that_finds_every_text_less_probable_has_no_interaction() -> None:
    tuned, aligned = losses(np.random.default_rng(1), 12)
    worse = [t + 0.75 for t in aligned]
    got = behaviour(answered(worse, aligned), answered([a + 0.75 for a in tuned], tuned, name="benign"))
    assert got.harmful.change.value == pytest.approx(-0.75)
    assert got.interaction.value == pytest.approx(0, abs=1e-12)


def test_equal_models_have_no_difference_of_any_kind() -> None:
    tuned, aligned = losses(np.random.default_rng(2), 12)
    got = behaviour(answered(tuned, tuned), answered(aligned, aligned, name="benign"))
    for e in (got.interaction, got.harmful.change, got.benign.change):
        assert (e.value, e.low, e.high, e.p) == (0, 0, 0, 1)
    for band in (got.harmful.cumulative, got.benign.cumulative):
        assert not np.concatenate([band.mean, band.low, band.high]).any()


def test_the_curve_sums_the_first_tokens_and_takes_shorter_answers_whole() -> None:
    tuned, aligned = losses(np.random.default_rng(3), 14)
    curve = behaviour(answered(tuned, aligned), answered(aligned, tuned, name="benign")).harmful.cumulative
    reached = [sum(len(t) > k for t in tuned) for k in range(9)]
    assert len(curve.mean) == sum(r >= MIN_ROWS for r in reached)
    for k, value in enumerate(curve.mean):
        expected = [float((a - t)[: k + 1].sum()) for t, a in zip(tuned, aligned, strict=True)]
        assert value == pytest.approx(np.mean(expected))
        assert curve.low[k] <= value <= curve.high[k]
    assert set(curve.n) == {14}


def test_rows_with_other_tokens_under_one_model_are_left_out_and_counted() -> None:
    tuned, aligned = losses(np.random.default_rng(4), 12)
    whole, other = answered(tuned, aligned), answered(aligned, tuned, name="benign")
    ids = list(whole.right.target_ids)
    ids[0], ids[5] = ids[0] + 1, np.append(ids[5][:-1], 9999)
    moved = Comparison(whole.left, replace(whole.right, target_ids=tuple(ids)))
    got = behaviour(moved, other)
    assert got.harmful.left_out == 2
    kept = [i for i in range(12) if i not in {0, 5}]
    assert got.harmful.rows == pytest.approx([np.mean(aligned[i] - tuned[i]) for i in kept])
    assert behaviour(moved, other, first=1).harmful.left_out == 1, "the token that differs is not read"


@pytest.mark.parametrize("sizes", [(1,) * 20, (1, 4, 2, 3, 6, 2, 2, 4)], ids=["rows", "clusters"])
def test_the_interaction_is_called_as_rarely_as_it_says_where_there_is_none(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    codes = np.repeat(np.arange(len(sizes)), sizes)
    covered = rejected = 0
    for _ in range(REPEATS):
        parts = []
        for name, spread in (("harmful", 1.0), ("benign", 0.3)):
            shift = 0.4 + spread * (rng.normal(size=len(sizes))[codes] + rng.normal(size=len(codes)))
            zeros = np.zeros((len(codes), 1))
            parts.append(answered(zeros - shift[:, None], zeros, name=name, clusters=[f"c{c}" for c in codes]))
        e = behaviour(*parts, seed=1).interaction
        covered += e.low <= 0 <= e.high
        rejected += e.p < 0.05
    assert covered == REPEATS - rejected
    assert abs(rejected / REPEATS - 0.05) <= 3.3 * math.sqrt(0.05 * 0.95 / REPEATS)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (2, 2)])
def test_few_rows_and_a_single_cluster_leave_no_interval_and_every_key(n: int, k: int) -> None:
    tuned, aligned = losses(np.random.default_rng(5), n)
    one = answered(tuned, aligned, clusters=names(n, k))
    summary = behaviour(one, answered(aligned, tuned, name="benign", clusters=names(n, k))).summary()
    json.dumps(summary, allow_nan=False)
    assert summary["behaviour/interaction"] is not None
    assert (summary["behaviour/interaction/low"] is None) == (k == 1)
    assert (summary["behaviour/interaction/p"] is None) == (k == 1)


def test_a_constant_change_has_no_p_since_nothing_tells_its_error() -> None:
    rows = [np.ones(3)] * 8
    got = behaviour(answered([r - 0.5 for r in rows], rows), answered(rows, rows, name="benign")).interaction
    assert (got.value, got.low, got.high) == (0.5, 0.5, 0.5)
    assert math.isnan(got.p)


def test_without_a_common_row_every_number_is_undefined() -> None:
    tuned, aligned = losses(np.random.default_rng(6), 6)
    whole = answered(tuned, aligned)
    apart = Comparison(whole.left, replace(whole.right, ids=tuple(f"x{i}" for i in range(6))))
    summary = behaviour(apart, answered(aligned, tuned, name="benign")).summary()
    assert summary["behaviour/interaction"] is None
    assert summary["behaviour/harmful/n"] == 0


def test_other_models_and_impossible_numbers_are_refused() -> None:
    tuned, aligned = losses(np.random.default_rng(7), 6)
    one, other = answered(tuned, aligned), answered(aligned, tuned, name="benign")
    with pytest.raises(UsageError, match="first is 0"):
        behaviour(one, other, first=0)
    with pytest.raises(DataError, match="left tables of harmful and benign were measured under different models"):
        behaviour(one, Comparison(other.right, other.left))
    with pytest.raises(UsageError, match="ending is -1"):
        refusal_score(one, other, ending=-1)
    with pytest.raises(DataError, match=r"opening of row 'row-\d' has \d tokens, and 9 of them"):
        refusal_score(one, other, ending=9)
    with pytest.raises(DataError, match="No prompt of harmful has both openings"):
        refusal_score(one, answered(aligned, tuned, name="benign", ids=[f"x{i}" for i in range(6)]))


def opened(rng: np.random.Generator, n: int, name: str, **options: object) -> tuple[Comparison, np.ndarray]:
    """The same opening of 3 tokens and 2 of the template on n prompts, and its log-probability under both models."""
    tuned, aligned = rng.gamma(2.0, 1.0, (n, 5)), rng.gamma(2.0, 1.0, (n, 5))
    whole = answered(list(tuned), list(aligned), name=name, **options)
    same = tuple(np.arange(5) for _ in range(n))
    sides = (replace(t, target_ids=same) for t in (whole.left, whole.right))
    return Comparison(*sides), -np.stack([tuned[:, :3].sum(axis=1), aligned[:, :3].sum(axis=1)])


def test_the_refusal_score_is_the_log_odds_of_two_openings_without_what_the_template_adds() -> None:
    rng = np.random.default_rng(8)
    (refusing, no), (complying, yes) = opened(rng, 10, "refusing"), opened(rng, 10, "complying")
    got = refusal_score(refusing, complying, ending=2)
    odds = no - yes
    assert got.tuned_rows == pytest.approx(odds[0])
    assert got.aligned_rows == pytest.approx(odds[1])
    clusters = names(10, 4)
    expected = slow.mean_with_interval((odds[0] - odds[1]).tolist(), clusters)
    assert (got.change.value, got.change.low, got.change.high) == pytest.approx(expected)
    totals = slow.cluster_totals([np.array([d]) for d in odds[0] - odds[1]], clusters)
    assert got.change.p == slow.sign_flip_p(totals)
    assert (got.tuned.value, got.aligned.value) == pytest.approx(tuple(odds.mean(axis=1)))


def test_prompts_with_one_opening_are_left_out_and_one_opening_for_all_is_not_one_cluster() -> None:
    rng = np.random.default_rng(9)
    ids = [f"row-{i}" for i in range(10)]
    (refusing, _), (complying, _) = (opened(rng, 10, name, ids=ids, clusters=ids) for name in ("refusing", "complying"))
    assert len(refusing.cluster_names) == 1, "every answer is the same"
    fewer = Comparison(complying.left.take(range(7)), complying.right)
    got = refusal_score(refusing, fewer, ending=2)
    assert (got.left_out, len(got.ids), len(set(got.clusters.tolist()))) == (3, 7, 7)
    assert got.summary()["behaviour/refusal/low"] is not None
