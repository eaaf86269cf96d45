"""Retention of the alignment direction: where it is known, against loops, and in repeated experiments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from three_models import DIM, LAYERS, N, World, drawn, interpolated, read_under, shifts

from graddiag.analyzers import Direction, direction
from graddiag.analyzers._held_out import halves, held_out, sums_of
from graddiag.comparison import Comparison
from graddiag.errors import DataError, UsageError
from graddiag.signals import Signals

REPEATS = 200
COVERAGE = 0.95


def within(hits: int, n: int, expected: float) -> bool:
    """Whether a rate is within 3.3 standard errors of its expectation."""
    return abs(hits / n - expected) <= 3.3 * math.sqrt(expected * (1 - expected) / n)


def measured(states: Mapping[str, list[np.ndarray]], **options: object) -> Direction:
    return direction(*shifts(read_under(states)), **options)


def values(result: Direction, what: str = "retention") -> list[float]:
    return [getattr(at, what).value for at in result.whole.layers]


def test_retention_is_one_minus_the_share_of_the_way_back() -> None:
    shares = [0.0, 0.25, 0.5, 1.0, 1.5]
    result = measured(interpolated(shares))
    assert values(result) == pytest.approx([1 - a for a in shares], abs=1e-12)
    for at in result.whole.layers:
        assert (at.retention.low, at.retention.high) == pytest.approx((at.retention.value,) * 2, abs=1e-12)
        assert at.in_sample == pytest.approx(at.retention.value)
        assert (at.remainder.value, at.remainder.low, at.remainder.high) == (0, 0, 0)
    slope = np.polyfit(range(5), [1 - a for a in shares], 1)[0]
    assert result.whole.slope.value == pytest.approx(slope)
    assert all((at.along < 0) == (a > 0) for at, a in zip(result.whole.layers, shares, strict=True))


def test_a_shift_orthogonal_to_alignment_keeps_it_and_leaves_a_remainder() -> None:
    s = drawn()
    flat = [np.concatenate([h, np.zeros((N, DIM))], axis=1) for h in s["base"]]
    aligned = [np.concatenate([h, np.zeros((N, DIM))], axis=1) for h in s["aligned"]]
    away = np.concatenate([np.zeros(DIM), np.full(DIM, 2.0)])
    result = measured({"base": flat, "aligned": aligned, "tuned": [h + away for h in aligned]})
    assert values(result) == [1.0] * LAYERS
    assert values(result, "fitted") == pytest.approx([3.0] * LAYERS, rel=0.3)
    for at in result.whole.layers:
        assert at.along == 0
        assert at.remainder.value > 2, "twice as far as alignment went"
        k = at.layer
        length = slow.apart(*[aligned[k] - flat[k]] * 2, *[[str(i % 4) for i in range(N)]] * 2)
        assert at.remainder.value == pytest.approx(2 * math.sqrt(DIM / length))


def test_equal_models_have_no_difference_of_any_kind() -> None:
    s = drawn()
    same = s | {"tuned": s["aligned"]}
    control = shifts(read_under({k: [h + 1 for h in v] for k, v in same.items()}, name="benign"))
    result = measured(same, control=control)
    for at, less in zip(result.whole.layers, result.contrast, strict=True):
        assert (at.retention.value, at.retention.low, at.retention.high) == (1, 1, 1)
        assert (at.along, at.random_sd, at.random_p) == (0, 0, 1)
        assert (at.remainder.value, at.remainder.low, at.remainder.high) == (0, 0, 0)
        assert (less.value, less.low, less.high, less.p) == (0, 0, 0, 1)
    trend = result.depth_trend
    assert (trend.value, trend.low, trend.high, trend.p) == (0, 0, 0, 1)


def test_a_held_out_mean_reads_every_row_along_the_direction_of_the_other_half() -> None:
    rng = np.random.default_rng(3)
    clusters = np.sort(np.append(np.arange(7), rng.integers(0, 7, 20)))
    a, t = rng.normal(1, 1, (27, DIM)), rng.normal(size=(27, DIM))
    first_half = halves(7, seed=5)
    assert first_half.sum(axis=1).tolist() == [3] * 20
    sums = sums_of(a, clusters), sums_of(t, clusters)
    got = held_out(sums[1] @ sums[0].T, sums[0] @ sums[0].T, np.bincount(clusters), first_half)
    for k, without in enumerate([None, *range(7)]):
        kept = clusters != without
        read = []
        for half in first_half:
            inside = half[clusters] == 1
            for fit, row in ((inside, ~inside), (~inside, inside)):
                v = a[kept & fit].mean(axis=0)
                read += [
                    (t[i] @ v / np.linalg.norm(v), a[i] @ v / np.linalg.norm(v)) for i in np.flatnonzero(kept & row)
                ]
        assert (got.along[k], got.fitted[k]) == pytest.approx(np.mean(read, axis=0), rel=1e-12)


def test_a_direction_fitted_on_the_rows_it_is_read_on_sees_erosion_where_there_is_none() -> None:
    dim, size = 100, 5.0
    world = World(np.full((1, dim), size / math.sqrt(dim)), np.zeros((1, dim)), sizes=(1,) * 40)
    rng = np.random.default_rng(0)
    found = [direction(*shifts(world.draw(rng)), n_random=0).whole.layers[0] for _ in range(100)]
    in_sample = np.array([at.in_sample for at in found])
    held = np.array([at.retention.value for at in found])
    assert np.isfinite(held).all()
    error = held.std(ddof=1) / math.sqrt(len(held))
    assert abs(held.mean() - 1) < 3.3 * error
    noise = 2 * dim / 40  # squared length of the noise of one model's mean, cluster and row
    assert in_sample.mean() == pytest.approx(1 - noise / (size**2 + 2 * noise), abs=0.05)
    assert np.mean(in_sample < 1) > 0.9


def eroding(slope: float, sizes: tuple[int, ...], noise: float, *, away: float = 0.5) -> World:
    """Retention falls by `slope` per layer from 1; what is orthogonal to the direction moves too."""
    rng = np.random.default_rng(1)
    units = np.stack([np.linalg.qr(rng.normal(size=(DIM, 2)))[0].T for _ in range(LAYERS)])
    lost = -slope * np.arange(LAYERS)[:, None]
    return World(4 * units[:, 0], 4 * (lost * units[:, 0] + away * units[:, 1]), sizes, noise)


@pytest.mark.parametrize(
    ("sizes", "noise"),
    [((1,) * 24, 1.0), ((2, 3, 1, 4) * 3, 0.8), ((3, 5, 2, 3, 3, 4), 0.4)],
    ids=["rows", "twelve clusters", "six clusters"],
)
def test_intervals_cover_what_is_true_as_often_as_they_say(sizes: tuple[int, ...], noise: float) -> None:
    harmful, benign = eroding(0.2, sizes, noise), eroding(0.1, sizes[::-1], noise)
    rng = np.random.default_rng(len(sizes))
    hits: dict[str, list[bool]] = {"first": [], "last": [], "contrast": [], "trend": [], "remainder": []}
    for _ in range(REPEATS):
        control = shifts(benign.draw(rng, "benign"))
        result = direction(*shifts(harmful.draw(rng)), control=control, n_random=0)
        first, last = result.whole.layers[0], result.whole.layers[-1]
        hits["first"].append(first.retention.low <= 1 <= first.retention.high)
        hits["last"].append(last.retention.low <= 0.6 <= last.retention.high)
        hits["contrast"].append(result.contrast[-1].low <= -0.2 <= result.contrast[-1].high)
        hits["trend"].append(result.depth_trend.low <= -0.1 <= result.depth_trend.high)
        hits["remainder"].append(last.remainder.low <= 0.5 <= last.remainder.high)
    rates = {k: np.mean(v) for k, v in hits.items()}
    assert all(within(sum(v), REPEATS, COVERAGE) for v in hits.values()), rates


def test_rows_that_not_all_models_read_are_in_no_number() -> None:
    states = interpolated([0.3, 0.6, 0.9])
    reference, change = shifts(read_under(states))
    some = np.arange(4, 20)  # clusters are numbered, and halved, as in all rows
    fewer = Comparison(change.left.take(some[::-1]), change.right.take(some))
    got = direction(reference, fewer)
    assert got.whole.n == 16
    both = direction(Comparison(reference.left.take(some), reference.right.take(some)), fewer)
    assert got.summary() == both.summary()


def test_sets_of_unequal_rows_and_layers_that_are_not_known_can_be_contrasted() -> None:
    states = drawn(layers=3)
    states["base"][1] = states["aligned"][1] + np.random.default_rng(2).normal(size=(N, DIM))
    ours = states | {"tuned": [h + 0.5 * (b - h) for h, b in zip(states["aligned"], states["base"], strict=True)]}
    control = shifts(read_under({k: [h[:9] for h in v] for k, v in interpolated([0.1] * 3, 4).items()}, name="benign"))
    result = measured(ours, control=control)
    assert math.isnan(values(result)[1]), "no direction holds on rows that it was not fitted on"
    assert [e.value for e in result.contrast] == pytest.approx([-0.4, math.nan, -0.4], nan_ok=True)
    assert result.depth_trend.value == pytest.approx(0, abs=1e-12)
    assert (result.whole.n, result.control.n, result.control.n_clusters) == (24, 9, 4)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("case", ["rows", "one cluster", "ties", "nothing aligned"])
def test_where_there_is_no_direction_every_key_is_there_and_none_has_a_number(case: str, n: int) -> None:
    states = {k: [h[:n] for h in v] for k, v in interpolated([0.5] * LAYERS).items()}
    if case == "ties":
        states = {k: [np.repeat(h[:1], n, axis=0) for h in v] for k, v in states.items()}
    if case == "nothing aligned":
        states = {k: states["base"] for k in states}
    names = ["c"] * n if case == "one cluster" else [f"c{i}" for i in range(n)]
    summary = direction(*shifts(read_under(states, clusters=names))).summary()
    assert summary.keys() == measured(interpolated([0.5] * LAYERS)).summary().keys()
    json.dumps(summary, allow_nan=False)
    known = {k for k, v in summary.items() if v is not None} - {"direction/n", "direction/clusters"}
    expected = {f"direction/{k}/{layer}" for k in ("fitted", "in_sample") for layer in range(LAYERS)}
    assert {k for k in known if not k.startswith("direction/fitted")} <= expected


def test_rows_that_are_all_alike_have_a_direction_without_doubt() -> None:
    states = {k: [np.repeat(h[:1], 8, axis=0) for h in v] for k, v in interpolated([0.5] * LAYERS).items()}
    for at in measured(states).whole.layers:
        assert (at.retention.value, at.retention.low, at.retention.high) == pytest.approx((0.5,) * 3)


def test_a_random_direction_is_as_good_as_another() -> None:
    states = drawn(layers=1, dim=300)
    push = np.zeros(300)
    push[0] = 5.0
    moved = measured(states | {"tuned": [h + push for h in states["aligned"]]}, n_random=4_000)
    (at,) = moved.whole.layers
    length = math.sqrt(
        slow.apart(*[states["aligned"][0] - states["base"][0]] * 2, *[[str(i % 4) for i in range(N)]] * 2)
    )
    assert at.random_sd == pytest.approx(5 / math.sqrt(300) / length, rel=3.3 / math.sqrt(2 * 4_000))
    (back,) = measured(interpolated([0.5])).whole.layers
    assert back.random_p < 0.05 < at.random_p


def test_other_positions_layers_models_and_rows_are_refused() -> None:
    tables = read_under(interpolated([0.5] * LAYERS))
    reference, change = shifts(tables)
    with pytest.raises(DataError, match=r"no hidden states at 'answer', only at first:10"):
        direction(reference, change, position="answer")
    with pytest.raises(UsageError, match="no position 'second'"):
        direction(reference, change, position="second")
    shallow = shifts(read_under(interpolated([0.5, 0.5])))
    with pytest.raises(DataError, match=r"layers 0, 1, those of the first table of layers 0, 1, 2"):
        direction(reference, shallow[1])
    with pytest.raises(DataError, match="must be the same in both comparisons, but it is base"):
        direction(Comparison(tables["base"], tables["aligned"]), change)
    with pytest.raises(DataError, match="has the id of a row"):
        direction(reference, shifts(read_under(interpolated([0.5] * LAYERS), ids=[f"x{i}" for i in range(N)]))[1])
    with pytest.raises(DataError, match="'row-0' of harmful is another text"):
        direction(reference, shifts(read_under(interpolated([0.5] * LAYERS), name="other"))[1])
    with pytest.raises(DataError, match="measured under different models"):
        direction(reference, change, control=shifts({**tables, "tuned": renamed(tables["tuned"])}))


def renamed(table: Signals) -> Signals:
    return replace(table, provenance=replace(table.provenance, model="x", weights="x"))
