"""The refusal direction under two models: where it is known, against loops, and in repeated experiments."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference_statistics as slow
from three_models import read_under

from graddiag.analyzers import refusal_direction
from graddiag.comparison import Comparison
from graddiag.errors import DataError

POSITION = "last_prompt"
REPEATS = 200
DIM = 16


def prompts(
    aligned: np.ndarray, tuned: np.ndarray, name: str, clusters: list[str] | None = None, position: str = POSITION
) -> Comparison:
    """One layer's states of some prompts under both models."""
    states = {"tuned": [tuned], "aligned": [aligned]}
    tables = read_under(states, name=name, position=position, clusters=clusters)
    return Comparison(tables["tuned"], tables["aligned"])


def labels(n: int, k: int) -> list[str]:
    return [f"c{i % k}" for i in range(n)]


def test_without_noise_the_cosine_and_the_drift_are_those_of_the_two_directions() -> None:
    r, turned = np.zeros(DIM), np.zeros(DIM)
    r[0], turned[:2] = 2.0, (1.0, 1.0)
    everywhere = np.full(DIM, 7.0)
    harmless = prompts(np.tile(everywhere, (6, 1)), np.tile(everywhere, (6, 1)), "harmless")
    harmful = prompts(np.tile(everywhere + r, (8, 1)), np.tile(everywhere + turned, (8, 1)), "harmful")
    (at,) = refusal_direction(harmful, harmless).layers
    assert at.cosine.value == pytest.approx(math.sqrt(0.5))
    assert (at.drift.value, at.harmful.value, at.harmless.value) == pytest.approx((-0.5, -0.5, 0))
    assert at.random_sd == 0.25


def test_numbers_are_products_of_rows_in_different_clusters_only() -> None:
    rng = np.random.default_rng(0)
    shift = rng.normal(size=DIM)
    sets = {}
    for name, n, k, push in (("harmful", 13, 5, 2.0), ("harmless", 10, 4, 0.0)):
        aligned = rng.normal(size=(n, DIM)) + push * shift
        sets[name] = (
            aligned,
            aligned + 0.5 * rng.normal(size=(n, DIM)) - 0.3 * push * shift + push * np.eye(DIM)[0],
            labels(n, k),
        )
    (at,) = refusal_direction(*(prompts(*s[:2], name, s[2]) for name, s in sets.items())).layers

    def product(x: int, y: int, kept: tuple[set[str], set[str]]) -> float:
        """Of r under model x with r under model y, from rows of some clusters of each set."""
        rows, names = [], []
        for s, some in zip(sets.values(), kept, strict=True):
            inside = [i for i, c in enumerate(s[2]) if c in some]
            rows.append([[m[i] for i in inside] for m in s[:2]])
            names.append([s[2][i] for i in inside])
        own = sum(slow.apart(r[x], r[y], c, c) for r, c in zip(rows, names, strict=True))
        means = [[np.mean(m, axis=0) for m in r] for r in rows]
        return own - float(means[0][x] @ means[1][y]) - float(means[0][y] @ means[1][x])

    def drift(*kept: set[str]) -> float:
        return product(1, 0, kept) / product(0, 0, kept) - 1

    def cosine(*kept: set[str]) -> float:
        return product(1, 0, kept) / math.sqrt(product(0, 0, kept) * product(1, 1, kept))

    whole = [set(s[2]) for s in sets.values()]
    for e, statistic in ((at.drift, drift), (at.cosine, cosine)):
        value = statistic(*whole)
        assert e.value == pytest.approx(value)
        squares = [
            [
                (statistic(*(w - {c} if k == m else w for m, w in enumerate(whole))) - value) ** 2
                for c in sorted(whole[k])
            ]
            for k in range(2)
        ]
        error = math.sqrt(sum((len(s) - 1) / len(s) * sum(s) for s in squares))
        assert 1.96 * error < value - e.low < 3.2 * error, "t has at least as many degrees as the fewer clusters give"
    assert at.drift.value == pytest.approx(at.harmful.value - at.harmless.value)


