"""Ranking rows: planted harm is found first, scores agree with full gradients, noise is called noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference_statistics as slow
from scipy.stats import spearmanr
from tables import RECIPE, Recipe, Table, draw, table_of

from graddiag.errors import UsageError
from graddiag.ranking import Means, Ranking, Scalars, check_choice, rank_rows, spearman
from graddiag.screen_verdict import Screening, reliability_line, screen_verdict

PLANTED = 0.1  # share of rows whose gradient is turned round


@dataclass(frozen=True)
class World:
    """Full gradients, all blocks as one vector, of a set, of the two halves of a safety set and of a harmful one."""

    rows: np.ndarray
    safety: tuple[np.ndarray, np.ndarray]
    harmful: tuple[np.ndarray, np.ndarray] | None = None
    finite: np.ndarray | None = None
    clusters: int = 0

    @property
    def means(self) -> Means:
        halves = [h.mean(axis=0) for h in (*self.safety, *(self.harmful or ()))]
        gram = np.array([[a @ b for b in halves] for a in halves])
        n = tuple(len(h) for h in (*self.safety, *(self.harmful or ())))
        return Means(gram, n, (0, 1), (2, 3) if self.harmful else ())

    @property
    def scalars(self) -> Scalars:
        n = len(self.rows)
        halves = np.array([h.mean(axis=0) for h in (*self.safety, *(self.harmful or ()))])
        clusters = tuple(f"c{i % self.clusters}" if self.clusters else f"c{i}" for i in range(n))
        finite = np.ones(n, dtype=bool) if self.finite is None else self.finite
        norm = np.linalg.norm(self.rows, axis=1)
        ones = np.ones(n, dtype=np.int64)
        ids = tuple(f"row-{i}" for i in range(n))
        return Scalars(ids, clusters, np.ones(n), ones, finite, norm, self.rows @ halves.T, ids)

    def ranked(self, by: str | None = None) -> Ranking:
        return rank_rows(self.scalars, self.means, by=by)


def vectors(n: int, *, shared: float, seed: int, direction: int = 0) -> np.ndarray:
    drawn = draw(Recipe(n=n, shared=shared, direction_seed=direction), seed)
    return np.concatenate(list(drawn.values()), axis=1)


def world(*, shared: float = 0.8, harmful: bool = False) -> World:
    safety = (vectors(30, shared=shared, seed=1), vectors(20, shared=shared, seed=2))
    other = (vectors(9, shared=shared, seed=3, direction=5), vectors(12, shared=shared, seed=4, direction=5))
    return World(vectors(40, shared=shared, seed=7), safety, other if harmful else None)


def auroc(score: np.ndarray, planted: np.ndarray) -> float:
    """Share of (planted, other) pairs in which the planted row scores higher, pair by pair."""
    wins = [float(a > b) + 0.5 * float(a == b) for a in score[planted] for b in score[~planted]]
    return float(np.mean(wins))


def test_rows_with_turned_gradients_are_ranked_first() -> None:
    rows = vectors(200, shared=0.8, seed=11)
    planted = np.zeros(200, dtype=bool)
    planted[np.random.default_rng(0).permutation(200)[: int(PLANTED * 200)]] = True
    rows[planted] *= -1
    for by in ("alignment", "harm"):
        found = replace(world(), rows=rows).ranked(by)
        assert auroc(found.score, planted) >= 0.99, by
        assert set(found.worst(PLANTED)) == set(np.flatnonzero(planted)), by
        assert found.opposed_share.value == pytest.approx(PLANTED)


def test_scores_are_those_of_the_full_gradients_and_the_whole_sets_means() -> None:
    w = world(harmful=True)
    assert w.harmful is not None
    safe, harmful = (np.concatenate(h).mean(axis=0) for h in (w.safety, w.harmful))
    found = w.ranked()
    assert found.by == "matching"
    assert found.alignment == pytest.approx([slow.cos(g, safe) for g in w.rows])
    assert found.harm == pytest.approx([-(g @ safe) for g in w.rows])
    wanted = [slow.cos(g, harmful) - slow.cos(g, safe) for g in w.rows]
    assert found.matching == pytest.approx(wanted)
    assert [found.rank[i] for i in np.argsort(wanted)[::-1]] == list(range(1, 41))
    half = [
        [slow.cos(g, h.mean(axis=0)) - slow.cos(g, s.mean(axis=0)) for g in w.rows]
        for h, s in zip(w.harmful, w.safety, strict=True)
    ]
    assert found.halves == pytest.approx(spearmanr(*half).statistic)


def test_sums_over_blocks_are_products_of_whole_vectors() -> None:
    full = draw(RECIPE, 3)
    means = [{b: np.random.default_rng([k, len(b)]).normal(size=g.shape[1]) for b, g in full.items()} for k in (0, 1)]
    table = table_of(full, finite=[True] * 11 + [False])
    toward = replace(
        table.signals,
        space=replace(table.signals.space, projection="toward", dim=2),
        gradients={b: np.stack([g @ m[b] for m in means], axis=1) for b, g in full.items()},
    )
    found = Scalars.concat([Scalars.of(toward.take(range(5))), Scalars.of(toward.take(range(5, 12)))])
    whole = Table(table.signals, full).whole()
    assert found.norm == pytest.approx(np.linalg.norm(whole, axis=1))
    wanted = np.stack([whole @ np.concatenate(list(m.values())) for m in means], axis=1)
    assert found.products == pytest.approx(wanted)
    assert (found.ids, found.clusters) == (toward.ids, toward.clusters)
    assert not found.finite[11]


def test_rows_that_are_not_finite_have_no_rank_and_move_nobody_elses() -> None:
    w = world()
    finite = np.ones(40, dtype=bool)
    finite[[3, 17]] = False
    found, without = replace(w, finite=finite).ranked(), replace(w, rows=w.rows[finite]).ranked()
    assert (found.rank[[3, 17]] == 0).all()
    assert np.isnan(found.score[[3, 17]]).all()
    assert (found.rank[finite] == without.rank).all()
    assert found.mean(found.alignment).value == pytest.approx(without.mean(without.alignment).value)
    assert len(found.worst(0.5)) == 19
    assert found.halves == without.halves


def test_equal_scores_are_ranked_in_the_order_of_the_set() -> None:
    w = world()
    twice = np.repeat(np.arange(20), 3)
    rows = w.scalars
    same = replace(
        rows,
        **{k: getattr(rows, k)[twice] for k in ("loss", "n_tokens", "finite", "norm", "products")},
        ids=tuple(map(str, range(60))),
        clusters=tuple(map(str, range(60))),
    )
    rank = rank_rows(same, w.means).rank
    assert sorted(rank) == list(range(1, 61))
    assert (np.diff(rank.reshape(20, 3), axis=1) == 1).all()


def test_ranks_are_called_noise_where_the_safety_rows_share_nothing_and_repeatable_where_they_do() -> None:
    calls = [
        reliability_line(
            World(
                vectors(100, shared=0.0, seed=s),
                (vectors(20, shared=0.0, seed=1000 + s), vectors(20, shared=0.0, seed=2000 + s)),
            ).ranked()
        )
        for s in range(40)
    ]
    assert sum("noise" in c for c in calls) >= 38
    many = (vectors(400, shared=1.0, seed=5), vectors(400, shared=1.0, seed=6))
    assert "Ranks: repeatable" in reliability_line(World(vectors(100, shared=1.0, seed=3), many).ranked())


@pytest.mark.parametrize("clusters", [4, 6, 10])
def test_an_agreement_that_few_clusters_show_by_chance_is_noise(clusters: int) -> None:
    """Scores that are constant in each cluster and unrelated between the halves: 5 % pass, as the threshold says."""
    draws = 400
    believed = 0
    for s in range(draws):
        rows = vectors(clusters, shared=0.0, seed=3 * s)[np.arange(60) % clusters]
        safety = (vectors(2, shared=0.0, seed=3 * s + 1), vectors(2, shared=0.0, seed=3 * s + 2))
        believed += "noise" not in reliability_line(World(rows, safety, clusters=clusters).ranked())
    assert believed / draws == pytest.approx(0.05, abs=3.3 * math.sqrt(0.05 * 0.95 / draws))


def test_a_safety_set_of_one_cluster_has_no_halves_and_the_ranks_are_not_measurable() -> None:
    w = world()
    whole = w.safety[0].mean(axis=0)
    scalars = replace(w.scalars, products=(w.rows @ whole)[:, None])
    found = rank_rows(scalars, Means(np.array([[whole @ whole]]), (30,), (0,)))
    assert math.isnan(found.reliability)
    assert "not measurable" in reliability_line(found)
    assert found.alignment == pytest.approx([slow.cos(g, whole) for g in w.rows])


def test_reliability_of_the_whole_is_spearman_and_brown_s_and_no_less_than_nothing() -> None:
    found = world().ranked()
    assert replace(found, halves=0.5).reliability == pytest.approx(2 / 3)
    assert replace(found, halves=-0.9).reliability == 0


def test_spearman_agrees_with_scipy_with_ties_and_undefined_rows() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 50).astype(float), rng.integers(0, 6, 50).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    a[4] = np.nan
    kept = np.isfinite(a)
    assert spearman(a, b) == pytest.approx(spearmanr(a[kept], b[kept]).statistic)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert math.isnan(spearman(np.array([1.0, np.nan]), np.array([2.0, 1.0])))


def test_a_control_that_is_drawn_alike_has_five_percent_of_the_rows_beyond_it() -> None:
    shares = []
    for s in range(60):
        w = world()
        control = replace(w, rows=vectors(200, shared=0.8, seed=5000 + s)).ranked()
        shares.append(replace(w, rows=vectors(200, shared=0.8, seed=6000 + s)).ranked().beyond(control).value)
    assert np.mean(shares) == pytest.approx(0.05, abs=3 * np.std(shares) / math.sqrt(60))
    far = replace(w, rows=-vectors(200, shared=0.8, seed=1)).ranked()
    assert far.beyond(control).value > 0.95


def test_the_opposed_share_has_an_interval_over_clusters() -> None:
    rows = vectors(40, shared=0.05, seed=7)
    found = replace(world(), rows=rows, clusters=8).ranked()
    below = [float(c < 0) for c in found.alignment]
    wanted = slow.mean_with_interval(below, found.rows.clusters)
    e = found.opposed_share
    assert 0 < e.value < 1
    assert (e.value, e.low, e.high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("by", "share", "message"),
    [("loss", 0.1, "Allowed: alignment, harm, matching"), ("matching", 0.1, "--harmful SET"), (None, 1.0, "--drop 1")],
)
def test_a_choice_that_cannot_be_meant_is_refused(by: str | None, share: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_choice(by, share, harmful=False)


def test_the_verdict_names_the_worst_row_and_escapes_what_would_command_a_terminal() -> None:
    w = world()
    scalars = replace(w.scalars, ids=tuple(f"\x1b[31m{i}" for i in range(40)))
    found = Screening(rank_rows(scalars, w.means), {}, name="set\x07", safety="safety", share=0.1)
    text = "\n".join(screen_verdict(found))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert f"x1b[31m{int(np.argmax(found.ranking.harm))})" in text
    assert "No control" in text
    assert found.summary()["screen/dropped"] == 4
