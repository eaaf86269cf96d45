"""What answers lose without what two shifts share: fitted and read on different rows, against random subspaces."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from three_tiny import SETS, changed, learnt, run, token_losses
from written import csv_rows

from graddiag import erosion_interventions as making
from graddiag.erosion_removal import (
    GIVEN,
    REMOVAL_FILE,
    SHARED,
    UNCHANGED,
    Effect,
    digest,
    draw_names,
    read_lines,
)
from graddiag.erosion_setting import ErosionRun, read_setting
from graddiag.errors import DataError, UsageError
from graddiag.intervention import Intervention, intervened, read_intervened
from graddiag.models import load_model
from graddiag.removal_folds import folds, split
from graddiag.reporting import report
from graddiag.statistics import Estimate
from graddiag.store import read_signals, save_signals

ASK = {"safety": None, "k": 2, "intervene": [0, 3], "random_subspaces": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"aligned": "tiny", "tuned": changed(folder / "tuned", learnt(SETS["harmful"], SETS["benign"]))}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), **models, **ASK, figures=True)


@pytest.fixture(scope="module")
def halves(done):
    return folds(ErosionRun(done.out, read_setting(done.out)), [0, 3], ["harmful", "benign"])


def log_probability(model, tokenizer, row, remove):
    with torch.no_grad(), intervened(model, Intervention(remove)):
        return -float(token_losses(model, tokenizer, row["messages"]).mean())


def test_each_answer_is_read_without_what_the_other_half_of_the_clusters_shares(models, done, halves):
    model, tokenizer = load_model(models["tuned"], device="cpu")
    means = {}
    for part in ("harmful", "benign"):
        changes = []
        for row in SETS[part]:
            (half,) = [f for f in halves if row["cluster"] not in f.clusters]
            remove = {k: s.directions.T for k, s in half.spaces.items()}
            changes.append(log_probability(model, tokenizer, row, remove) - log_probability(model, tokenizer, row, {}))
        means[part] = np.mean(changes)
        assert done.summary()[f"intervention/{part}"] == pytest.approx(means[part], abs=1e-5)
    assert done.summary()["intervention/interaction"] == pytest.approx(means["harmful"] - means["benign"], abs=1e-5)
    assert abs(means["harmful"]) > 1e-3, "something was removed"


def test_no_row_is_read_by_a_fit_that_has_its_cluster_or_its_text(done, halves):
    first, second = halves
    assert not first.clusters & second.clusters
    run_ = ErosionRun(done.out, read_setting(done.out))
    for name in ("harmful", "benign"):
        table = run_.change_on(name).left
        for cluster, text in zip(table.clusters, table.digests, strict=True):
            assert sum(f.reads(cluster, text) for f in halves) == 1
    for half in halves:
        fitted = [sum(c in half.clusters for c in run_.change_on(side).left.clusters) for side in ("left", "right")]
        assert {s.n_rows for s in half.spaces.values()} == {tuple(fitted)}
    known = next(iter(first.digests))
    assert not first.reads("a cluster of no set", known)


def test_a_row_whose_text_is_fitted_under_another_cluster_is_left_out_and_counted(models, tmp_path):
    again = [{**r, "id": f"again-{r['id']}", "cluster": f"other-{k}"} for k, r in enumerate(SETS["left"])]
    found = run(tmp_path, **models, **{**ASK, "random_subspaces": 1}, harmful=again)
    left_out = found.findings.setting.removal.left_out
    assert 0 < left_out["harmful"] < len(again)
    assert found.summary()["intervention/harmful/n"] == len(again) - left_out["harmful"]
    said = f"{left_out['harmful']} rows of harmful are not read"
    assert any(said in w for w in found.report.warnings)


def test_halves_hold_half_of_the_clusters_of_every_kind():
    sets = [frozenset(f"{kind}{i}" for kind in kinds for i in range(n)) for kinds, n in (("ab", 9), ("b", 9), ("c", 4))]
    for seed in range(5):
        first, second = split(sets, seed)
        assert first | second == frozenset().union(*sets)
        assert not first & second
        for kind in "abc":
            counts = [sum(name.startswith(kind) for name in half) for half in (first, second)]
            assert abs(counts[0] - counts[1]) <= 1
        assert abs(len(first) - len(second)) <= 1
    assert split(sets, 0) == split(sets, 0) != split(sets, 1)


def test_a_reading_counts_only_where_the_same_clusters_are_halved(done, tmp_path):
    """Clusters of all sets are halved together, so that a further set moves rows of the others into the other half."""
    setting, names = read_setting(done.out), ["harmful", "benign"]
    out = shutil.copytree(done.out, tmp_path / "run")
    few = {role: read_signals(out / f"{role}-benign").take(range(3)) for role in ("tuned", "aligned")}
    for role, table in few.items():
        save_signals(out / f"{role}-few", table)
    one, other = ErosionRun(out, setting), ErosionRun(out, replace(setting, controls=("few",)))
    assert {f.clusters for f in folds(one, [0], names)} != {f.clusters for f in folds(other, [0], [*names, "few"])}
    before = [digest(run_, [0], "harmful") for run_ in (one, other)]
    assert before[0] != before[1]
    for role, table in few.items():
        save_signals(out / f"{role}-few", replace(table, clusters=("x",) * 3), overwrite=True)
    assert digest(other, [0], "harmful") not in before


def test_every_random_subspace_has_the_size_of_what_it_is_a_control_for(done, halves):
    job = making._Job(ErosionRun(done.out, read_setting(done.out)), halves, {}, 2048, True)
    for half in halves:
        own = job._change(half, SHARED)
        drawn = [job._change(half, d) for d in draw_names(2)[2:]]
        assert len({x.digest for x in (own, *drawn)}) == 5
        assert all({k: x.shape for k, x in d.remove.items()} == {0: (2, 32), 3: (2, 32)} for d in drawn)
    assert job._change(halves[0], "random-0").digest != job._change(halves[1], "random-0").digest
    assert not job._change(halves[0], UNCHANGED).remove


def test_subspaces_drawn_like_the_states_hold_more_of_them_than_uniform_ones(done, halves):
    job = making._Job(ErosionRun(done.out, read_setting(done.out)), halves, {}, 2048, True)
    rows = halves[0].spaces[3].rows
    shares = {}
    for kind in ("random", "states"):
        bases = [np.linalg.qr(job._change(halves[0], f"{kind}-{k}").remove[3].T)[0] for k in range(50)]
        shares[kind] = np.mean([((rows @ q) ** 2).sum() / (rows**2).sum() for q in bases])
    assert shares["random"] == pytest.approx(2 / 32, abs=0.03)
    assert shares["states"] > 2 * shares["random"]


def test_p_counts_random_subspaces_that_do_as_much_either_way():
    drawn = np.array([0.1, -0.6, 0.5, 0.2])
    e = Effect(Estimate(-0.5), drawn, np.array([0.1]))
    assert (e.p("random"), e.p("states")) == ((1 + 2) / 5, 1 / 2)
    assert np.isnan(Effect(Estimate(np.nan), drawn, drawn).p("random"))
    assert np.isnan(Effect(Estimate(1.0), np.array([0.1, np.nan]), drawn).p("random"))


def test_the_smallest_p_is_said_and_ten_subspaces_claim_nothing(done):
    line = next(x for x in done.report.verdict if x.startswith("Without what"))
    assert "2 of each kind allow no p below 0.33" in line
    assert done.summary()["intervention/least_p"] == pytest.approx(1 / 3)
    assert done.summary()["intervention/harmful/random_p"] >= 1 / 3


def test_the_report_says_that_intervals_take_what_was_removed_as_given(done):
    line = next(x for x in done.report.verdict if x.startswith("Without what"))
    assert "intervals and p take the fit as given" in line
    assert GIVEN in (done.out / "report.html").read_text()


def test_a_reading_that_is_missing_is_made_again_and_only_that(models, done, tmp_path, monkeypatch):
    out, made = shutil.copytree(done.out, tmp_path / "copy"), []
    path = out / REMOVAL_FILE
    whole = path.read_text()
    assert len(read_lines(out)) == len(draw_names(2)) * 2
    path.write_text(whole[:-9])
    with pytest.raises(DataError, match=r"lacks 1 of 6 readings of benign, the first 'states-1'"):
        report(out)

    def counted(of, one, change, **settings):
        made.append(one.name)
        return read_intervened(of, one, change, **settings)

    monkeypatch.setattr(making, "read_intervened", counted)
    assert run(out, **models, **ASK).summary() == done.summary()
    assert made == ["benign"] * 2, "one for each half"
    assert path.read_text() == whole
    run(out, **models, **{**ASK, "random_subspaces": 3})
    assert len(made) == 2 + 2 * 2 * 2, "two sets, two kinds, two halves"


def test_nothing_is_made_and_no_model_loaded_where_all_is_there(models, done, tmp_path, monkeypatch):
    out = shutil.copytree(done.out, tmp_path / "copy")
    monkeypatch.setattr(making._Job, "read", lambda *_: pytest.fail("read again"))
    assert run(out, **models, **ASK).summary() == done.summary()


@pytest.mark.parametrize("other", [{"intervene": [3]}, {"k": 1}, {"seed": 1}])
def test_readings_of_something_else_are_refused_and_replaced_only_if_that_is_said(models, done, tmp_path, other):
    out = shutil.copytree(done.out, tmp_path / "copy")
    with pytest.raises(DataError, match=r"has 12 readings of something else.*--overwrite"):
        run(out, **models, **{**ASK, **other})
    run(out, **models, **{**ASK, **other}, overwrite=True)
    assert len(read_lines(out)) == 12


def test_the_report_comes_again_without_a_model(done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    assert report(out).summary() == done.summary()
    assert (out / "report.html").read_bytes() == (done.out / "report.html").read_bytes()
    assert (out / "figures" / "intervention.svg").is_file()


def test_tables_hold_every_answer_and_every_fit(done):
    rows = csv_rows(done.out, "intervention_rows")
    assert len(rows) == len(SETS["harmful"]) + len(SETS["benign"])
    mean = np.mean([float(r["change"]) for r in rows if r["set"] == "harmful"])
    assert mean == pytest.approx(done.summary()["intervention/harmful"], abs=1e-12)
    fits = csv_rows(done.out, "intervention_fits")
    assert [(f["half"], f["layer"], f["removed"]) for f in fits] == [
        ("1", "0", "2"), ("1", "3", "2"), ("2", "0", "2"), ("2", "3", "2"),
    ]  # fmt: skip


def test_models_that_are_identical_have_nothing_to_remove(tmp_path):
    found = run(tmp_path, aligned="tiny", tuned="tiny", **{**ASK, "k": None}, figures=True)
    assert found.summary()["intervention/interaction"] is None
    assert any(
        "Without what these shifts share, harmful answers change: not measurable" in x for x in found.report.verdict
    )
    assert any("nothing was measured" in w for w in found.report.warnings)
    assert not (tmp_path / REMOVAL_FILE).exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"intervene": [4]}, r"no layer 4. The models have the layers 0 to 3"),
        ({"intervene": [1]}, r"states of layer 1 are not read \(--layers 0, 3\)"),
        ({"right": None}, r"needs the sets left, right, harmful and benign, and there is no right"),
        ({"random_subspaces": 0}, r"--random-subspaces 0: give at least 1"),
    ],
)
def test_what_cannot_be_removed_is_refused_before_a_model_is_loaded(models, tmp_path, monkeypatch, given, message):
    monkeypatch.setattr("graddiag.model_set.ModelSet.visit", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        run(tmp_path, **models, **{**ASK, **given})
