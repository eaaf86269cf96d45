"""Figures of what changed between two models: everything drawn, also where nothing is defined."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from state_changes import SITE, change_of, moved, orthonormal

from graddiag.analyzers import shift, subspace_overlap
from graddiag.erosion_shifts import Shifts
from graddiag.plotting import plot, render
from graddiag.shift_figure import MOST_COMPONENTS
from graddiag.weight_changes import compare_weights

WIDTH = 20


def _draws(result: object) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return render(plot(result), "svg")  # type: ignore[arg-type]


def test_every_component_is_drawn_against_its_edge() -> None:
    rng = np.random.default_rng(0)
    result = shift(moved(rng, orthonormal(rng, WIDTH, 2)), SITE)
    axes = plot(result).axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), result.shares)
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), result.edges)


def test_the_overlap_is_drawn_over_layers_on_the_whole_range() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (moved(rng, orthonormal(rng, WIDTH, 2), name) for name in ("A", "B", "benign"))
    result = subspace_overlap(a, b, {"benign": c}, k=2, n_null=9)
    figure = plot(result)
    left, middle, right = figure.axes
    assert left.get_ylim() == right.get_ylim() == (-0.03, 1.03)
    assert middle.get_ylim() == (-1.05, 1.05)
    drawn = [float(np.asarray(line.get_ydata())[0]) for line in left.lines]
    scope = result.overall
    expected = [scope.overlap.value, scope.controls["benign"].overlap.value]
    np.testing.assert_allclose(drawn, [*expected, scope.matching.mean, scope.states.mean, scope.random.mean])


@pytest.mark.parametrize("same", [True, False])
def test_figures_are_drawn_where_nothing_changed(same: bool) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(20, WIDTH))
    a, b = (change_of(rows + (0.0 if same else rng.normal(size=rows.shape)), rows, name) for name in "AB")
    assert _draws(shift(a, SITE)).startswith(b"<?xml")
    assert _draws(subspace_overlap(a, b, n_null=3)).startswith(b"<?xml")
    weights = {f"layers.{k}.up.weight": torch.from_numpy(rows) for k in range(3)}
    tuned = {k: v + (0.0 if same else 1.0) for k, v in weights.items()}
    assert _draws(compare_weights(tuned, weights)).startswith(b"<?xml")
    assert _draws(compare_weights(tuned, weights, base=weights, safety=weights)).startswith(b"<?xml")


def test_every_set_has_a_panel_in_which_no_component_is_cut_off() -> None:
    rng = np.random.default_rng(3)
    strong = [moved(rng, orthonormal(rng, WIDTH, k), name) for k, name in ((4, "A"), (1, "B"), (2, "C"), (3, "D"))]
    rows = rng.normal(size=(20, WIDTH))
    found = {c.left.provenance.data: {3: shift(c, SITE)} for c in (*strong, change_of(rows, rows, "same"))}
    panels = [axes for axes in plot(Shifts(found)).axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(found)
    for axes, by_layer in zip(panels, found.values(), strict=True):
        one = by_layer[3]
        if one.size == 0:
            assert axes.texts[0].get_text() == "nothing changed"
            continue
        np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), one.shares[:MOST_COMPONENTS])
        np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), one.edges[:MOST_COMPONENTS])
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > one.shares[0]
        assert f"k = {one.k}" in axes.texts[0].get_text()


def test_cosines_that_were_not_asked_for_have_no_panel() -> None:
    weights = {f"layers.{k}.up.weight": torch.eye(4) for k in range(2)}
    tuned = {k: v + 1 for k, v in weights.items()}
    for more, n in (({}, 2), ({"base": tuned}, 3), ({"base": tuned, "safety": tuned}, 4)):
        assert len(plot(compare_weights(tuned, weights, **more)).axes) == n
