"""Weights and changes of states in a run of three models: what a run measures is what the parts measure alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from three_tiny import LAYERS, SETS, changed, noise, run
from tiny_models import save_adapter
from torch import nn
from written import csv_rows

from graddiag import erosion_weights
from graddiag.analyzers import N_NULL, shift
from graddiag.erosion_command import erosion
from graddiag.erosion_report import report_erosion
from graddiag.erosion_setting import ErosionRun, read_setting
from graddiag.erosion_verdict import answers
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.weight_changes import compare_weights

QUESTION = "The update of the weights goes back towards the base"
FEW = {"left": None, "right": None, "harmful": None, "safety": None}  # benign alone


def moved(share: float):
    """A part of the way from tiny to the base that `noise(0.3, 1)` makes; that way and back are one line."""

    def change(model: nn.Module) -> None:
        before = {k: v.clone() for k, v in model.named_parameters()}
        noise(0.3, 1)(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name] + share * (parameter - before[name]))

    return change


def unrelated(model: nn.Module) -> None:
    noise(0.1, 2)(model)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    changes = {"base": moved(1.0), "back": moved(0.25), "further": moved(-0.25), "aside": unrelated}
    return {name: changed(folder / name, change) for name, change in changes.items()}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """A run on every set, with two controls."""
    controls = {"further_control": SETS["right"][:5]}
    given = {"base": models["base"], "aligned": "tiny", "tuned": models["back"], "controls": controls}
    return run(tmp_path_factory.mktemp("run"), **given)


def word(found):
    return {a.question: a.word for a in answers(found.findings)}[QUESTION]


def test_numbers_of_the_weights_are_those_of_loaded_models(models, done):
    loaded = {role: load_model(models.get(name, name), device="cpu")[0] for role, name in _names().items()}
    expected = compare_weights(loaded["tuned"], loaded["aligned"], base=loaded["base"])
    found = {k: v for k, v in done.summary().items() if k.startswith("weights/")}
    assert found == expected.summary()
    document = json.loads((done.out / "report.json").read_text())
    for block, keys in expected.block_summary().items():
        assert document["blocks"][block] == keys
    assert {document["kinds"][k] for k in found} == {"weights"}
    rows = {r["block"]: r for r in csv_rows(done.out, "weights")}
    assert list(rows) == ["all as one", *expected.blocks]
    for block, change in expected.blocks.items():
        squares = np.linalg.svd(_update(loaded, block), compute_uv=False) ** 2
        half = next(k for k in range(1, len(squares) + 1) if squares[:k].sum() >= squares.sum() / 2)
        assert int(rows[block]["directions_for_half"]) == half
        assert float(rows[block]["first_share"]) == pytest.approx(squares[0] / squares.sum(), rel=1e-6)
        assert float(rows[block]["alignment_chance_sd"]) == change.alignment.chance_sd


def _names():
    return {"base": "base", "aligned": "tiny", "tuned": "back"}


def _update(loaded, block):
    tuned, aligned = (loaded[role].get_parameter(block).detach().double().numpy() for role in ("tuned", "aligned"))
    return tuned - aligned


@pytest.mark.parametrize(
    ("tuned", "expected", "covered"),
    [
        ("back", "back, no control", -0.25),
        ("further", "further on, no control", 0.25),
        ("aside", "no more than chance", 0.0),
        ("aligned", "not measurable", 0.0),
    ],
)
def test_the_way_of_an_update_that_is_known_gets_its_word(models, tmp_path, tuned, expected, covered):
    name = models.get(tuned, "tiny")
    found = run(tmp_path, base=models["base"], aligned="tiny", tuned=name, **FEW)
    assert word(found) == expected
    assert found.summary()["weights/along_alignment"] == pytest.approx(covered, abs=1e-2)


def test_without_a_base_nothing_is_said_of_the_way_and_the_rest_is_there(models, tmp_path):
    found = run(tmp_path, aligned="tiny", tuned=models["back"], **FEW)
    assert QUESTION not in {a.question for a in answers(found.findings)}
    assert found.summary()["weights/alignment_cosine"] is None
    assert found.summary()["weights/relative"] > 0


def test_an_adapter_is_compared_with_the_model_that_it_is_on(tmp_path):
    adapter = save_adapter(tmp_path / "adapter")
    found = run(tmp_path / "run", aligned="tiny", tuned=adapter, **FEW)
    expected = compare_weights(load_model(adapter, device="cpu")[0], load_model("tiny", device="cpu")[0])
    assert {k: found.summary()[k] for k in expected.summary()} == expected.summary()


def test_weights_that_were_compared_are_not_compared_again_unless_a_model_is_another(models, tmp_path, monkeypatch):
    first = run(tmp_path, base=models["base"], aligned="tiny", tuned=models["aside"], **FEW)
    monkeypatch.setattr(erosion_weights, "weight_sources", lambda _: pytest.fail("compared again"))
    again = run(tmp_path, base=models["base"], aligned="tiny", tuned=models["aside"], **FEW)
    assert again.summary() == first.summary()
    with pytest.raises(pytest.fail.Exception, match="compared again"):
        run(tmp_path, base=models["base"], aligned="tiny", tuned=models["aside"], overwrite=True, **FEW)
    monkeypatch.undo()
    other = run(tmp_path, base=models["base"], aligned="tiny", tuned=models["back"], overwrite=True, **FEW)
    assert other.summary()["weights/relative"] != first.summary()["weights/relative"]


def test_weights_of_other_models_than_those_of_the_tables_are_not_reported(models, tmp_path):
    for name in ("aside", "back"):
        run(tmp_path / name, aligned="tiny", tuned=models[name], **FEW)
    (tmp_path / "back" / "weights.npz").write_bytes((tmp_path / "aside" / "weights.npz").read_bytes())
    with pytest.raises(DataError, match=r"weights.npz is of other models .*tuned.* Give the erosion command again"):
        report_erosion(tmp_path / "back", figures=False)


def test_what_is_left_out_leaves_its_keys_undefined_and_no_file(models, tmp_path):
    with_weights = run(tmp_path, aligned="tiny", tuned=models["back"], **FEW)
    without = run(tmp_path, aligned="tiny", tuned=models["back"], weights=False, **FEW)
    assert without.summary().keys() == with_weights.summary().keys()
    assert {v for k, v in without.summary().items() if k.startswith("weights/")} == {None}
    assert not (tmp_path / "tables" / "weights.csv").exists()
    assert not any("weights" in w for w in without.report.warnings)


def test_weights_that_cannot_be_read_from_files_are_a_warning_and_the_rest_is_measured(models, tmp_path, monkeypatch):
    def packed(_):
        raise DataError("The files of the model hold no plain numbers.")

    monkeypatch.setattr(erosion_weights, "weight_sources", packed)
    found = run(tmp_path, aligned="tiny", tuned=models["back"], **{**FEW, "harmful": SETS["harmful"]})
    assert "The weights were not compared. The files of the model hold no plain numbers." in found.report.warnings
    assert found.summary()["weights/relative"] is None
    assert found.summary()["behaviour/interaction"] is not None
    again = report_erosion(tmp_path, figures=False)
    assert again.report.warnings == found.report.warnings


def test_what_was_not_compared_is_told_also_when_the_weights_are_not_read_again(models, tmp_path, monkeypatch):
    monkeypatch.setattr(erosion_weights, "missing", lambda *_: ("lm_head.weight",))
    first = run(tmp_path, aligned="tiny", tuned=models["aside"], **FEW)
    monkeypatch.undo()
    again = run(tmp_path, aligned="tiny", tuned=models["aside"], **FEW)
    for found in (first, again):
        said = [w for w in found.report.warnings if "were not compared; the first is 'lm_head.weight'" in w]
        assert [w.split(":")[0] for w in said] == ["Weights of the aligned model", "Weights of the tuned model"]


def test_every_set_with_its_own_answers_is_there_at_every_layer_with_the_numbers_of_shift(done):
    names = {"left", "right", "harmful", "benign", "safety", "further_control"}
    held = ErosionRun(done.out, read_setting(done.out))
    rows = {(r["set"], int(r["layer"])): r for r in csv_rows(done.out, "shifts")}
    assert rows.keys() == {(n, layer) for n in names for layer in LAYERS}
    blocks = json.loads((done.out / "report.json").read_text())["blocks"]
    for (name, layer), row in rows.items():
        expected = shift(held.compared("tuned", "aligned", name), f"{layer}/first:10", name=name)
        assert (int(row["k"]), int(row["rows"])) == (expected.k, expected.n_rows)
        assert float(row["mean_share"]) == expected.mean_share
        assert float(row["mean_share_null"]) == expected.mean_share_null
        assert float(row["first_share"]) == expected.shares[0]
        assert float(row["first_edge"]) == expected.edges[0]
        assert expected.summary().items() <= blocks[f"{layer}/first:10"].items()


def test_components_are_counted_also_where_a_number_is_given_for_the_overlap(models, tmp_path):
    given = {"left": SETS["left"], "right": SETS["right"], "harmful": None, "benign": None, "safety": None}
    free, fixed = (
        run(tmp_path / str(k), aligned="tiny", tuned=models["aside"], k=k, weights=False, **given) for k in (None, 7)
    )
    counted = {(n, layer): s.k for n, by in free.findings.shifts.of.items() for layer, s in by.items()}
    assert counted == {(n, layer): s.k for n, by in fixed.findings.shifts.of.items() for layer, s in by.items()}
    assert 7 not in counted.values()


def test_draws_of_nulls_bound_the_p_of_the_overlap_and_few_are_named(models, tmp_path):
    given = {"left": SETS["left"], "right": SETS["right"], "harmful": None, "benign": None, "safety": None}
    for n in (4, 20):
        found = run(tmp_path, aligned="tiny", tuned=models["aside"], n_null=n, k=2, weights=False, **given)
        p = found.summary()["subspace/overlap:left:right/p"]
        assert p * (n + 1) == pytest.approx(round(p * (n + 1)))
        said = [w for w in found.report.warnings if "draws of a null" in w]
        assert said == (["With 4 draws of a null no p of an overlap is below 0.2."] if n == 4 else [])
    with pytest.raises(UsageError, match="0 draws are no null"):
        run(tmp_path, aligned="tiny", tuned=models["aside"], n_null=0, **given)


def test_the_command_draws_as_often_as_the_library():
    (option,) = (o for o in erosion.params if o.name == "nulls")
    assert option.default == N_NULL
