"""Which projection a run takes: the cheapest that is fine enough, said, kept, and never chosen anew."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
from measured_runs import SMALL, rows_of, run

import graddiag
from graddiag import pilot
from graddiag.errors import DataError
from graddiag.extractor import Extractor
from graddiag.models import load_model
from graddiag.pilot import CANDIDATES, Candidate, choose, pilot_rows
from graddiag.pipeline import plan_compare
from graddiag.preparation import prepare
from graddiag.store import read_signals

FREE = {"projection": None, "dim": None}
COARSE, FINE = Candidate("logra", 4), Candidate("logra", 900)  # 900 numbers: 30 of 32 directions a side
FREE_MEMORY = 2**30


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def prepared(tiny):
    model, tokenizer = tiny
    sets = {"left": "insecure", "right": "educational", "safety": "safety"}
    rows = {role: rows_of(name, 20) for role, name in sets.items()}
    return prepare(rows, model=model, tokenizer=tokenizer, blocks=SMALL)


def _choose(prepared, *candidates, free=FREE_MEMORY):
    return choose(
        prepared.extractor, prepared.encoded, batch_tokens=500, candidates=candidates or CANDIDATES, free_memory=free
    )


def test_candidates_go_from_cheap_to_dear():
    assert [c.row_bytes for c in CANDIDATES] == sorted(c.row_bytes for c in CANDIDATES)


def test_the_error_is_that_of_cosines_of_means_of_whole_gradients(prepared, tiny):
    found = _choose(prepared, COARSE)
    errors = []
    means = {"exact": [], "logra": []}
    for kind, of_kind in means.items():
        for role in ("left", "right", "safety"):
            ids = {r.id for r in pilot_rows(prepared.encoded, role)}
            name = {"left": "insecure", "right": "educational", "safety": "safety"}[role]
            rows = [r for r in rows_of(name, 20) if r["id"] in ids]
            signals = graddiag.extract(*tiny, rows, blocks=SMALL, projection=kind, dim=4)
            of_kind.append({b: signals.gradients[b].astype(float).mean(0) for b in signals.blocks})

    def cosines(three, block):
        left, right, safety = (m[block] for m in three)
        return [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ((left, right), (left - right, safety))]

    for block in means["exact"][0]:
        errors += [a - b for a, b in zip(*(cosines(means[k], block) for k in means), strict=True)]
    assert found.error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-3)
    assert found.error > 0.1


def test_the_first_that_is_fine_enough_is_taken_and_else_the_best_with_a_note(prepared, monkeypatch):
    exact = Candidate("logra", 4096)  # no block of the model is shortened by 64 a side of 32
    assert (_choose(prepared, COARSE, exact, FINE).dim, _choose(prepared, COARSE, exact).note) == (4096, "")
    monkeypatch.setattr(pilot, "MOST_ERROR", 0.0)
    best = _choose(prepared, COARSE, FINE, Candidate("logra", 9))
    assert best.dim == 900
    assert "No projection that was tried" in best.note
    assert f"{best.error:.3f}" in best.sentence
    assert _choose(prepared, COARSE, FINE) == _choose(prepared, COARSE, FINE)


def test_means_that_do_not_fit_are_not_made(prepared, monkeypatch):
    monkeypatch.setattr(Extractor, "measure", lambda *_, **__: pytest.fail("measured"))
    found = _choose(prepared, free=1000)
    assert (found.kind, found.dim) == ("logra", 256)
    assert "more than 25% of the 1,000 bytes that are free" in found.note


def test_where_not_all_means_fit_the_pilot_tries_some_blocks_and_says_how_many(prepared):
    blocks = prepared.extractor.blocks
    sizes = [4 * 3 * math.prod(b.block.shape) for b in blocks]
    found = _choose(prepared, FINE, free=4 * max(sizes))
    n = int(re.search(r"on (\d+) of 8 blocks", found.note)[1])
    assert 1 <= n < len(blocks)
    squares = [_choose_alone(prepared, b.block.name).error ** 2 for b in blocks]
    means = [sum(some) / n for some in itertools.combinations(squares, n)]
    assert found.error**2 == pytest.approx(min(means, key=lambda m: abs(m - found.error**2)))
    assert "The pilot tried" not in _choose(prepared, FINE, free=4 * sum(sizes)).note


def _choose_alone(prepared, block):
    return choose(
        prepared.extractor.only([block]),
        prepared.encoded,
        batch_tokens=500,
        candidates=(FINE,),
        free_memory=FREE_MEMORY,
    )


def test_the_pilot_is_small_and_of_pairs(prepared):
    assert [len(pilot_rows(prepared.encoded, r)) for r in ("left", "right", "safety")] == [2, 2, 2]
    left, right = ([r.id for r in pilot_rows(prepared.encoded, side)] for side in ("left", "right"))
    assert left == right


def test_a_run_keeps_its_choice_and_a_given_projection_overrides_it(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(pilot, "MOST_ERROR", 0.0)
    first = run(tmp_path / "a", tiny, **FREE)
    kept = json.loads((tmp_path / "a" / "projection.json").read_text())
    space = first.findings.comparison.left.space
    assert (space.projection, space.dim) == (kept["kind"], kept["dim"])
    assert (kept["note"] != "") == any("No projection that was tried" in w for w in first.report.warnings)
    monkeypatch.setattr(Extractor, "measure", lambda *_, **__: pytest.fail("measured again"))
    again = run(tmp_path / "a", tiny, **FREE)
    assert again.summary() == first.summary()
    assert again.report.warnings == first.report.warnings
    with pytest.raises(DataError, match=r"space\.dim"):
        run(tmp_path / "a", tiny, dim=16)


def test_a_run_that_was_begun_with_a_given_projection_goes_on_with_it(tmp_path, tiny, monkeypatch):
    first = run(tmp_path, tiny, dim=16)
    monkeypatch.setattr(Extractor, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert run(tmp_path, tiny, **FREE).summary() == first.summary()
    assert not (tmp_path / "projection.json").exists()


def test_saved_signals_say_the_projection_of_what_is_measured_beside_them(tmp_path, tiny):
    run(tmp_path / "a", tiny, dim=9, safety=None, controls={})
    saved = str(tmp_path / "a" / "left")
    found = run(tmp_path / "b", tiny, left=saved, safety=None, controls={}, **FREE)
    assert found.findings.comparison.right.space == read_signals(tmp_path / "a" / "left").space


def test_a_plan_shows_the_choice(tiny):
    model, tokenizer = tiny
    sets = (rows_of("insecure", 6), rows_of("educational", 6))
    cost = plan_compare(*sets, safety=rows_of("safety", 4), model=model, tokenizer=tokenizer, blocks=SMALL)
    line = next(x for x in cost.lines() if x.startswith("rows    chosen: "))
    assert f"{cost.dim} numbers per row and block" in line
    given = plan_compare(*sets, model=model, tokenizer=tokenizer, blocks=SMALL, dim=16)
    assert given.summary()["plan/dim"] == 16
    assert not any("chosen" in x for x in given.lines())
