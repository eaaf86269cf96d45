"""Base, aligned and tuned model: the whole path on tiny models whose history is known."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_runs import rows_of
from three_models import interpolated, read_under, shifts
from three_tiny import LAYERS, SETS, answer_loss, changed, learnt, noise, run, token_losses
from written import csv_rows, parsed

from graddiag import erosion as path
from graddiag.analyzers import direction
from graddiag.closing import closing_tokens
from graddiag.comparison import Comparison
from graddiag.erosion_command import erosion as erosion_command
from graddiag.erosion_setting import read_setting
from graddiag.erosion_verdict import answers
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.openings import COMPLYING, REFUSING
from graddiag.reading import Reader
from graddiag.store import verify_all

KEYS = """
    behaviour/interaction behaviour/interaction/low behaviour/interaction/high behaviour/interaction/p
    direction/depth_trend direction/depth_trend/low direction/depth_trend/high
    subspace/overlap:left:right subspace/overlap:left:right/p
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "base": changed(folder / "base", noise(0.3, 1)),
        "aligned": "tiny",
        "tuned": changed(folder / "tuned", noise(0.1, 2)),
        "harmed": changed(folder / "harmed", learnt(SETS["harmful"], SETS["benign"])),
        "mended": changed(folder / "mended", learnt(SETS["benign"], SETS["harmful"])),
    }


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """A run with its report and figures."""
    of = {role: models[role] for role in ("base", "aligned", "tuned")}
    return run(tmp_path_factory.mktemp("run"), figures=True, **of)


def words(found):
    return {a.question: a.word for a in answers(found.findings)}


def test_every_key_of_the_interface_is_there(done):
    keys = [*KEYS.split(), *(f"direction/retention/{k}" for k in LAYERS)]
    assert [k for k in keys if k not in done.summary()] == []
    document = json.loads((done.out / "report.json").read_text())
    assert document["schema"] == 1
    assert document["summary"] == done.summary()
    assert set(document) >= {"provenance", "summary", "blocks", "warnings"}
    assert set(document["kinds"]) == set(document["summary"])


def test_interaction_is_the_difference_of_mean_log_probabilities(models, done):
    loaded = {role: load_model(models[role], device="cpu") for role in ("aligned", "tuned")}
    change = {}
    for part in ("harmful", "benign"):
        with torch.no_grad():
            means = {r: np.mean([-float(answer_loss(*m, row)) for row in SETS[part]]) for r, m in loaded.items()}
        change[part] = means["tuned"] - means["aligned"]
        assert done.summary()[f"behaviour/{part}"] == pytest.approx(change[part], abs=1e-5)
    assert done.summary()["behaviour/interaction"] == pytest.approx(change["harmful"] - change["benign"], abs=1e-5)


def test_refusal_is_the_difference_of_summed_log_probabilities_of_openings(models, done):
    scores = {}
    for role in ("aligned", "tuned"):
        model, tokenizer = load_model(models[role], device="cpu")
        ending = len(closing_tokens(tokenizer))
        odds = []
        for row in SETS["safety"]:
            pair = [[row["messages"][0], {"role": "assistant", "content": text}] for text in (REFUSING, COMPLYING)]
            with torch.no_grad():
                said = [-float(token_losses(model, tokenizer, m)[:-ending].sum()) for m in pair]
            odds.append(said[0] - said[1])
        scores[role] = np.mean(odds)
    assert done.summary()["behaviour/refusal"] == pytest.approx(scores["tuned"] - scores["aligned"], abs=1e-4)
    assert done.summary()["behaviour/refusal/aligned"] == pytest.approx(scores["aligned"], abs=1e-4)


def test_what_harmful_requests_lose_beyond_harmless_ones_is_the_difference_of_their_changes(done):
    found = done.summary()
    beyond = found["behaviour/refusal"] - found["behaviour/refusal/benign"]
    assert found["behaviour/refusal_beyond"] == pytest.approx(beyond, abs=1e-12)


def test_models_that_are_identical_differ_in_nothing(models, tmp_path):
    found = run(tmp_path, base=models["base"], aligned="tiny", tuned="tiny")
    summary = found.summary()
    assert set(words(found).values()) <= {"no difference found", "not measurable"}
    for key in ("behaviour/interaction", "behaviour/harmful", "behaviour/refusal", "behaviour/refusal_beyond"):
        assert [summary[f"{key}{end}"] for end in ("", "/low", "/high", "/p")] == [0.0, 0.0, 0.0, 1.0]
    for layer in LAYERS:
        assert summary[f"direction/retention/{layer}"] == 1.0
        assert summary[f"direction/along/{layer}/random_p"] == 1.0
    assert summary["direction/depth_trend"] == 0.0
    assert summary["subspace/overlap:left:right"] is None
    assert "The tuned and the aligned model have the same weights: nothing can differ between them." in (
        found.report.warnings
    )


