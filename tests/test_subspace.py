"""The overlap of two sets' shifts: planted ones, none at all, and what is shared without any fine-tuned harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest
from state_changes import SITE, change_of, moved, orthonormal

from graddiag.analyzers import SubspaceOverlap, subspace_overlap
from graddiag.comparison import Comparison
from graddiag.errors import DataError, UsageError

WIDTH = 30
QUICK = 39  # draws of a null: p is a multiple of 1/40
ANGLE = 25.0  # degrees


def _at_an_angle(seed: int) -> tuple[Comparison, Comparison]:
    """Two sets that move along three directions each, all at the same angle."""
    rng = np.random.default_rng(seed)
    both = orthonormal(rng, WIDTH, 6)
    turned = np.cos(np.radians(ANGLE)) * both[:, :3] + np.sin(np.radians(ANGLE)) * both[:, 3:]
    return moved(rng, both[:, :3], "A", n=50), moved(rng, turned, "B", n=60)


def test_a_planted_subspace_is_found_with_its_dimension_and_angle() -> None:
    counted = [k for seed in range(10) for k in subspace_overlap(*_at_an_angle(seed), n_null=1).overall.k]
    assert min(counted) == np.median(counted) == 3
    assert sum(k > 3 for k in counted) <= 5  # of 20, at a rate of 5 %: p = 0.003
    a, b = _at_an_angle(0)
    found = subspace_overlap(a, b, k=3, n_null=QUICK).overall
    np.testing.assert_allclose(found.angles, ANGLE, atol=2.5)  # degrees; noise of 0.1 / 3 turns a direction by 1 to 2
    assert found.overlap.value == pytest.approx(np.cos(np.radians(ANGLE)) ** 2, abs=0.02)
    assert found.overlap.low < found.overlap.value < found.overlap.high
    assert found.states.p == found.random.p == 1 / (QUICK + 1)
    own, across = found.transfer[(1, 1)].share.value, found.transfer[(0, 1)].share.value
    assert across / own == pytest.approx(np.cos(np.radians(ANGLE)) ** 2, abs=0.04)


def test_without_noise_the_angles_are_exact() -> None:
    rng = np.random.default_rng(1)
    both = orthonormal(rng, WIDTH, 4)
    turned = np.cos(0.3) * both[:, :2] + np.sin(0.3) * both[:, 2:]
    found = subspace_overlap(
        moved(rng, both[:, :2], "A", noise=0.0), moved(rng, turned, "B", noise=0.0), k=2, n_null=QUICK
    ).overall
    np.testing.assert_allclose(found.angles, np.degrees(0.3), rtol=1e-9)
    assert found.overlap.value == pytest.approx(np.cos(0.3) ** 2, rel=1e-12)


def _laws(found: SubspaceOverlap) -> list[float]:
    scope = found.overall
    return [scope.overlap.value, scope.overlap.low, scope.mean_cosine.value, scope.transfer[(0, 0)].share.value]


def test_the_order_of_rows_and_a_rotation_of_all_states_change_nothing() -> None:
    a, b = _at_an_angle(2)
    plain = _laws(subspace_overlap(a, b, k=3, n_null=1))
    turn = orthonormal(np.random.default_rng(3), WIDTH, WIDTH)

    def rotated(side: Comparison) -> Comparison:
        return Comparison(*(replace(t, states={SITE: t.states[SITE] @ turn}) for t in (side.left, side.right)))

    np.testing.assert_allclose(_laws(subspace_overlap(rotated(a), rotated(b), k=3, n_null=1)), plain, rtol=1e-9)
    order = np.random.default_rng(4).permutation(a.n_pairs)
    mixed = Comparison(a.left.take(order), a.right)
    shuffled = subspace_overlap(mixed, b, k=3, n_null=1).overall
    np.testing.assert_allclose([shuffled.overlap.value, shuffled.mean_cosine.value], [plain[0], plain[2]], rtol=1e-9)


def test_a_strong_mean_shift_that_both_sets_share_is_no_overlap() -> None:
    """One vector added to every state under the tuned model leaves overlap and nulls as they are."""

    def found(mean: float) -> SubspaceOverlap:
        rng = np.random.default_rng(5)
        sets = [moved(rng, orthonormal(rng, WIDTH, 3), name, mean=mean) for name in "AB"]
        return subspace_overlap(*sets, k=3, n_null=QUICK)

    without, strong = found(0.0).overall, found(50.0).overall
    assert strong.overlap.value == pytest.approx(without.overlap.value, rel=1e-6)
    assert (strong.matching.p, strong.states.p, strong.random.p) == (
        without.matching.p,
        without.states.p,
        without.random.p,
    )
    assert strong.mean_cosine.value == pytest.approx(1.0, abs=1e-3)
    assert abs(without.mean_cosine.value) < 0.9 or np.isnan(without.mean_cosine.value)


def _p_values(kind: str, n: int = 150) -> np.ndarray:
    """p of sets with nothing in common: that of each null where it is exact."""
    out = []
    for seed in range(n):
        rng = np.random.default_rng([seed, len(kind)])
        if kind == "matching":  # the two models' states of a row have nothing to do with each other
            sets = [change_of(rng.normal(size=(25, WIDTH)), rng.normal(size=(25, WIDTH)), name) for name in "AB"]
        else:
            sets = [moved(rng, orthonormal(rng, WIDTH, 3), name, n=25) for name in "AB"]
        scope = subspace_overlap(*sets, k=3, n_null=QUICK, seed=seed).overall
        out.append(getattr(scope, kind).p)
    return np.array(out)


@pytest.mark.parametrize("kind", ["matching", "random"])
def test_p_is_even_where_nothing_is_shared(kind: str) -> None:
    p = _p_values(kind)
    steps = p - np.random.default_rng(0).random(len(p)) / (QUICK + 1)  # p has steps; filled in, it is even on 0..1
    assert kstest(steps, "uniform").pvalue > 0.001


def _huge(rng: np.random.Generator, n: int = 30) -> np.ndarray:
    return np.asarray(rng.normal(size=(n, WIDTH)) * np.where(np.arange(WIDTH) < 2, 20.0, 1.0))


def test_beside_huge_activations_the_matching_null_claims_nothing_and_the_states_null_still_finds() -> None:
    rng = np.random.default_rng(6)
    sizes = np.where(np.arange(WIDTH) < 3, 20.0, 1.0)
    apart = [moved(rng, orthonormal(rng, WIDTH, 3), name, sizes=sizes) for name in "AB"]
    planted = orthonormal(rng, WIDTH, 3)
    shared = [moved(rng, planted, name, sizes=sizes) for name in "AB"]
    nothing, found = (subspace_overlap(*sets, k=3, n_null=QUICK).overall for sets in (apart, shared))
    assert found.overlap.value > 0.9
    assert nothing.matching.mean > 0.9
    assert nothing.matching.p > 0.9
    assert nothing.states.p > 0.05
    assert found.states.p == 1 / (QUICK + 1)


def _beyond(n: int) -> tuple[list[float], list[float]]:
    """p against random directions and p beyond the control where a change of the weights moves all texts alike."""
    random, beyond = [], []
    for seed in range(n):
        rng = np.random.default_rng([seed, 7])
        response = np.eye(WIDTH) + 0.1 * rng.normal(size=(WIDTH, WIDTH))
        rows = [_huge(rng) for _ in range(3)]
        sets = [
            change_of(x @ response + 0.3 * rng.normal(size=x.shape), x, name)
            for x, name in zip(rows, ("A", "B", "benign"), strict=True)
        ]
        scope = subspace_overlap(sets[0], sets[1], {"benign": sets[2]}, k=3, n_null=QUICK, seed=seed).overall
        random.append(scope.random.p)
        beyond.append(scope.controls["benign"].beyond.p)
    return random, beyond


def test_a_change_that_moves_every_text_alike_is_shared_and_nothing_beyond_the_control() -> None:
    random, beyond = _beyond(100)
    assert max(random) <= 0.05, "random directions are no judge: they call every change of the weights shared"
    steps = np.array(beyond) - np.random.default_rng(0).random(len(beyond)) / (QUICK + 1)
    assert kstest(steps, "uniform").pvalue > 0.001


def test_what_a_control_does_not_share_is_found_beyond_it() -> None:
    rng = np.random.default_rng(8)
    planted = orthonormal(rng, WIDTH, 3)
    a, b, benign = (moved(rng, u, x) for u, x in ((planted, "A"), (planted, "B"), (orthonormal(rng, WIDTH, 3), "C")))
    found = subspace_overlap(a, b, {"benign": benign}, n_null=QUICK)
    beside = found.overall.controls["benign"]
    assert beside.beyond.p == 1 / (QUICK + 1)
    assert beside.beyond.value == pytest.approx(found.overall.overlap.value - beside.overlap.value)
    assert found.summary()["subspace/overlap:benign:B"] == beside.overlap.value
    assert beside.beyond.low > 0


def test_identical_models_have_no_overlap_to_speak_of() -> None:
    rng = np.random.default_rng(9)
    sets = [change_of(x, x, name) for name in "AB" for x in [rng.normal(size=(20, WIDTH))]]
    summary = subspace_overlap(*sets, {"C": change_of(np.ones((20, WIDTH)), np.ones((20, WIDTH)), "C")}).summary()
    assert {summary.pop("subspace/k:A"), summary.pop("subspace/k:B")} == {0.0}
    assert set(summary.values()) == {None}


def test_the_mean_over_sites_is_that_of_the_sites_that_have_the_number() -> None:
    rng = np.random.default_rng(10)
    planted = orthonormal(rng, WIDTH, 2)
    sites = ("0/first:10", "2/first:10", "10/first:10", "2/last_prompt")

    def one(name: str) -> Comparison:
        aligned = {s: rng.normal(size=(30, WIDTH)) for s in sites}
        along = {s: a + 3 * rng.normal(size=(30, 2)) @ planted.T for s, a in aligned.items()}
        return change_of(along | {"0/first:10": aligned["0/first:10"]}, aligned, name)

    found = subspace_overlap(one("A"), one("B"), n_null=QUICK)
    assert list(found.sites) == ["0/first:10", "2/first:10", "10/first:10"], "in order of layers, one position"
    values = [s.overlap.value for s in found.sites.values()]
    assert np.isnan(values[0])
    assert found.overall.overlap.value == pytest.approx(np.mean(values[1:]))
    by_site = found.site_summary()
    assert by_site["0/first:10"]["subspace/overlap:A:B/p_fwe"] is None
    assert by_site["2/first:10"]["subspace/overlap:A:B/p_fwe"] is not None
    chosen = subspace_overlap(one("A"), one("B"), layers=[10], n_null=QUICK)
    assert list(chosen.sites) == ["10/first:10"]


def test_rows_of_one_cluster_are_never_fitted_and_read() -> None:
    """Every cluster has a direction of its own, so nothing of the fit holds outside it."""
    rng = np.random.default_rng(11)
    at = np.repeat(np.arange(10), 4)
    own = orthonormal(rng, WIDTH, 10)
    aligned = rng.normal(size=(40, WIDTH))
    tuned = aligned + 3 * rng.normal(size=(40, 1)) * own.T[at]
    a = change_of(tuned, aligned, "A", clusters=[f"c{c}" for c in at])
    b = change_of(tuned, aligned, "B", clusters=[f"c{c}" for c in at])
    held_out = subspace_overlap(a, b, k=5, n_null=1).overall.transfer
    for share in held_out.values():
        assert share.share.value < 1e-9


def test_what_cannot_be_compared_is_refused() -> None:
    rng = np.random.default_rng(12)
    a, b = (moved(rng, orthonormal(rng, WIDTH, 2), name, n=8) for name in "AB")
    with pytest.raises(DataError, match=r"A: 8 components were asked for, and 8 rows .* at most 7"):
        subspace_overlap(a, b, k=8)
    with pytest.raises(UsageError, match=r"no position 'middle'"):
        subspace_overlap(a, b, position="middle")
    with pytest.raises(DataError, match=r"no states of layer 4 at the position 'first:10'.*3/first:10"):
        subspace_overlap(a, b, layers=[3, 4])
    with pytest.raises(DataError, match=r"2 sets need as many different names.*'A', 'A'.*`names`"):
        subspace_overlap(a, a)
    assert subspace_overlap(a, a, k=2, names=("A", "again"), n_null=1).overall.overlap.value == pytest.approx(1.0)
    narrow = moved(rng, orthonormal(rng, 9, 2), "B", n=8)
    with pytest.raises(DataError, match="states of A have 30 numbers at 3/first:10 and those of B 9"):
        subspace_overlap(a, narrow)
    alone = Comparison(a.left, b.right)
    with pytest.raises(DataError, match="no row of the tuned model has a partner"):
        subspace_overlap(alone, b)
