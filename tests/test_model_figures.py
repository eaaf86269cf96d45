"""Figures of several models: what is on them is what was measured, also where nothing is."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_behaviour import losses, opened
from test_direction import interpolated
from test_refusal_direction import prompts
from three_models import answered, read_under, shifts

from graddiag.analyzers import Behaviour, Direction, RefusalDirection, RefusalScore
from graddiag.analyzers import behaviour as measure_behaviour
from graddiag.analyzers import direction as measure_direction
from graddiag.analyzers import refusal_direction as measure_refusal_direction
from graddiag.analyzers import refusal_score as measure_refusal_score
from graddiag.plotting import plot, render

HOSTILE = "<b>\x1b[31m $\\frac{1}$ _x" + "y" * 90
Result = Behaviour | Direction | RefusalDirection | RefusalScore


def results(n: int = 12) -> dict[str, Result]:
    """One of each kind, from n rows."""
    rng = np.random.default_rng(0)
    tuned, aligned = losses(rng, n)
    states = interpolated([0.2, 0.5, 0.9])
    tables = read_under({k: [h[:n] for h in v] for k, v in states.items()})
    control = shifts(read_under({k: [h[:n] for h in v] for k, v in interpolated([0.1] * 3).items()}, name="benign"))
    sets = [rng.normal(size=(n, 8)) + 4 * k for k in range(2)]
    return {
        "behaviour": measure_behaviour(answered(tuned, aligned), answered(aligned, tuned, name="benign")),
        "refusal score": measure_refusal_score(opened(rng, n, "refusing")[0], opened(rng, n, "complying")[0], ending=2),
        "direction": measure_direction(*shifts(tables), control=control),
        "alone": measure_direction(*shifts(tables)),
        "refusal direction": measure_refusal_direction(*(prompts(s, s * 0.9, f"set-{k}") for k, s in enumerate(sets))),
    }


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text)).replace("\n", " ")


@pytest.mark.parametrize("n", [1, 2, 12])
def test_every_figure_is_drawn_inside_its_page_also_where_numbers_are_undefined(n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, result in results(n).items():
            figure = plot(result)
            assert render(figure, "svg") == render(plot(result), "svg"), name
            used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
            assert used.x0 >= -0.02, name
            assert used.y0 >= -0.02, name
            assert used.x1 <= width + 0.02, name
            assert used.y1 <= height + 0.02, name


def test_titles_name_the_models_and_notes_the_sets() -> None:
    found = results()
    assert "tuned minus aligned" in texts(plot(found["behaviour"]))
    assert "What tuned keeps of the way from base to aligned" in texts(plot(found["direction"]))
    assert "control benign" in texts(plot(found["direction"]))
    assert "no control" in texts(plot(found["alone"]))
    assert "Refusal direction of tuned and aligned" in texts(plot(found["refusal direction"]))
    assert "12 prompts" in texts(plot(found["refusal score"]))


def test_names_from_data_are_neither_commands_nor_mathematics() -> None:
    for result in results().values():
        names = {f: HOSTILE for f in ("tuned_name", "aligned_name", "base_name", "name") if hasattr(result, f)}
        figure = plot(replace(result, **names))
        assert "\x1b" not in texts(figure)
        assert b"\x1b" not in render(figure, "svg")


def test_retention_and_its_intervals_are_drawn_at_their_layers() -> None:
    result = results()["direction"]
    assert isinstance(result, Direction)
    axes = plot(result).axes[0]
    drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines]
    assert any(np.array_equal(y, [at.retention.value for at in result.whole.layers]) for y in drawn)
    assert any(np.array_equal(y, [at.in_sample for at in result.whole.layers]) for y in drawn)


def test_a_cosine_is_on_minus_one_to_one() -> None:
    assert plot(results()["refusal direction"]).axes[0].get_ylim() == (-1, 1)
