"""A long run begins with a check of one short row, and stops before anything else where that fails."""

from __future__ import annotations

import pytest
import torch
from architectures import build
from defects import Twice, with_up_projection
from test_extractor import extractor_for

import graddiag
from graddiag import startcheck
from graddiag.errors import DataError
from graddiag.models import load_model
from graddiag.pipeline import compare, extract_to
from graddiag.startcheck import TARGETS, check_start, shortened, spread

ROWS = [{"id": f"{k}", "prompt": "Say it. " * k, "completion": "it " * 20} for k in (3, 1, 2)]
MIDDLE = "model.layers.1.mlp.up_proj.inner.weight"


@pytest.fixture
def half():
    """A model of which the hooks see half of one block's gradient, and its tokenizer."""
    tokenizer = load_model("tiny")[1]
    return with_up_projection(build("llama", vocabulary=len(tokenizer), context=512).float(), Twice), tokenizer


def test_runs_stop_at_once_and_name_block_difference_and_way_out(half, tmp_path):
    how = {"model": half[0], "tokenizer": half[1], "blocks": [MIDDLE]}
    message = rf"gradient of {MIDDLE}: .* by 0\.\d+ of its size on the row '1'; .*0\.001.*--blocks.*graddiag selfcheck"
    with pytest.raises(DataError, match=message):
        extract_to(ROWS, out=tmp_path / "a", **how)
    with pytest.raises(DataError, match=message):
        compare(ROWS, ROWS, out=tmp_path / "b", figures=False, **how)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_librarys_extract_has_no_check_inside(half):
    assert len(graddiag.extract(*half, ROWS, blocks=[MIDDLE])) == len(ROWS)


def test_healthy_models_pass_and_are_checked_once_on_the_shortest_row(make_rows, monkeypatch):
    rows = make_rows(5, longest=40)
    ex = extractor_for(build("gpt2"), ["*"])
    seen = []
    real = startcheck.by_autograd
    monkeypatch.setattr(startcheck, "by_autograd", lambda m, b, r: seen.append((b, r)) or real(m, b, r))
    check_start(ex, rows)
    check_start(ex, rows)
    ((blocks, (row,)),) = seen
    assert row.id == min(rows, key=lambda r: len(r.tokens)).id
    assert [b.block.name for b in blocks] == [ex.blocks[k].block.name for k in (0, len(ex.blocks) // 2, -1)]


def test_a_row_that_is_not_finite_is_left_to_those_who_count_them(make_rows):
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    check_start(extractor_for(model), make_rows(2))


def test_a_shortened_row_keeps_its_prompt_and_first_targets_and_counts_the_rest(make_rows):
    for row in make_rows(6, longest=90):
        short = shortened(row)
        assert short.tokens.tolist() == row.tokens[: row.start + TARGETS].tolist()
        assert len(short.tokens) + short.n_cut == len(row.tokens)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_spread_has_both_ends_and_nothing_twice(n):
    blocks = extractor_for(build("gpt2"), ["*"]).blocks[:n]
    found = spread(blocks)
    assert {found[0].block.name, found[-1].block.name} == {blocks[0].block.name, blocks[-1].block.name}
    assert len({b.block.name for b in found}) == len(found) == min(n, 3)


def test_special_tokens_that_the_template_doubles_stop_a_comparison_and_not_those_in_a_text(tmp_path):
    model, tokenizer = load_model("tiny")
    how = {"model": model, "tokenizer": tokenizer, "blocks": ["*.down_proj"], "figures": False}
    own = [{**ROWS[0], "completion": "<|pad|><|pad|>"}, *ROWS[1:]]
    compare(own, ROWS, out=tmp_path / "a", **how)
    tokenizer.chat_template = "<|pad|><|pad|>" + tokenizer.chat_template
    with pytest.raises(DataError, match=r"special token '<\|pad\|>' twice side by side.*chat template"):
        compare(ROWS, ROWS, out=tmp_path / "b", **how)
    assert not (tmp_path / "b").exists()