def test_equal_models_have_one_direction_and_no_drift() -> None:
    rng = np.random.default_rng(1)
    sets = [rng.normal(size=(12, DIM)) + 4 * k for k in range(2)]
    (at,) = refusal_direction(*(prompts(s, s, f"set-{k}") for k, s in enumerate(sets))).layers
    assert at.cosine.value == 1
    for e in (at.drift, at.harmful, at.harmless):
        assert (e.value, e.low, e.high, e.p) == (0, 0, 0, 1)


def test_prompts_that_are_not_told_apart_have_no_direction() -> None:
    rng = np.random.default_rng(2)
    known = 0
    for _ in range(60):
        sets = [rng.normal(size=(12, DIM)) for _ in range(2)]
        (at,) = refusal_direction(*(prompts(s, s + 0.1, f"set-{k}") for k, s in enumerate(sets))).layers
        assert math.isnan(at.cosine.value) == math.isnan(at.drift.value)
        known += math.isfinite(at.drift.value)
    assert known / 60 < 0.025 + 3.3 * math.sqrt(0.025 * 0.975 / 60), "one end of a 95 % interval is above 0 by chance"


def test_noise_that_rows_have_under_both_models_moves_neither_number() -> None:
    rng = np.random.default_rng(3)
    r = np.zeros(DIM)
    r[0] = 4.0
    turned = np.zeros(DIM)
    turned[:2] = 2.4, 3.2  # cosine 0.6, drift -0.4
    covered, known = {"cosine": 0, "drift": 0}, 0
    for _ in range(REPEATS):
        parts = []
        for name, push in (("harmful", (r, turned)), ("harmless", (0 * r, 0 * r))):
            codes = np.repeat(np.arange(12), (1, 2, 3) * 4)
            common = rng.normal(size=(12, DIM))[codes] + rng.normal(size=(24, DIM))
            own = [0.5 * rng.normal(size=(24, DIM)) for _ in range(2)]
            states = [common + noise + p for noise, p in zip(own, push, strict=True)]
            parts.append(prompts(*states, name, [f"c{c}" for c in codes]))
        (at,) = refusal_direction(*parts).layers
        known += math.isfinite(at.drift.value)
        covered["cosine"] += at.cosine.low <= 0.6 <= at.cosine.high
        covered["drift"] += at.drift.low <= -0.4 <= at.drift.high
    assert known > 0.9 * REPEATS
    for rate in covered.values():
        assert abs(rate / known - 0.95) <= 3.3 * math.sqrt(0.05 * 0.95 / known), (covered, known)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 1)])
def test_a_single_cluster_tells_no_direction_and_leaves_every_key(n: int, k: int) -> None:
    rng = np.random.default_rng(4)
    sets = [rng.normal(size=(n, DIM)) + 3 * m for m in range(2)]
    summary = refusal_direction(*(prompts(s, s, f"set-{m}", labels(n, k)) for m, s in enumerate(sets))).summary()
    json.dumps(summary, allow_nan=False)
    assert summary["direction/refusal/cosine/0"] is None
    assert summary["direction/refusal/drift/0/p"] is None


def test_another_position_and_sets_without_a_common_row_are_refused() -> None:
    h = np.random.default_rng(5).normal(size=(6, DIM))
    one, elsewhere = prompts(h, h, "harmful"), prompts(h, h, "harmless", position="answer")
    with pytest.raises(DataError, match="no hidden states at 'last_prompt', only at answer"):
        refusal_direction(one, elsewhere)
    other = read_under({"aligned": [h]}, name="harmless", position=POSITION, ids=[f"x{i}" for i in range(6)])["aligned"]
    with pytest.raises(DataError, match="No row of harmful was read under both models"):
        refusal_direction(Comparison(one.left, other), one)
