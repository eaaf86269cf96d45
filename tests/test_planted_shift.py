"""Interventions find a direction that is known to carry what harmful answers need, and call no other one so."""

from __future__ import annotations

import numpy as np
import pytest
from planted_shift import LAYER, PLANTED, planted, rows
from tiny_models import save

import graddiag
from graddiag.erosion import erode
from graddiag.intervention import Intervention, intervened, random_like

N, SITE = 24, f"{LAYER}/first:10"
SETS = {
    "left": rows("left", N, 1, marked=True),
    "right": rows("right", N, 2, marked=True),
    "harmful": rows("harmful", N, 3, marked=True),
    "benign": rows("benign", N, 4, marked=False),
}
NOISE = 0.02
UNIT = np.eye(32)[PLANTED]


def run(folder, **given):
    """The command's own run on a planted pair, from models on disk."""
    pair = planted(**given)
    aligned, tuned = (save(m, folder / name) for m, name in zip(pair, ("aligned", "tuned"), strict=True))
    return erode(
        out=folder / "run", aligned=aligned, tuned=tuned, **SETS, safety=None, controls={}, layers=[LAYER], k=1,
        intervene=[LAYER], weights=False, next_tokens=0, n_null=19, figures=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fed"), noise=NOISE)


@pytest.fixture(scope="module")
def unfed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unfed"), fed=False, noise=NOISE)


def word(found):
    return next(x for x in found.report.verdict if x.startswith("Without what these shifts share")).split(": ")[1]


def losses(loaded, examples, change=None):
    with intervened(loaded[0], change or Intervention()):
        return graddiag.read_states(*loaded, examples, positions=[]).loss


def mean_shift(aligned, tuned):
    """That of other rows than the harmful ones, to be added."""
    seen = [graddiag.read_states(*m, SETS["left"], layers=[LAYER], positions=["first:10"]) for m in (tuned, aligned)]
    return Intervention(add={LAYER: (seen[0].states[SITE] - seen[1].states[SITE]).mean(axis=0)})


def gain(found):
    """By how much the tuned model gives harmful answers more log-probability than the aligned one, nats/token."""
    return found.summary()["behaviour/harmful"]


def test_harmful_answers_lose_what_the_planted_direction_gave_them(fed):
    s = fed.summary()
    assert gain(fed) > 0.3
    assert s["intervention/harmful"] == pytest.approx(-gain(fed), rel=0.1)
    assert s["intervention/interaction/high"] < -0.3
    assert abs(s["intervention/benign"]) < 0.1 * gain(fed)
    for kind in ("random", "states"):
        assert s[f"intervention/harmful/{kind}_p"] == s["intervention/least_p"] < 0.05
        assert abs(s[f"intervention/harmful/{kind}_mean"]) < 0.5 * gain(fed)
    assert word(fed).startswith("less likely")


def test_a_shift_of_the_same_size_that_no_answer_needs_is_not_called_needed(fed, unfed):
    fits = [[f.overlap for f in found.findings.setting.removal.fits] for found in (fed, unfed)]
    assert fits[0] == pytest.approx(fits[1], abs=1e-5), "below the head both pairs are the same"
    assert abs(unfed.summary()["intervention/harmful"]) < 0.05 * gain(fed)
    assert word(unfed).startswith(("no difference found", "as with random subspaces"))


def test_without_the_planted_direction_the_tuned_model_is_the_aligned_one():
    aligned, tuned = planted()
    for name in ("harmful", "benign"):
        without = losses(tuned, SETS[name], Intervention(remove={LAYER: UNIT[None]}))
        assert np.allclose(without, losses(aligned, SETS[name]), atol=1e-10)
    assert (losses(aligned, SETS["harmful"]) - losses(tuned, SETS["harmful"])).min() > 0.1, "something was planted"


def test_the_mean_shift_added_to_the_aligned_model_gives_other_rows_what_tuning_gave_them():
    aligned, tuned = planted(noise=NOISE)
    shift = mean_shift(aligned, tuned)
    before = losses(aligned, SETS["harmful"])
    tuning = float((before - losses(tuned, SETS["harmful"])).mean())
    added = float((before - losses(aligned, SETS["harmful"], shift)).mean())
    assert added == pytest.approx(tuning, rel=0.25)
    drawn = [before - losses(aligned, SETS["harmful"], random_like(shift, seed=k)) for k in range(19)]
    assert max(abs(float(d.mean())) for d in drawn) < 0.75 * added


def test_the_mean_of_a_shift_that_no_answer_needs_restores_nothing():
    aligned, tuned = planted(fed=False, noise=NOISE)
    shift = mean_shift(aligned, tuned)
    assert abs(float((losses(aligned, SETS["harmful"]) - losses(aligned, SETS["harmful"], shift)).mean())) < 0.05
