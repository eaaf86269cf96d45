"""The report of a monitored run: numbers of the probes, figures that mark alarms, a page that runs nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from test_alarms import probe, toy_probes
from test_cli import graddiag
from written import csv_rows, parsed

from graddiag.alarms import RULES, Limits, Watch
from graddiag.errors import DataError
from graddiag.probe_values import cosine_with_safety
from graddiag.probes import Against, Probe
from graddiag.reporting import report
from graddiag.training_exhibits import FIGURES
from graddiag.training_figures import Losses, plot_training, worst
from graddiag.training_log import append_log, begin_log, read_log
from graddiag.training_report import TrainingResult
from graddiag.training_view import OUTSIDE, TrainingView, training_view

HOSTILE = "<script>alert(1)</script>\x1b[31m $x_"


def written(folder: Path, seen: Sequence[Probe], **facts: str) -> Path:
    """The folder of a run with these probes, watched with the default limits."""
    begin_log(folder, facts, Limits())
    watch = Watch()
    for p in seen:
        known = len(watch.notices)
        append_log(folder, p, watch.see(p), watch.notices[known:])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen = [replace(p, seconds=1.0) for p in toy_probes(3, "erosion")]
    return written(tmp_path_factory.mktemp("training"), seen, **{"safety set": "refusals"})


@pytest.fixture(scope="module")
def found(run: Path) -> TrainingResult:
    result = report(run)
    assert isinstance(result, TrainingResult)
    return result


def view_of(folder: Path, seen: Sequence[Probe]) -> TrainingView:
    return training_view(read_log(written(folder, seen)))


def test_report_json_has_flat_keys_of_the_probes(run: Path, found: TrainingResult) -> None:
    text = (run / "report.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda c: pytest.fail(f"not strict: {c}"))
    assert content["schema"] == 1
    summary, probes = content["summary"], found.view.run.probes
    assert summary == found.summary()
    assert summary["monitor/probes"] == 40
    assert summary["monitor/first_alarm"] == min(a["step"] for a in content["alarms"])
    change = probes[-1].safety_losses - probes[0].safety_losses
    assert summary["monitor/safety_loss/change"] == pytest.approx(change.mean())
    assert summary["monitor/opposed_share"] == np.mean(np.concatenate([p.dots for p in probes]) < 0)
    assert sum(summary[f"monitor/alarms/{r.name}"] for r in RULES) == summary["monitor/alarms"] > 0
    assert set(content["blocks"]) == set(probes[0].safety_norms)
    assert content["provenance"]["run"] == {"safety set": "refusals"}


def test_tables_and_figures_have_a_file_each_with_its_numbers(run: Path, found: TrainingResult) -> None:
    for name in FIGURES:
        for form in ("svg", "png", "json"):
            assert (run / "figures" / f"{name}.{form}").stat().st_size > 0
        numbers = json.loads((run / "figures" / f"{name}.json").read_text(encoding="utf-8"))
        assert len(numbers["rows"]) == len(csv_rows(run, name))
    rows = csv_rows(run, "alignment")
    np.testing.assert_array_equal([float(r["cosine"]) for r in rows], found.view.course.cosine)
    assert {int(r["step"]) for r in rows if r["alarms"]} == {a.step for a in found.view.run.alarms}


def test_the_prediction_stands_for_the_steps_up_to_the_next_probe(tmp_path: Path) -> None:
    seen = [probe(s, predicted_change=c) for s, c in ((0, 0.1), (4, 0.2), (10, math.nan), (12, 0.4))]
    np.testing.assert_allclose(view_of(tmp_path, seen).course.predicted, [0, 0.4, 1.6, 1.6])


def test_predicted_and_measured_changes_agree_for_small_steps(found: TrainingResult) -> None:
    course = found.view.course
    assert course.predicted[-1] == pytest.approx(course.change[-1], rel=0.1)  # first order, momentum's steps sampled


def test_a_layer_is_all_its_blocks_as_one_vector(tmp_path: Path) -> None:
    dots, norms = (
        {"m.10.q": 1.0, "m.2.q": -1.0, "m.2.k": 3.0, "head": 0.5},
        dict.fromkeys(("m.10.q", "m.2.q", "m.2.k", "head"), 2.0),
    )
    one = probe(0, gradient=Against(dots, norms), safety_norms=norms)
    layers = view_of(tmp_path, [one]).layers
    assert layers.layers == ("2", "10", OUTSIDE)
    np.testing.assert_allclose(layers.cosine[:, 0], [2 / 8, 1 / 4, 0.5 / 4])


def test_suspects_add_up_over_probes(tmp_path: Path) -> None:
    seen = [
        probe(0, [-1.0, 2.0, 1.0], ids=("a", "b", "c")),
        probe(10, [-3.0, -1.0, np.nan], ids=("a", "b", "c")),
    ]
    first, second = view_of(tmp_path, seen).suspects
    assert (first.id, first.seen, first.opposed, first.total, first.lowest, first.step) == ("a", 2, 2, -4.0, -3.0, 10)
    assert (second.id, second.seen, second.opposed, second.total) == ("b", 2, 1, 1.0)


def _marks(figure: Figure) -> list[set[float]]:
    """Abscissae of the vertical lines of each axes with data."""
    lines = [[x for x in a.lines if len(set(np.asarray(x.get_xdata()).tolist())) == 1] for a in figure.axes]
    return [{float(np.asarray(x.get_xdata())[0]) for x in found} for found in lines]


def test_every_alarm_is_marked_in_every_course(found: TrainingResult) -> None:
    view = found.view
    steps = {float(a.step) for a in view.run.alarms}
    for result in (view.course, Losses(view.course)):
        assert all(marks == steps for marks in _marks(plot_training(result)))
    heat = plot_training(view.layers).axes[0]
    lines = next(c for c in heat.collections if isinstance(c, LineCollection))
    at = {float(np.asarray(s)[0, 0]) for s in lines.get_segments()}
    assert at == {float(np.flatnonzero(view.layers.steps == s)[0]) + 0.5 for s in steps}


def test_layers_have_the_colours_of_minus_one_to_one(found: TrainingResult) -> None:
    axes = plot_training(found.view.layers).axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    assert mesh.get_clim() == (-1, 1)
    np.testing.assert_array_equal(np.ma.asarray(mesh.get_array()).filled(np.nan), found.view.layers.cosine[::-1])


def test_cosines_are_drawn_on_the_whole_range_too(found: TrainingResult) -> None:
    whole = plot_training(found.view.course).axes[0]
    assert whole.get_ylim() == (-1, 1)
    drawn = [np.asarray(x.get_ydata()) for x in whole.lines]
    expected = [cosine_with_safety(p.gradient, p.safety_norms) for p in found.view.run.probes]
    assert any(len(y) == len(expected) and np.allclose(y, expected) for y in drawn)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "seen",
    [
        [probe(0)],
        [probe(0, [], update=None, predicted_change=None), probe(5, [], update=None, predicted_change=None)],
        [probe(0, [np.nan, np.nan], safety_losses=np.full(2, np.nan), predicted_change=math.nan)],
        [probe(0, gradient=Against({}, {}), safety_norms={}, update=None)],
    ],
)
def test_a_run_whose_numbers_are_undefined_has_a_report(tmp_path: Path, seen: list[Probe]) -> None:
    report(written(tmp_path, seen))
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "monitor/update_cosine" in content["summary"]
    assert (tmp_path / "report.html").is_file()


def test_the_page_runs_nothing_and_says_what_the_alarms_mean(run: Path, found: TrainingResult) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    elements = parsed(html)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(elements.names)
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in elements.addresses)
    assert elements.names.count("img") == len(FIGURES)
    for line in (*found.report.verdict, *found.report.warnings, *(r.not_shown for r in RULES)):
        assert line.replace("&", "&amp;").replace("'", "&#39;") in html
    assert any("every 10 steps cost more" in w for w in found.report.warnings)


def test_text_from_data_is_never_markup_or_a_command(tmp_path: Path) -> None:
    seen = [replace(p, ids=tuple(f"{HOSTILE}{i}" for i in p.ids)) for p in toy_probes(3, "erosion", n=8)]
    result = report(written(tmp_path, seen, safety=HOSTILE))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    for text in (html, *result.report.verdict, (tmp_path / "report.json").read_text(encoding="utf-8")):
        assert "\x1b" not in text


def test_no_text_of_a_figure_lies_outside_it(found: TrainingResult) -> None:
    view = found.view
    for result in (view.course, Losses(view.course), view.layers, worst(view.suspects)):
        figure = plot_training(result)
        figure.savefig(Path("/dev/null"), format="png")
        used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert used.x0 >= -0.02
        assert used.y0 >= -0.02
        assert used.x1 <= width + 0.02
        assert used.y1 <= height + 0.02


def test_without_figures_there_is_no_page(tmp_path: Path) -> None:
    folder = written(tmp_path, list(toy_probes(0, "mix", n=4))[:4])
    report(folder)
    result = report(folder, figures=False)
    assert result.report.html is None
    assert not (folder / "report.html").exists()
    assert not list((folder / "figures").iterdir())


def test_a_run_without_a_probe_is_refused(tmp_path: Path) -> None:
    begin_log(tmp_path, {}, Limits())
    with pytest.raises(DataError, match="has no probe yet"):
        report(tmp_path)


def test_the_command_reports_a_training_run_and_can_fail_on_its_keys(run: Path, tmp_path: Path) -> None:
    done = graddiag("report", run, "--json", "--fail-on", "monitor/alarms>0", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["summary"]["monitor/probes"] == 40
    assert "monitor/alarms" in done.stderr


def test_reporting_a_training_run_imports_no_torch(run: Path) -> None:
    code = (
        "import sys; from graddiag.reporting import report; "
        f"report({str(run)!r}); assert not {{'torch', 'transformers', 'datasets', 'click'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