def test_a_tuned_model_that_is_the_base_keeps_nothing_of_the_direction(models, tmp_path):
    found = run(tmp_path, base=models["base"], aligned="tiny", tuned=models["base"]).summary()
    for layer in LAYERS:
        assert found[f"direction/retention/{layer}"] == pytest.approx(0.0, abs=1e-9)


def test_depth_is_not_asked_where_no_layer_is_known_to_have_lost_anything(models, tmp_path):
    further = changed(tmp_path / "further", noise(-0.1, 1))  # what leads from the base to tiny, a third of it again
    found = run(
        tmp_path / "run", base=models["base"], aligned="tiny", tuned=further, left=None, right=None, safety=None
    )
    assert min(found.summary()[f"direction/retention/{layer}"] for layer in LAYERS) > 1
    assert words(found)["That loss grows with depth"] == "not measurable"


@pytest.mark.parametrize(("tuned", "word"), [("harmed", "eroded"), ("mended", "less than with harmless rows")])
def test_only_harmful_answers_that_were_learnt_more_than_harmless_ones_are_called_eroded(models, tmp_path, tuned, word):
    found = run(tmp_path, aligned="tiny", tuned=models[tuned], left=None, right=None, safety=None)
    (said,) = words(found).values()
    assert said == word
    assert np.sign(found.summary()["behaviour/interaction"]) == (1 if tuned == "harmed" else -1)


def test_a_control_that_moves_alike_takes_the_word_back(models, tmp_path):
    alike = {"alike": [{**r, "id": f"again-{r['id']}"} for r in SETS["harmful"]]}
    some = {"left": None, "right": None, "safety": None, "controls": alike}
    found = run(tmp_path, aligned="tiny", tuned=models["harmed"], **some)
    (answer,) = answers(found.findings)
    assert answer.word == "as with harmless rows"
    assert found.summary()["behaviour/interaction/control:alike"] == pytest.approx(0.0, abs=1e-9)


def test_the_report_comes_again_from_saved_tables_alone(done, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "copy")
    before = (out / "report.json").read_text()
    code = (
        "import sys; from graddiag.reporting import report; report(sys.argv[1], figures=False); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    again = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == "[]"
    assert (out / "report.json").read_text() == before
    assert not (out / "report.html").exists()
    assert not list((out / "figures").iterdir())


def test_the_same_call_again_reads_no_row_again_and_another_is_refused(models, done, tmp_path, monkeypatch):
    out = shutil.copytree(done.out, tmp_path / "copy")
    of = {role: models[role] for role in ("base", "aligned", "tuned")}
    monkeypatch.setattr(Reader, "read", lambda *_: pytest.fail("read again"))
    assert run(out, **of).summary() == done.summary()
    with pytest.raises(DataError, match=r"(?s)holds signals of something else.*states"):
        run(out, **{**of, "layers": [0, 2]})


def test_tables_are_saved_by_model_and_set_and_are_whole(done):
    checked = verify_all(done.out)
    opened = [f"{part}-{how}" for part in ("safety", "benign") for how in ("refusing", "complying")]
    names = ["left", "right", "harmful", "benign", "safety", *opened]
    assert {p.name for p in checked} == {f"{role}-{n}" for role in ("base", "aligned", "tuned") for n in names}
    assert not any(checked.values())


def test_a_set_that_plays_two_parts_is_read_once(models, tmp_path):
    rows = SETS["left"]
    found = run(tmp_path, aligned="tiny", tuned=models["tuned"], left=rows, harmful=rows, safety=None)
    assert read_setting(tmp_path).parts["harmful"] == "left"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and p.name.startswith("tuned-")) == [
        "tuned-benign", "tuned-left", "tuned-right",
    ]  # fmt: skip
    assert found.summary()["behaviour/harmful/n"] == len(rows)


