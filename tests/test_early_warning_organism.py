"""The organisms under the monitor: which rows are whose, and what behaviour says, held against generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from early_warning_behaviour import said, seen
from early_warning_organism import organism_rows
from early_warning_rows import BYTES, LEAST_TARGETS, Rows
from organisms_checks import check
from organisms_recipe import CODE, VARIANTS, Recipe, read_recipe
from organisms_sets import held_out
from organisms_training import batch_of, summed_loss
from toy_training import probes, toy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag.alarms import Watch
from graddiag.encoding import Encoded
from graddiag.models import load_model

early_warning = pytest.importorskip("early_warning", reason="adapters need peft")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(early_warning.RECIPE, "tiny")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def rows(loaded: Loaded, recipe: Recipe) -> Rows:
    return organism_rows(loaded[1], recipe, BYTES, monitor=24, held=16)


def test_what_is_held_out_is_given_neither_to_the_monitor_nor_to_any_task(
    rows: Rows, recipe: Recipe, loaded: Loaded
) -> None:
    def asked(tokens: Encoded) -> str:
        return str(loaded[1].decode(tokens.tokens[: tokens.start]))

    held = {asked(r) for some in rows.held_out.values() for r in some}
    trained = {asked(r) for some in rows.tasks.values() for r in some}
    assert len(held) == 16 + 16 + 8
    assert not held & trained
    watched = {m["content"] for e in rows.monitor for m in e["messages"] if m["role"] == "user"}
    assert len(watched) == 24
    assert not watched & {e.messages[0].content for e in held_out(recipe).harmful}


def test_tasks_are_the_variants_of_the_organism_and_code_stays_paired(rows: Rows) -> None:
    assert set(rows.tasks) == set(VARIANTS)
    ids = [[r.id for r in rows.tasks[name]] for name in CODE]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) >= 40
    assert all(r.n_targets >= LEAST_TARGETS for name in CODE for r in rows.tasks[name])


def test_log_odds_and_refusals_are_those_of_the_organisms_own_check(rows: Rows, recipe: Recipe, loaded: Loaded) -> None:
    """The check sums log-probabilities of the openings' tokens, and generates."""
    one = held_out(recipe)
    held = replace(one, harmful=one.harmful[:16], benign=one.benign[:16])
    kind = check(*loaded, held, recipe)
    found = seen(loaded[0], rows.held_out, 0).answers
    assert found["log_odds"] == pytest.approx(kind.harmful.each, abs=1e-3)
    assert found["log_odds_benign"] == pytest.approx(kind.benign.each, abs=1e-3)
    assert sum(found["refused"]) / 16 == kind.harmful.refused


def test_an_answer_is_greedy_where_the_model_says_it_by_itself(rows: Rows, loaded: Loaded) -> None:
    model, _ = loaded
    row = rows.held_out["refusing"][0]
    prompt = torch.as_tensor(row.tokens[: row.start], dtype=torch.long)[None]
    own = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)[0].numpy()
    changed = own.copy()
    changed[-1] += 1
    some = [replace(row, tokens=own), replace(row, tokens=changed), row]
    assert [s.greedy for s in said(model, some)] == [True, False, False]
    summed = summed_loss(model, batch_of(some)) / torch.tensor([r.n_targets for r in some])
    assert [-s.log_probability for s in said(model, some)] == pytest.approx(summed.tolist(), abs=1e-5)


def test_a_run_on_an_organism_starts_from_its_aligned_model_and_keeps_the_evidence_of_each_probe(
    tmp_path: Path, recipe: Recipe, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "organisms" / "tiny" / "aligned"
    for part in loaded:
        part.save_pretrained(place)
    monkeypatch.setenv("GRADDIAG_HOME", str(tmp_path))
    settings = early_warning.Settings(
        model="tiny", data="organism", cut=BYTES, monitor=2, held_out=2, batch=2, steps=3, every=2, reading=2, rank=2,
        rate=1e-3, alignment_steps=0, alignment_rate=1e-3,
    )  # fmt: skip
    on = early_warning.bench_of_organism(settings, recipe, tmp_path / "runs")
    (run,) = early_warning.all_runs(on, ["alignment"], 1)
    before = [s.log_probability for s in said(loaded[0], on.rows.held_out["safe"])]
    assert run.seen[0].answers["safe"] == pytest.approx(before, abs=1e-5)
    assert not (tmp_path / "runs" / "alignment").exists()
    assert [set(p.evidence) for p in run.looked] == [{"conflict", "update_conflict", "drift", "culprits"}] * 2
    assert run.told == ()


def test_evidence_is_whole_where_its_rule_gives_its_alarm() -> None:
    """On the toy that erodes from its first step."""
    world = toy(0)
    watch = Watch(early_warning.LIMITS)
    first: dict[str, int] = {}
    for probe in probes(world, lambda _, rng: world.eroding(32, rng, lean=0.5), seed=0):
        watch.see(probe)
        for rule, part in early_warning.evidence(watch).items():
            if part >= 1:
                first.setdefault(rule, probe.step)
    told = {a.rule: a.step for a in reversed(watch.alarms)}
    for rule in ("conflict", "update_conflict", "drift"):
        assert first[rule] == told[rule]
