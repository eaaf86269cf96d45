"""False alarms: as often as they say, or less, for few examples and for many, however uneven their sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtr
from test_alarms import probe

from graddiag.alarms import Limits, Watch
from graddiag.alarms._culprits import Share, dominating, share
from graddiag.alarms._cusum import ALONE, cusum_limit, reached
from graddiag.alarms._scores import LARGEST, conflict_score, inflation, update_score
from graddiag.permutations import sign_flip_rank
from graddiag.probes import Against

NOISE = 30.0  # norms in units of their part along safety: a gradient is nearly all across
ERRORS = 3.3  # Monte-Carlo standard errors: a test of this many is false once in a thousand
Draw = Callable[[np.random.Generator, int], np.ndarray]
SIZES: dict[str, Draw] = {
    "equal": lambda rng, n: np.ones(n),
    "normal": lambda rng, n: rng.standard_normal(n),
    "t3": lambda rng, n: rng.standard_t(3, n),
    "lognormal": lambda rng, n: np.exp(1.5 * rng.standard_normal(n)),
}


def fair(rng: np.random.Generator, sizes: str, n: int) -> np.ndarray:
    return SIZES[sizes](rng, n) * rng.choice([-1.0, 1.0], n)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_the_rank_is_that_among_all_flips(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n)
    sums = [float(np.dot(s, values)) for s in itertools.product([-1, 1], repeat=n)]
    rank = sign_flip_rank(values)
    assert rank.below == np.mean(np.array(sums) < values.sum() - 1e-9)
    assert rank.up_to == np.mean(np.array(sums) <= values.sum() + 1e-9)


def test_equal_sums_tie_whatever_the_order_of_addition() -> None:
    rank = sign_flip_rank(np.array([0.1, 0.2, 0.3, -0.1, -0.2, -0.3]))
    back = sign_flip_rank(np.array([-0.3, -0.2, -0.1, 0.3, 0.2, 0.1]))
    assert rank == back
    assert rank.below == pytest.approx(1 - rank.up_to)


def test_random_flips_place_a_sum_where_all_flips_do() -> None:
    values = np.random.default_rng(0).standard_normal(14)
    more = np.concatenate([values, np.zeros(1)])  # a fifteenth value of 0 changes no sum, but how flips are chosen
    exact, drawn = sign_flip_rank(values), sign_flip_rank(more, draws=40_000)
    assert drawn.up_to == pytest.approx(exact.up_to, abs=ERRORS * 0.5 / math.sqrt(40_000))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("sizes", list(SIZES))
def test_a_score_has_mean_0_and_an_exponential_moment_of_a_normal_at_most(n: int, sizes: str) -> None:
    size = np.abs(SIZES[sizes](np.random.default_rng(n), n))
    flips = itertools.product([-1, 1], repeat=n)
    scores = np.array([conflict_score(probe(0, size * np.array(s))) for s in flips])
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    for a in (0.5, 1.0, 2.0, 4.0):
        assert np.exp(a * scores).mean() <= math.exp(a * a / 2)


def test_a_score_depends_on_no_unit_and_turns_with_the_sign() -> None:
    dots = np.random.default_rng(1).standard_normal(7)
    score = conflict_score(probe(0, dots))
    assert conflict_score(probe(0, dots * 1e-12)) == pytest.approx(score)
    assert conflict_score(probe(0, -dots)) == pytest.approx(-score)
    assert math.isnan(conflict_score(probe(0, np.zeros(3))))


@pytest.mark.parametrize(("false_alarms", "horizon", "shift"), [(0.05, 100, 2.0), (0.2, 20, 1.0)])
def test_the_limit_is_reached_by_normal_scores_as_often_as_chosen(
    false_alarms: float, horizon: int, shift: float
) -> None:
    limit = cusum_limit(false_alarms, horizon, shift)
    assert reached(limit, horizon, shift, states=600) == pytest.approx(false_alarms, rel=2e-3)
    runs = 20_000
    rng, evidence, hit = np.random.default_rng(0), np.zeros(runs), np.zeros(runs, bool)
    for _ in range(horizon):
        evidence = np.maximum(0, evidence + rng.standard_normal(runs) - shift / 2)
        hit |= evidence >= limit
    assert hit.mean() == pytest.approx(false_alarms, abs=ERRORS * math.sqrt(false_alarms / runs))


@pytest.mark.parametrize(("n", "runs"), [(4, 800), (8, 800), (32, 80)])
@pytest.mark.parametrize("sizes", ["equal", "lognormal"])
def test_fair_examples_give_no_more_conflicts_than_chosen(n: int, runs: int, sizes: str) -> None:
    """Runs of 10 probes at 20 %, so that a few hundred tell, and a shift at which one probe alone brings no alarm."""
    limits = Limits(false_alarms=0.2, horizon=10, shift=1.0)
    rng, hits = np.random.default_rng(n), 0
    for _ in range(runs):
        watch = Watch(limits)
        seen = [watch.see(probe(int(rng.integers(1e6)) + k * 10**6, fair(rng, sizes, n))) for k in range(10)]
        hits += any(a.rule == "conflict" for alarms in seen for a in alarms)
    assert hits / runs <= 0.2 + ERRORS * math.sqrt(0.16 / runs)
    if n > 4 and sizes == "lognormal":  # four signs are too coarse to use the rate up, and equal sizes tie
        assert hits / runs >= 0.2 - ERRORS * math.sqrt(0.16 / runs)


@pytest.mark.parametrize("apart", [1, 10])
@pytest.mark.parametrize("n", [4, 32])
def test_fair_examples_give_no_more_update_conflicts_than_chosen(apart: int, n: int) -> None:
    """Momentum 0.9 over fair examples, probed at every step or every tenth."""
    limits, rng, runs, hits = Limits(), np.random.default_rng(n + apart), 300, 0
    for _ in range(runs):
        step_dots = rng.standard_normal((60 * apart + 50, n))
        evidence, momentum, told = 0.0, 0.0, False
        for k, dots in enumerate(step_dots):
            momentum = 0.9 * momentum + float(dots.mean())
            if k < 50 or k % apart:  # momentum has settled
                continue
            batch = Against({"b": float(dots.mean())}, {"b": NOISE * math.sqrt(1 / n)})
            update = Against({"b": momentum}, {"b": NOISE * math.sqrt(1 / n / (1 - 0.81))})
            score = update_score(probe(k, dots, gradient=batch, update=update), inflation=inflation(0.9, apart))
            evidence = max(0.0, evidence + min(score - limits.shift / 2, ALONE * limits.conflict))
            told = told or evidence >= limits.conflict
        hits += told
    assert hits / runs <= 0.05 + ERRORS * math.sqrt(0.05 * 0.95 / runs)


def test_flips_are_drawn_anew_at_each_probe_so_that_their_errors_average_out() -> None:
    values = np.random.default_rng(0).standard_normal(14)
    more = np.concatenate([values, np.zeros(1)])  # as in the rank: no other sums, but drawn flips in place of all
    errors = np.array([conflict_score(probe(k, more)) for k in range(40)]) - conflict_score(probe(0, values))
    assert abs(errors.mean()) <= ERRORS * errors.std(ddof=1) / math.sqrt(len(errors))


def test_the_largest_score_is_that_of_the_last_random_flip() -> None:
    assert conflict_score(probe(0, -np.ones(40))) == pytest.approx(LARGEST)
    assert 1 - ndtr(LARGEST) < 1e-4


@pytest.mark.parametrize("n", [4, 8, 32])
def test_fair_examples_are_called_culprits_no_more_often_than_chosen(n: int) -> None:
    limits, rng, runs, many, one = Limits(), np.random.default_rng(n), 200, 0, 0
    for _ in range(runs):
        seen, highest, largest = Share(), 0.0, False
        for k in range(limits.horizon):
            now = probe(k, rng.laplace(size=n))
            seen, reading = share(seen, now, limits)
            highest = max(highest, reading.value / reading.limit)
            alone = dominating(now, limits)
            largest = largest or alone.value >= alone.limit
        many += highest >= 1
        one += largest
    most = 0.05 + ERRORS * math.sqrt(0.05 * 0.95 / runs)
    assert many / runs <= most
    assert one / runs <= most