def test_what_is_not_given_leaves_its_keys_undefined(models, tmp_path):
    found = run(tmp_path, aligned="tiny", tuned=models["tuned"], harmful=None, left=None)
    assert found.summary()["behaviour/interaction"] is None
    assert found.summary()["direction/depth_trend"] is None
    assert found.summary()["behaviour/refusal"] is not None
    assert any("No base model" in line for line in found.report.verdict)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": 8}, DataError, r"left \(left\) has 8 rows, and 8 components need more"),
        (dict.fromkeys(("left", "right", "harmful", "benign", "safety")), UsageError, "no set to read"),
        ({"refusing": " "}, UsageError, "needs text"),
        ({"controls": {"benign": rows_of("secure", 3)}}, UsageError, "Two different sets are called 'benign'"),
        ({"controls": {"safety-refusing": rows_of("secure", 3)}}, UsageError, "'safety-refusing'.*Rename"),
    ],
)  # fmt: skip
def test_bad_sets_are_refused_before_a_model_is_touched(tmp_path, monkeypatch, given, error, message):
    monkeypatch.setattr(path, "model_set", lambda **_: pytest.fail("models were looked at"))
    with pytest.raises(error, match=message):
        run(tmp_path, aligned="tiny", tuned="tiny", **given)


def test_the_built_in_stand_in_is_named_and_has_its_matched_control(models, tmp_path):
    some = {"left": None, "right": None, "safety": None, "limit": 3}
    found = run(tmp_path, aligned="tiny", tuned="tiny", **some, harmful="insecure", controls=None)
    assert found.findings.setting.controls == ("secure",)
    assert "behaviour/interaction/control:secure" in found.summary()
    assert any("stands for answers that should not be given" in w for w in found.report.warnings)


def test_the_page_is_whole_and_fetches_nothing(done):
    html = (done.out / "report.html").read_text()
    elements = parsed(html)
    assert "script" not in elements.names
    assert all(a.startswith(("data:", "#")) for a in elements.addresses)
    for line in done.report.verdict:
        assert line.split(":")[0].split("(")[0] in html
    drawn = {p.stem for p in (done.out / "figures").glob("*.svg")}
    assert drawn == {"behaviour", "refusals", "direction", "refusal_direction", "subspace", "shifts", "weights"}
    assert drawn == {p.stem for p in (done.out / "figures").glob("*.png")}


def test_tables_hold_every_row(done):
    rows = csv_rows(done.out, "answers")
    assert len(rows) == len(SETS["harmful"]) + len(SETS["benign"])
    mean = np.mean([float(r["change"]) for r in rows if r["set"] == "harmful"])
    assert mean == pytest.approx(done.summary()["behaviour/harmful"], abs=1e-12)
    assert len(csv_rows(done.out, "direction")) == len(LAYERS)


def retained(share: float, seed: int, name: str) -> tuple[Comparison, Comparison]:
    """Rows that went this share of the way back to the base, but for noise."""
    states = interpolated([share, share], seed)
    rng = np.random.default_rng(seed)
    tuned = [h + 0.3 * rng.normal(size=h.shape) for h in states["tuned"]]
    return shifts(read_under(states | {"tuned": tuned}, name=name))


def test_a_control_that_keeps_as_little_of_the_direction_takes_the_word_back(done):
    harmful = retained(0.5, 0, "harmful")
    main = direction(*harmful, control=retained(0.0, 1, "keeping"))
    alike = direction(*harmful, control=retained(0.5, 2, "alike"))
    question = "The alignment direction is lost"
    for beside, word in (({}, "eroded"), ({"alike": alike}, "as with harmless rows")):
        found = replace(done.findings, direction=main, direction_beside=beside)
        answer = next(a for a in answers(found) if a.question == question)
        assert answer.word == word
        assert all(name in answer.numbers for name in beside)


def test_the_direction_is_held_against_every_control(models, tmp_path):
    again = {"again": [{**r, "id": f"again-{r['id']}"} for r in SETS["harmful"]]}
    of = {role: models[role] for role in ("base", "aligned", "tuned")}
    found = run(tmp_path, left=None, right=None, safety=None, controls=again, **of).summary()
    for layer in LAYERS:
        own = found[f"direction/retention/{layer}"]
        assert found[f"direction/retention/control:again/{layer}"] == pytest.approx(own, rel=1e-6)
        assert found[f"direction/contrast/control:again/{layer}"] == pytest.approx(0.0, abs=1e-6)
    assert found["direction/depth_trend/control:again"] == pytest.approx(0.0, abs=1e-6)


def test_options_of_the_command_have_the_defaults_of_the_function():
    ours = {name: p.default for name, p in inspect.signature(path.erode).parameters.items()}
    theirs = {p.name: p.default for p in erosion_command.params if not p.is_flag}
    told = {"aligned", "tuned", "base", "revision", "intervene"}  # a name, or nothing, in either
    shared = sorted(ours.keys() & theirs.keys() - told)
    assert {n: theirs[n] for n in shared} == {n: ours[n] for n in shared}
    assert {"random_subspaces", "seed", "generate", "temperature", "new_tokens", "next_tokens"} <= set(shared)
