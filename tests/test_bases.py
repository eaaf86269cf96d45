"""The reference of a low-rank projection: measured once, kept bit for bit, and part of the space."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_runs import SMALL, rows_of, run
from reference import row_gradients
from test_extractor import extractor_for

import graddiag
from graddiag import extraction
from graddiag.bases import FILE, kept_bases, measured_bases, on_bases, read_reference
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.pipeline import compare, extract_to, plan_compare
from graddiag.projection import LoGra
from graddiag.store import read_signals, verify_all

NEARLY = 0.999  # of what the best directions hold: a direction hardly larger than the next may be mixed with it


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_bases_are_the_top_directions_of_the_mean_of_whole_gradients(make_llama, make_rows):
    model, rows = make_llama(), make_rows(5)
    bases = measured_bases(extractor_for(model, projector=LoGra(64)), rows, batch_tokens=40)
    oracle = row_gradients(model, rows)
    for block, sides in bases.of.items():
        mean = sum(g[block] for g in oracle) / len(oracle)
        best = torch.linalg.svdvals(mean)[:4].square().sum().item()
        for found, side in zip(sides, (mean, mean.T), strict=True):
            assert found.shape == (len(side), 4)
            held = (torch.from_numpy(found).T @ side).square().sum().item()
            assert NEARLY * best <= held <= best * (1 + 1e-9), block


def test_extraction_on_bases_captures_more_of_the_reference_than_random_rows(make_llama, make_rows):
    """Of the mean gradient itself, the squared norm of its row is off by less."""
    model, rows = make_llama(), make_rows(6)
    pilot = extractor_for(model, projector=LoGra(64))
    extractor = on_bases(pilot, measured_bases(pilot, rows, batch_tokens=100))
    exact = extractor_for(model).measure(rows).gradients
    errors = []
    for one in (pilot, extractor):
        found = one.measure(rows).gradients
        share = [np.linalg.norm(found[b].mean(0)) / np.linalg.norm(exact[b].mean(0)) for b in exact]
        errors.append(np.sqrt(np.mean((np.array(share) - 1) ** 2)))
    assert errors[1] < errors[0] / 2


def test_kept_bases_are_found_again_bit_for_bit_and_never_served_for_other_rows(tmp_path, make_llama, make_rows):
    pilot, rows = extractor_for(make_llama(), projector=LoGra(16)), make_rows(4)
    first = kept_bases(tmp_path, pilot, rows, batch_tokens=100)
    before = (tmp_path / FILE).stat().st_mtime_ns
    again = kept_bases(tmp_path, pilot, rows, batch_tokens=100)
    assert again.digest == first.digest
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    others = make_rows(4, seed=3)
    with pytest.raises(DataError, match=r"other reference rows, another model or other settings.*--overwrite"):
        kept_bases(tmp_path, pilot, others, batch_tokens=100)
    replaced = kept_bases(tmp_path, pilot, others, batch_tokens=100, overwrite=True)
    assert replaced.digest != first.digest
    assert read_reference(tmp_path).digest == replaced.digest


def test_broken_bases_are_refused(tmp_path, make_llama, make_rows):
    pilot, rows = extractor_for(make_llama(), projector=LoGra(16)), make_rows(4)
    kept_bases(tmp_path, pilot, rows, batch_tokens=100)
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[-1] ^= 1
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(DataError, match="is broken"):
        kept_bases(tmp_path, pilot, rows, batch_tokens=100)


def test_a_low_rank_run_keeps_its_bases_and_the_same_call_measures_nothing(tmp_path, tiny, monkeypatch):
    first = run(tmp_path, tiny, projection="lowrank")
    assert json.loads((tmp_path / "left" / "manifest.json").read_text())["space"]["projection"] == "lowrank"
    assert verify_all(tmp_path)[tmp_path / "means"] == []
    monkeypatch.setattr(extraction.Extractor, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert run(tmp_path, tiny, projection="lowrank").summary() == first.summary()


def test_an_interrupted_low_rank_run_continues_on_the_same_bases(tmp_path, tiny):
    straight = run(tmp_path, tiny, projection="lowrank")
    space = read_signals(tmp_path / "left").space
    for file in (tmp_path / "left").glob("shard-*"):
        file.unlink()
    again = run(tmp_path, tiny, projection="lowrank")
    assert read_signals(tmp_path / "left").space == space
    assert again.summary()["conflict/across"] == pytest.approx(straight.summary()["conflict/across"], abs=1e-6)


def test_without_a_safety_set_the_reference_is_the_left_one(tmp_path, tiny):
    model, tokenizer = tiny
    run(tmp_path, tiny, projection="lowrank", safety=None, controls={})
    bases = read_reference(tmp_path)
    signals = graddiag.extract(
        model, tokenizer, rows_of("educational", 2), blocks=SMALL, projection="lowrank", dim=16,
        reference=rows_of("insecure", 6),
    )  # fmt: skip
    assert signals.space.probe == read_signals(tmp_path / "left").space.probe
    given = graddiag.extract(
        model, tokenizer, rows_of("educational", 2), blocks=SMALL, projection="lowrank", dim=16, reference=bases
    )
    assert given.space == signals.space
    for block in given.blocks:
        assert np.array_equal(given.gradients[block], signals.gradients[block])


def test_a_set_can_join_a_run_by_its_bases(tmp_path, tiny):
    model, tokenizer = tiny
    run(tmp_path / "run", tiny, projection="lowrank")
    how = {"model": model, "tokenizer": tokenizer, "blocks": SMALL, "dim": 16, "projection": "lowrank"}
    joined = extract_to(rows_of("secure", 2), out=tmp_path / "more", reference=tmp_path / "run", **how)
    saved = tmp_path / "run" / "left"
    assert joined.signals.space == read_signals(saved).space
    assert compare(saved, tmp_path / "more", out=tmp_path / "both", figures=False).summary()["pairs/n"] is not None
    with pytest.raises(UsageError, match=r"needs one reference.*--reference RUN"):
        extract_to(rows_of("secure", 2), out=tmp_path / "apart", **how)
    with pytest.raises(UsageError, match=r"needs one reference.*--reference RUN"):
        compare(saved, rows_of("secure", 2), out=tmp_path / "mixed", figures=False, **how)


def test_a_low_rank_run_can_be_planned_without_measuring_its_bases(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny
    cost = plan_compare(
        rows_of("insecure", 2), rows_of("educational", 2), model=model, tokenizer=tokenizer, blocks=SMALL, dim=16,
        projection="lowrank",
    )  # fmt: skip
    assert cost.rows == {"left": 2, "right": 2}
    assert list(tmp_path.iterdir()) == []


def test_a_reference_that_is_missing_or_of_no_use_is_named(tiny):
    model, tokenizer = tiny
    rows = rows_of("insecure", 1)
    with pytest.raises(UsageError, match=r"'lowrank' needs a reference.*reference=examples"):
        graddiag.extract(model, tokenizer, rows, projection="lowrank", dim=16)
    with pytest.raises(UsageError, match=r"is for the projection 'lowrank', and this one is 'sjlt'"):
        graddiag.extract(model, tokenizer, rows, projection="sjlt", dim=16, reference=rows)


def test_reference_rows_without_a_finite_gradient_show_no_directions(make_llama, make_rows):
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"None of the 3 reference rows has a finite gradient"):
        measured_bases(extractor_for(model, projector=LoGra(16)), make_rows(3), batch_tokens=100)


def test_on_bases_the_space_differs_from_the_pilots_by_the_projection_only(make_llama, make_rows):
    pilot = extractor_for(make_llama(), projector=LoGra(16))
    extractor = on_bases(pilot, measured_bases(pilot, make_rows(2), batch_tokens=100))
    same = {"projection": "logra", "probe": pilot.space.probe}
    assert replace(extractor.space, **same) == pilot.space
    assert set(pilot.space.differences(extractor.space)) == {"projection", "probe"}
