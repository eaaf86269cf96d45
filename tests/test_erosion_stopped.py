"""A run of three models that was stopped, or asked for otherwise: what is reported is of one run, or nothing is."""

from __future__ import annotations

import json
import shutil

import pytest
from three_tiny import SETS, changed, noise, run

from graddiag import erosion as path
from graddiag import erosion_reading
from graddiag.errors import DataError
from graddiag.reporting import report

FEW = {"left": None, "right": None, "harmful": None, "safety": SETS["safety"][:3], "benign": SETS["benign"][:4]}
HOW = {**FEW, "layers": [3], "generate": 1, "new_tokens": 2}
INTERVENED = {**HOW, "left": SETS["left"], "right": SETS["right"], "harmful": SETS["harmful"], "k": 2}
LAST = ("weights_kept", "keep_tokens", "save_setting")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [changed(folder / str(seed), noise(0.1, seed)) for seed in (2, 3)]


@pytest.fixture(scope="module")
def done(tuned, tmp_path_factory):
    """What a run of the first tuned model and one of the second leave behind."""
    return [run(tmp_path_factory.mktemp("run"), aligned="tiny", tuned=one, **HOW) for one in tuned]


class Stop(Exception):
    """What ends a run in the middle."""


def stop_at(monkeypatch, place):
    """The run ends where a table of this name is to be saved, or where this function is to be called."""
    if place in LAST:
        monkeypatch.setattr(path, place, lambda *_, **__: (_ for _ in ()).throw(Stop))
        return
    store = erosion_reading.store_states

    def until(of, one, folder, **how):
        if folder.name == place:
            raise Stop
        return store(of, one, folder, **how)

    monkeypatch.setattr(erosion_reading, "store_states", until)


@pytest.mark.parametrize("place", ["aligned-benign", "tuned-safety", "tuned-benign-refusing", *LAST])
def test_a_stopped_run_of_another_model_is_no_run_until_it_is_whole(done, tuned, tmp_path, monkeypatch, place):
    out = shutil.copytree(done[0].out, tmp_path / "run")
    if place not in LAST:  # the file of the weights knows its models, so that it would give the mixture away
        run(out, aligned="tiny", tuned=tuned[0], weights=False, **HOW)
    stop_at(monkeypatch, place)
    with pytest.raises(Stop):
        run(out, aligned="tiny", tuned=tuned[1], overwrite=True, **HOW)
    with pytest.raises(DataError, match=r"not a finished run .*Give the command again"):
        report(out, figures=False)
    assert not (out / "report.json").exists()
    monkeypatch.undo()
    assert run(out, aligned="tiny", tuned=tuned[1], overwrite=True, **HOW).summary() == done[1].summary()


@pytest.mark.parametrize("place", ["tuned-safety", "keep_tokens"])
def test_a_stopped_first_run_goes_on_to_what_it_would_have_been(done, tuned, tmp_path, monkeypatch, place):
    stop_at(monkeypatch, place)
    with pytest.raises(Stop):
        run(tmp_path, aligned="tiny", tuned=tuned[0], **HOW)
    with pytest.raises(DataError, match="not a finished run"):
        report(tmp_path, figures=False)
    monkeypatch.undo()
    assert run(tmp_path, aligned="tiny", tuned=tuned[0], **HOW).summary() == done[0].summary()


@pytest.mark.parametrize("other", [{"base": "tiny"}, {"next_tokens": 0, "generate": 2}])
@pytest.mark.parametrize("place", ["aligned-benign", "keep_tokens", "save_setting"])
def test_other_options_leave_the_report_of_the_old_ones_or_none(done, tuned, tmp_path, monkeypatch, place, other):
    """Also where only some of what the new ones need is there, such as weights compared with the base's."""
    out = shutil.copytree(done[0].out, tmp_path / "run")
    stop_at(monkeypatch, place)
    with pytest.raises(Stop):
        run(out, aligned="tiny", tuned=tuned[0], **{**HOW, **other})
    if (out / "erosion.json").exists():
        assert report(out, figures=False).summary() == done[0].summary()
    else:
        with pytest.raises(DataError, match="not a finished run"):
            report(out, figures=False)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"layers": [0, 3]}, "signals of something else"), ({"temperature": 1.0}, "answers made otherwise")],
)
def test_a_run_that_is_refused_leaves_the_report_as_it_was(done, tuned, tmp_path, other, message):
    out = shutil.copytree(done[0].out, tmp_path / "run")
    with pytest.raises(DataError, match=message):
        run(out, aligned="tiny", tuned=tuned[0], **{**HOW, **other})
    assert json.loads((out / "report.json").read_text())["summary"] == done[0].summary()
    assert report(out, figures=False).summary() == done[0].summary()


def test_readings_that_are_refused_leave_the_report_as_it_was(tuned, tmp_path):
    how = {"aligned": "tiny", "tuned": tuned[0], **INTERVENED, "intervene": [3], "random_subspaces": 1}
    first = run(tmp_path, **how)
    with pytest.raises(DataError, match="readings of something else"):
        run(tmp_path, **how, seed=5)
    assert report(tmp_path, figures=False).summary() == first.summary()
