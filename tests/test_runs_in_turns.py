"""Blocks that take turns on the tiny model: the same numbers as at once, also after an interruption."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest
from measured_runs import SMALL, rows_of, run, trained_tiny

from graddiag import extraction
from graddiag.blocks import select_blocks
from graddiag.errors import UsageError
from graddiag.interrupt import Interrupted
from graddiag.models import load_model
from graddiag.pipeline import extract_to, plan_compare
from graddiag.reporting import report
from graddiag.store import read_signals, verify_all
from graddiag.turns import groups


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def budget_for(model, turns, bytes_per_parameter):
    """The smallest budget under which the blocks take this many turns."""
    blocks = [b.block for b in select_blocks(model, SMALL)]
    sizes = [bytes_per_parameter * math.prod(b.shape) for b in blocks]
    budgets = sorted({sum(sizes[i:j]) for i in range(len(sizes)) for j in range(i + 1, len(sizes) + 1)})
    return next(b for b in budgets if b >= max(sizes) and len(groups(blocks, b, bytes_per_parameter)) == turns)


def same_numbers(found, wanted):
    """Whether two tables have the same numbers up to the rounding of float32."""
    assert (found.ids, found.space, found.blocks) == (wanted.ids, wanted.space, wanted.blocks)
    for name in ("norms", "gradients", "reference_dot", "adam_dot", "adam_norm", "adam_step_norm"):
        for block, values in getattr(wanted, name).items():
            assert np.abs(getattr(found, name)[block] - values).max() <= 1e-6 * np.abs(values).max(), (name, block)
    for a, b in zip(found.token_alignment or (), wanted.token_alignment or (), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_blocks_that_take_turns_give_the_numbers_of_one_turn(tmp_path):
    loaded, optimizer, _ = trained_tiny(tmp_path / "checkpoint")
    how = {"optimizer": optimizer, "token_scores": True, "batch_tokens": 500}
    budget = budget_for(loaded[0], 3, 16)  # sum, mean and two moments in float32
    once, turns = run(tmp_path / "once", loaded, **how), run(tmp_path / "turns", loaded, mean_memory=budget, **how)
    assert len(list((tmp_path / "turns").glob("turn-*"))) == 3
    assert not (tmp_path / "once" / "turn-1").exists()
    for role in ("left", "right", "safety", "control-benign"):
        same_numbers(*(read_signals(tmp_path / out / role) for out in ("turns", "once")))
    assert turns.summary().keys() == once.summary().keys()
    for key, value in once.summary().items():
        assert turns.summary()[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key
    assert report(tmp_path / "turns", figures=False).summary() == turns.summary()
    checked = verify_all(tmp_path / "turns")
    assert len(checked) == 4 * 6, "five stores and means in each turn, five stores and the audit together"
    assert not any(checked.values())


def test_turns_can_be_continued_and_need_not_be_asked_for_again(tmp_path, tiny, monkeypatch):
    budget = f"{budget_for(tiny[0], 3, 8)} B"  # sum and mean in float32
    straight = run(tmp_path / "straight", tiny, batch_tokens=500, mean_memory=budget)
    calls, measure = [], extraction.Extractor.measure

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == stop.after:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(extraction.Extractor, "measure", stop)
    stop.after = 0
    run(tmp_path / "count", tiny, batch_tokens=500, mean_memory=budget)
    whole, stop.after = len(calls), len(calls) // 2
    calls.clear()
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", tiny, batch_tokens=500, mean_memory=budget)
    stop.after = 0
    continued = run(tmp_path / "broken", tiny, batch_tokens=500)
    assert len(calls) == whole + 1, "nothing finished was measured again, but one row is checked twice"
    for key, value in straight.summary().items():
        assert continued.summary()[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    calls.clear()
    assert run(tmp_path / "broken", tiny, batch_tokens=500).summary() == continued.summary()
    assert not calls


def test_one_set_can_be_extracted_in_turns_and_a_plan_counts_them(tmp_path, tiny):
    how = {"safety": rows_of("safety", 4), "model": tiny[0], "tokenizer": tiny[1], "blocks": SMALL, "dim": 16}
    budget = budget_for(tiny[0], 3, 8)
    turns = extract_to(rows_of("insecure", 4), mean_memory=budget, out=tmp_path / "turns", **how).signals
    same_numbers(turns, extract_to(rows_of("insecure", 4), out=tmp_path / "once", **how).signals)
    same_numbers(read_signals(tmp_path / "turns"), turns)
    cost = plan_compare(rows_of("insecure", 3), rows_of("educational", 3), mean_memory=budget, **how)
    assert cost.summary()["plan/turns"] == 3
    assert any("in 3 turns" in line for line in cost.lines())
    one = plan_compare(rows_of("insecure", 3), rows_of("educational", 3), **how)
    assert one.turns == 1
    assert cost.memory < one.memory
    with pytest.raises(UsageError, match=r"--mean-memory 10 does not hold 'model\.layers\.0.* alone, which needs \d+"):
        extract_to(rows_of("insecure", 4), mean_memory="10 B", out=tmp_path / "none", **how)
