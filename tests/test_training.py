"""Training-relevant numbers: against loops over full gradients, and unbiased in repeated experiments."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import reference_statistics as slow
from tables import (
    BLOCKS,
    RECIPE,
    Recipe,
    Table,
    added_by,
    changed,
    compared,
    four_tables,
    preconditioned,
    table_of,
    with_adam,
)

from graddiag.analyzers import Training, training
from graddiag.analyzers._agreement import AgreementInfluences
from graddiag.analyzers._agreement_sums import AgreementSums
from graddiag.analyzers._cosines import rows64
from graddiag.analyzers._row_sums import Groups
from graddiag.analyzers._training import change_influence
from graddiag.signals import Signals


def of(tables: dict[str, Table], *, safety: bool = True) -> Training:
    safe = tables["safety"].signals if safety else None
    return training(compared(tables["left"], tables["right"]), safe, {"x": tables["control"].signals})


ROLES = (("left", "left"), ("right", "right"), ("control:x", "control"))


@pytest.mark.parametrize("projection", ["known", "exact"])
def test_predicted_changes_are_products_with_the_mean_safety_gradient(projection: str) -> None:
    recipe = replace(RECIPE, projection="exact") if projection == "exact" else RECIPE
    tables = four_tables(recipe, exact=projection == "known")
    found = of(tables)
    toward = tables["safety"].whole().mean(axis=0)
    for name, role in ROLES:
        wanted = [-float(g @ toward) for g in tables[role].whole()]
        assert found.steps[name].change == pytest.approx(wanted)
        e, clusters = found.overall[name], tables[role].signals.clusters
        got = (e.change.value, e.change.low, e.change.high)
        assert got == pytest.approx(slow.mean_with_interval(wanted, clusters))
        assert e.change.value == pytest.approx(-tables[role].whole().mean(axis=0) @ toward)
        assert e.opposed_share.value == pytest.approx(slow.mean([float(w > 0) for w in wanted]))
        parts = [s[f"training/{name}/change"] for s in found.block_summary().values()]
        assert sum(p for p in parts if p is not None) == pytest.approx(e.change.value)
    assert set(found.kinds().values()) == ({"exact"} if projection == "exact" else {"exact", "projected"})


def test_the_adam_form_is_the_whole_step_on_each_row() -> None:
    tables = four_tables(RECIPE)
    safety = tables["safety"]
    found = of({r: t if r == "safety" else with_adam(t, safety) for r, t in tables.items()})
    toward = safety.whole().mean(axis=0)
    resting = np.concatenate([preconditioned(k, g.shape[1])[1] for k, g in enumerate(safety.full.values())])
    for name, role in ROLES:
        added = np.concatenate(list(added_by(tables[role]).values()), axis=1)
        assert found.steps[name].adam_change == pytest.approx(-(added + resting) @ toward)
    assert of(tables).summary()["training/left/adam_change"] is None


def test_without_safety_the_agreement_of_the_rows_is_all_that_is_known() -> None:
    tables = four_tables(replace(RECIPE, shared=0.8))
    summary, whole = of(tables, safety=False).summary(), of(tables).summary()
    assert summary.keys() == whole.keys()
    known = {k for k, v in summary.items() if v is not None}
    agreement = {k for k, v in whole.items() if v is not None and ("noise_scale" in k or "stiffness" in k)}
    assert known == agreement
    assert {f"training/{role}/noise_scale" for role in ("left", "right", "control:x")} <= known


def naive_agreement(rows: np.ndarray, clusters: list[str]) -> tuple[float, float, float]:
    """Noise scale, stiffness and sign stiffness by loops over rows."""
    n = range(len(rows))
    cosines = [slow.cos(rows[i], rows[j]) for i in n for j in n if i != j]
    products = [float(rows[i] @ rows[j]) for i in n for j in n if clusters[i] != clusters[j]]
    signal = slow.mean(products)
    noise = slow.mean([float(g @ g) for g in rows]) - signal
    scale = noise / signal if signal > 0 else math.nan
    return scale, slow.mean(cosines), slow.mean([float(np.sign(c)) for c in cosines])


def test_agreement_and_its_intervals_are_those_of_loops_with_a_cluster_left_out_in_turn() -> None:
    tables = four_tables(replace(RECIPE, n=14, shared=0.7))
    table = changed(tables["left"], lambda s: replace(s, finite=np.arange(14) != 5))
    found = of(tables | {"left": table}).agreement["left"]
    kept = table.signals.finite
    rows, names = table.projected()[kept], [c for c, k in zip(table.signals.clusters, kept, strict=True) if k]
    for k, e in enumerate((found.noise_scale, found.stiffness, found.sign_stiffness)):

        def statistic(kept: set[str], k: int = k) -> float:
            at = [c in kept for c in names]
            return naive_agreement(rows[at], [c for c in names if c in kept])[k]

        low, high = slow.jackknife(statistic, set(names))
        bounds = (0.0, math.inf) if k == 0 else (-1.0, 1.0)
        assert (e.value, e.low, e.high) == pytest.approx((statistic(set(names)), *np.clip((low, high), *bounds)))


ERRORS = ("change", "noise_scale", "stiffness")  # numbers with a standard error by the projection


@pytest.mark.parametrize("place", [0, 7])
def test_what_a_place_does_to_training_is_what_changes_with_its_weight(place: int) -> None:
    block, step = BLOCKS[1], 1e-5
    tables = four_tables(replace(RECIPE, n=13, shared=0.9), exact=False)
    zero = {b: np.where(np.arange(13)[:, None] == 5, 0.0, g) for b, g in tables["left"].full.items()}
    tables["left"] = table_of(zero, clusters=tables["left"].signals.clusters, finite=[i != 2 for i in range(13)])

    def weighted(weight: float) -> dict[str, float]:
        def change(signals: Signals) -> Signals:
            rows = signals.gradients[block].copy()
            rows[:, place] *= math.sqrt(weight)
            return replace(signals, gradients={**signals.gradients, block: rows})

        found = of({role: changed(t, change) for role, t in tables.items()}).summary()
        return {name: float(found[f"training/left/{name}"] or math.nan) for name in ERRORS}

    up, down = weighted(1 + step), weighted(1 - step)
    slopes = {name: (up[name] - down[name]) / (2 * step) for name in ERRORS}
    left, safety = tables["left"].signals, tables["safety"].signals
    codes = np.unique([c for c, k in zip(left.clusters, left.finite, strict=True) if k], return_inverse=True)[1]
    groups = Groups.of_one(codes)
    influences = AgreementInfluences.of(AgreementSums.of(left, groups), groups).at(rows64(left, block))
    found = {name: i.moves[place] for name, i in influences.items()}
    found["change"] = change_influence(left, safety, block).moves[place]
    assert found == pytest.approx(slopes, abs=1e-7)
    assert np.min(np.abs(list(found.values()))) > 1e-5, "a place that does nothing would prove nothing"


def test_projected_means_have_a_standard_error_exact_ones_none_and_unprojected_ones_zero() -> None:
    def errors(tables: dict[str, Table]) -> dict[str, float | None]:
        summary = of(tables).summary()
        assert not [k for k in summary if k.endswith("projection_se") and k.split("/")[-2] not in ERRORS]
        return {name: summary[f"training/right/{name}/projection_se"] for name in ERRORS}

    recipe = replace(RECIPE, shared=0.9)
    projected = errors(four_tables(recipe, exact=False))
    assert all(e is not None and e > 0 for e in projected.values())
    assert errors(four_tables(recipe)) == projected | {"change": None}, "exact products with safety have none"
    assert set(errors(four_tables(replace(recipe, projection="exact"))).values()) == {0.0}


def test_the_noise_scale_of_rows_with_a_known_signal_is_found() -> None:
    n, size, signal = 40, 48, 0.5
    true = 1.0 / signal**2  # noise of squared length 1 around a mean of length `signal`
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = rng.normal(scale=size**-0.5, size=(n, size))
        rows[:, 0] += signal
        names = [f"c{i}" for i in range(n)]
        table = table_of({"a": rows}, clusters=names, projection="exact")
        other = table_of({"a": rows}, name="right", clusters=names, projection="exact")
        e = training(compared(table, other)).agreement["left"].noise_scale
        found.append(1 / e.value)  # its inverse, a ratio whose denominator hardly varies, has next to no bias
    assert np.mean(found) == pytest.approx(1 / true, abs=4 * np.std(found) / math.sqrt(60))


def test_a_set_without_a_common_gradient_has_a_noise_scale_that_is_not_measurable() -> None:
    half = table_of({"a": np.repeat([[1.0, 0.0], [-1.0, 0.0]], 2, axis=0)}, clusters=list("abcd"), projection="exact")
    found = training(compared(half, changed(half, lambda s: s)))
    assert found.summary()["training/left/noise_scale"] is None
    assert found.summary()["training/left/stiffness"] == pytest.approx((2 * 2 * 1 - 8) / 12)


def test_rows_that_are_all_in_one_cluster_have_no_intervals_and_no_noise_scale() -> None:
    tables = four_tables(Recipe(clusters=1, shared=0.8))
    summary = of(tables).summary()
    assert summary["training/left/noise_scale"] is None
    assert summary["training/left/stiffness"] is not None
    assert summary["training/left/stiffness/low"] is None
    assert summary["training/left/change/low"] is None
