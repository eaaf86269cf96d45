"""Figures: the right limits, the right numbers of marks, drawn for every result that can be undefined."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from findings import alone, findings_of, zeroed
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from tables import RECIPE

from graddiag.canvas import label
from graddiag.exhibits import Exhibit, exhibits
from graddiag.findings import Findings
from graddiag.layers import panels, place
from graddiag.plotting import plot, render
from graddiag.signals import Signals
from graddiag.statistics import Estimate

HOSTILE = "<script>alert(1)</script>\x1b[31m $\\frac{1}$ _x" + "y" * 90
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")


def _exhibits(found: Findings) -> tuple[Exhibit, ...]:
    return exhibits(
        loss_gap=found.loss_gap,
        tokens=found.tokens,
        matrix=found.matrix,
        conflict=found.conflict,
        framing=found.framing,
        alignment=found.alignment,
        audit=found.audit,
    )


def _drawn(axes: Axes) -> list[float]:
    """Abscissae of all dots of an axes."""
    parts = [c for c in axes.collections if isinstance(c, PathCollection)]
    return sorted(float(x) for c in parts for x in np.asarray(c.get_offsets())[:, 0])


def _mesh(axes: Axes) -> tuple[QuadMesh, np.ma.MaskedArray]:
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    return mesh, np.ma.asarray(mesh.get_array())


def _x(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xdata(), dtype=np.float64)


def _texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text))


def test_the_matrix_has_the_colours_of_minus_one_to_one_and_its_rows_in_order() -> None:
    result = findings_of().matrix
    axes = plot(result).axes[0]
    mesh, shown = _mesh(axes)
    assert mesh.get_clim() == (-1, 1)
    np.testing.assert_array_equal(shown.filled(np.nan), result.values)
    low, high = (mesh.get_cmap()(x) for x in (0.0, 1.0))
    assert low[0] > low[2]  # red below 0
    assert high[2] > high[0]  # blue above
    assert [t.get_text() for t in axes.get_xticklabels()] == ["left\n12 rows", "right\n12 rows", "safety\n9 rows"]


def test_an_undefined_cosine_is_no_colour_of_the_scale() -> None:
    result = findings_of().matrix
    values = result.values.copy()
    values[0, :] = np.nan
    _, shown = _mesh(plot(replace(result, values=values)).axes[0])
    assert np.ma.getmaskarray(shown)[0].all()


@pytest.mark.parametrize("what", ["conflict", "framing"])
def test_cosines_by_layer_are_on_minus_one_to_one_with_their_intervals(what: str) -> None:
    found = findings_of()
    figure = plot(getattr(found, what))
    shown = [a for a in figure.axes if a.get_visible()]
    assert [a.get_title() for a in shown] == ["mlp.down_proj", "self_attn.o_proj"]
    assert all(a.get_ylim() == (-1, 1) for a in shown)
    assert _drawn(shown[0]) == [0, 1]
    bars = next(c for c in shown[0].collections if isinstance(c, LineCollection))
    scope = found.conflict.blocks["layers.1.mlp.down_proj.weight"].paired
    if what == "framing":
        scope = found.framing.blocks["layers.1.mlp.down_proj.weight"].safety_cosine
    np.testing.assert_allclose(np.asarray(bars.get_segments()[1]), [[1, scope.low], [1, scope.high]])


def test_centring_is_on_the_figure_with_the_value_that_it_forces() -> None:
    centered = findings_of(center=True).conflict
    assert f"forces a mean cross inner product of {centered.forced:.3g}" in _texts(plot(centered)).replace("\n", " ")
    assert "forces" not in _texts(plot(findings_of().conflict))


def test_every_pair_is_drawn_by_cluster_or_by_rank() -> None:
    for clusters in (4, 0):
        result = findings_of(replace(RECIPE, clusters=clusters)).loss_gap
        axes = plot(result).axes[0]
        np.testing.assert_allclose(_drawn(axes), np.sort(result.gap))
        if clusters:
            names = [t.get_text() for t in axes.get_yticklabels()]
            medians = [np.median(result.gap[result.clusters == result.cluster_names.index(n)]) for n in names]
            assert all(a <= b for a, b in pairwise(medians))


def test_positions_count_from_one_and_show_how_many_pairs_reach_them() -> None:
    result = findings_of().loss_gap
    above, below = plot(result).axes[1:]
    line = max(above.lines, key=lambda x: len(_x(x)))
    np.testing.assert_array_equal(_x(line), np.arange(1, len(result.position_gap) + 1))
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=np.float64), result.position_gap)
    assert below.get_ylim()[0] == 0
    assert below.get_ylim()[1] >= result.position_n.max()


def test_alignment_has_the_whole_range_and_the_means_beside_it() -> None:
    result = findings_of().alignment
    assert result is not None
    whole, enlarged = plot(result).axes
    assert whole.get_xlim() == (-1, 1)
    assert len(_drawn(whole)) == sum(len(v) for v in result.rows.values())
    means = [float(_x(x)[0]) for x in enlarged.lines if x.get_marker() == "D"]
    expected = [result.overall.left.value, result.overall.right.value, result.overall.controls["benign"].value]
    np.testing.assert_allclose(means, expected)
    assert any(np.all(_x(x) == 0) for x in enlarged.lines)


def test_a_framing_figure_without_safety_says_so() -> None:
    assert "no safety set" in _texts(plot(findings_of(safety=False).framing))


def _not_finite(signals: Signals) -> Signals:
    return replace(signals, finite=np.arange(len(signals)) == 0)


@pytest.mark.parametrize("change", [_not_finite, zeroed, alone])
def test_figures_are_drawn_where_numbers_are_undefined(change: Callable[[Signals], Signals]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exhibit in _exhibits(findings_of(exact=False, change=change)):
            assert render(plot(exhibit.result), "svg").startswith(b"<?xml")


def _renamed(signals: Signals) -> Signals:
    names = tuple(f"{HOSTILE}{c}" for c in signals.clusters)
    return replace(signals, clusters=names, provenance=replace(signals.provenance, data=HOSTILE))


def test_names_from_data_are_neither_commands_nor_mathematics() -> None:
    for exhibit in _exhibits(findings_of(change=_renamed)):
        figure = plot(exhibit.result)
        assert "\x1b" not in _texts(figure)
        assert b"\x1b" not in render(figure, "svg")
    assert label("$a$") == r"\$a\$"
    assert label("x\x1b", 40) == r"x\x1b"


@pytest.mark.parametrize("change", [lambda signals: signals, _renamed])
def test_no_text_of_a_figure_lies_outside_it(change: Callable[[Signals], Signals]) -> None:
    kinds = tuple(f"model.layers.{layer}.{kind}.weight" for layer in range(30) for kind in KINDS)
    recipe = replace(RECIPE, n=24, clusters=12, blocks=(*kinds, "lm_head.weight", "model.embed_tokens.weight"))
    for exhibit in _exhibits(findings_of(recipe, change=change)):
        figure = plot(exhibit.result)
        render(figure, "png")  # lays the figure out
        used = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert used.x0 >= -0.02, exhibit.name
        assert used.y0 >= -0.02, exhibit.name
        assert used.x1 <= width + 0.02, exhibit.name
        assert used.y1 <= height + 0.02, exhibit.name


def test_many_kinds_of_block_are_cut_and_the_figure_says_so() -> None:
    result = findings_of().conflict
    scope = result.overall
    many = {f"model.layers.0.experts.{k}.up.weight": scope for k in range(40)}
    figure = plot(replace(result, blocks=many))
    assert len(figure.axes) == 16
    assert "24 kinds more in the table" in _texts(figure).replace("\n", " ")


def test_equal_results_give_equal_files_and_no_global_state_changes() -> None:
    found = findings_of()
    settings, state = dict(mpl.rcParams), str(np.random.get_state())
    for exhibit in _exhibits(found):
        for form in ("svg", "png"):
            assert render(plot(exhibit.result), form) == render(plot(exhibit.result), form)
    assert dict(mpl.rcParams) == settings
    assert str(np.random.get_state()) == state


def test_an_svg_carries_no_date_and_its_letters_as_paths() -> None:
    svg = render(plot(findings_of().matrix), "svg").decode()
    assert "<dc:date>" not in svg
    assert "<text" not in svg


def test_something_that_is_no_result_is_refused() -> None:
    with pytest.raises(TypeError, match="float has no figure; CosineMatrix, Conflict"):
        plot(1.0)  # type: ignore[arg-type]


def test_no_figure_is_open_in_pyplot() -> None:
    code = (
        "from findings import findings_of; from graddiag.plotting import plot; import matplotlib.pyplot as p; "
        "plot(findings_of().matrix); assert p.get_fignums() == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__file__.rpartition("/")[0])


@pytest.mark.parametrize(
    ("block", "layer", "kind"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12, "self_attn.q_proj"),
        ("transformer.h.0.attn.c_attn.weight", 0, "attn.c_attn"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", 3, "mlp.experts.17.up_proj"),
        ("lm_head.weight", None, "lm_head"),
        ("blocks.7", 7, ""),
    ],
)
def test_layer_and_kind_are_read_from_the_name(block: str, layer: int | None, kind: str) -> None:
    assert (place(block).layer, place(block).kind) == (layer, kind)


def test_panels_hold_every_block_once_in_order_of_layers() -> None:
    blocks = ("m.layers.10.a.weight", "m.layers.2.a.weight", "m.layers.2.b.weight", "head.weight")
    found = panels(blocks)
    assert [p.name for p in found] == ["a", "b", "not in a layer"]
    assert found[0].layers == (2, 10)
    assert sorted(b for p in found for b in p.blocks) == sorted(blocks)


def test_two_stacks_of_layers_are_not_mixed() -> None:
    found = panels(("encoder.0.a.weight", "decoder.0.a.weight"))
    assert [p.name for p in found] == ["encoder: a", "decoder: a"]


def test_an_interval_that_is_undefined_draws_no_band() -> None:
    result = findings_of().conflict
    bare = replace(result.overall, paired=Estimate(0.5))
    figure = plot(replace(result, overall=bare, blocks={"m.0.a": bare}))
    assert "+0.500 [no interval]" in _texts(figure).replace("\n", " ")
    assert math.isnan(bare.paired.low)
