"""Clusters of a run of three models: the option says of every set what its rows could say themselves."""

from __future__ import annotations

import json

import pytest
from three_tiny import SETS, changed, noise, run

from graddiag import erosion as path
from graddiag import erosion_generation
from graddiag.cli import main
from graddiag.erosion_setting import ErosionRun, read_setting
from graddiag.errors import DataError, UsageError
from graddiag.reporting import report

GIVEN = {"left": None, "right": None, "weights": False, "generate": 4, "new_tokens": 2, "layers": [3]}
PARTS = ("harmful", "benign", "safety")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {"aligned": "tiny", "tuned": changed(tmp_path_factory.mktemp("models") / "tuned", noise(0.1, 2))}


@pytest.fixture(scope="module")
def free(models, tmp_path_factory):
    """A run whose rows are each a cluster of their own."""
    rows = {part: [{**r, "cluster": str(k)} for k, r in enumerate(SETS[part])] for part in PARTS}
    return run(tmp_path_factory.mktemp("free"), **models, **GIVEN, **rows)


@pytest.fixture(scope="module")
def named(models, tmp_path_factory):
    """A run whose rows name three clusters."""
    rows = {part: [{**r, "cluster": str(k % 3)} for k, r in enumerate(SETS[part])] for part in PARTS}
    return run(tmp_path_factory.mktemp("named"), **models, **GIVEN, **rows)


@pytest.mark.parametrize("cluster", ["mod:3", "topic"])
def test_every_number_is_that_of_rows_that_name_these_clusters(models, free, named, tmp_path, cluster):
    rows = {part: [{**r, "topic": k % 3} for k, r in enumerate(SETS[part])] for part in PARTS}
    found = run(tmp_path, **models, **GIVEN, **rows, cluster=cluster)
    assert found.summary() == named.summary()
    other = free.summary()
    intervals = ("behaviour/interaction", "behaviour/refusal", "generated/refusing:safety:tuned")
    assert [k for k in intervals if found.summary()[f"{k}/high"] == other[f"{k}/high"]] == []
    held = ErosionRun(tmp_path, read_setting(tmp_path))
    assert {len(set(held.table("tuned", name).clusters)) for name in held.setting.sets} == {3}


@pytest.mark.parametrize(
    ("cluster", "error", "message"),
    [
        ("topic", DataError, "has nothing in the cluster column 'topic'.*Name a column that is there"),
        ("mod:0", UsageError, "a whole number above 0, as in mod:30"),
    ],
)
def test_clusters_that_are_not_there_are_refused_before_a_model_is_touched(
    tmp_path, monkeypatch, cluster, error, message
):
    monkeypatch.setattr(path, "model_set", lambda **_: pytest.fail("models were looked at"))
    with pytest.raises(error, match=message):
        run(tmp_path, aligned="tiny", tuned="tiny", cluster=cluster)


def test_other_clusters_are_refused_or_replace_the_old_ones_and_no_answer_is_made_again(
    models, free, named, monkeypatch
):
    monkeypatch.setattr(
        erosion_generation, "generate_answers", lambda *_, **__: pytest.fail("an answer was made again")
    )
    with pytest.raises(DataError, match=r"(?s)signals of something else.*rows"):
        run(free.out, **models, **GIVEN, **{p: SETS[p] for p in PARTS}, cluster="mod:3")
    assert report(free.out, figures=False).summary() == free.summary()
    found = run(free.out, **models, **GIVEN, **{p: SETS[p] for p in PARTS}, cluster="mod:3", overwrite=True)
    assert found.summary() == named.summary()
    lines = (free.out / "generated.jsonl").read_text().splitlines()
    assert {json.loads(line)["cluster"] for line in lines} == {"0", "1", "2"}


def test_the_command_takes_the_option():
    given = main.commands["erosion"].make_context("erosion", ["--cluster", "mod:30"]).params
    assert given["cluster"] == "mod:30"
