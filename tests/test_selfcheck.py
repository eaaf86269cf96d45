"""Every check of selfcheck finds the defect that it is for, and passes on models that have none."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import build, with_lora
from defects import Neighbours, Past, Twice, with_stray_parameter, with_up_projection, without_mask, without_positions
from test_extractor import state_of
from transformers.models.llama import modeling_llama

from graddiag.blocks import select_blocks
from graddiag.checks import DTYPE_LIMIT, Bench, check_dtype
from graddiag.coverage import sample_of
from graddiag.encoding import Encoded
from graddiag.errors import DataError, UsageError
from graddiag.models import load_model
from graddiag.readings import by_hooks
from graddiag.selfcheck import selfcheck

CONTEXT = 512  # tokens: enough for the built-in prompts, byte by byte


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("tiny")[1]


def model_for(tokenizer, name="llama", *, context=CONTEXT, **settings):
    plain = "llama" if name == "llama-lora" else name
    model = build(plain, vocabulary=len(tokenizer), context=context, **settings)
    return (with_lora(model) if name == "llama-lora" else model).float()


def statuses(found):
    return {c.name: c.status for c in found.checks}


def failed(found):
    return {n for n, status in statuses(found).items() if status == "fail"}


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "gpt2", "opt", "qwen3-moe", "llama-lora"])
def test_healthy_models_pass_and_are_left_as_they_were(tokenizer, name):
    model = model_for(tokenizer, name).train()
    before, attention = state_of(model), model.config._attn_implementation
    found = selfcheck(model, tokenizer, blocks=None if name == "llama-lora" else ["*"])
    assert set(statuses(found).values()) == {"pass"}, found.lines()
    assert found.passed
    assert state_of(model) == before
    assert model.config._attn_implementation == attention


def test_a_linear_weight_that_is_used_past_its_module_fails_with_the_reason_and_the_rest_is_not_run(tokenizer):
    found = selfcheck(with_up_projection(model_for(tokenizer), Past), tokenizer)
    assert failed(found) == {"hooks"}
    assert found.checks[0].value is None
    assert "up_proj.inner.weight" in found.checks[0].detail
    assert "torch.compile" in found.checks[0].mend
    assert [statuses(found)[n] for n in ("batch", "padding", "dtype", "attention")] == ["not run"] * 4
    assert not found.passed


def test_a_compiled_model_fails_with_the_reason(tokenizer):
    found = selfcheck(torch.compile(model_for(tokenizer), backend="eager"), tokenizer)
    assert failed(found) == {"hooks"}
    assert "OptimizedModule" in found.checks[0].detail


def test_half_a_gradient_is_found_and_its_block_is_named(tokenizer):
    found = selfcheck(with_up_projection(model_for(tokenizer), Twice), tokenizer)
    assert failed(found) == {"hooks"}
    assert found.checks[0].value == pytest.approx(0.5, abs=0.3), "each use makes about half of the gradient"
    assert "model.layers.1.mlp.up_proj.inner.weight" in found.checks[0].mend


def test_a_module_that_looks_at_its_batch_neighbours_is_found(tokenizer):
    found = selfcheck(with_up_projection(model_for(tokenizer), Neighbours), tokenizer)
    assert {"batch"} <= failed(found) <= {"batch", "padding"}
    assert "--batch-tokens 1" in next(c.mend for c in found.checks if c.name == "batch")


@pytest.mark.parametrize(("name", "defect"), [("llama", without_mask), ("gpt2", without_positions)])
def test_a_model_that_ignores_mask_or_positions_is_found(tokenizer, name, defect):
    assert failed(selfcheck(defect(model_for(tokenizer, name)), tokenizer)) == {"padding"}


def test_a_dtype_too_coarse_for_the_difference_of_a_pair_is_found(tokenizer, make_rows):
    (row,) = make_rows(1, longest=600)
    assert len(row.tokens) > 200, "so long that one other token changes the gradient little"
    tokens = row.tokens.copy()
    tokens[0] = tokens[0] % 63 + 1
    rows = (row, Encoded("other", "c", tokens, row.start))
    values = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = model_for(tokenizer, context=600).to(dtype)
        blocks = select_blocks(model)
        bench = Bench(model, tokenizer, blocks, blocks, rows, (0, 1))
        check = check_dtype(bench, [r for one in rows for r in by_hooks(model, blocks, [one])])
        assert check.limit == DTYPE_LIMIT
        values[dtype] = check
    assert values[torch.float32].status == "pass"
    assert values[torch.bfloat16].status == "fail"
    assert values[torch.bfloat16].mend == "--dtype float32"


def test_the_widest_dtype_has_nothing_to_be_compared_with_and_says_so(tokenizer):
    check = selfcheck(model_for(tokenizer).double(), tokenizer).checks[3]
    assert (check.name, check.status) == ("dtype", "not run")
    assert "widest" in check.detail


def test_an_attention_implementation_that_differs_is_found(tokenizer, monkeypatch):
    eager = modeling_llama.eager_attention_forward

    def wrong(module, query, key, value, mask, scaling, **more):
        return eager(module, query, key, value, mask, scaling * 1.1, **more)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", wrong)
    assert failed(selfcheck(model_for(tokenizer), tokenizer)) == {"attention"}


def test_an_attention_implementation_that_the_model_has_not_is_not_run(tokenizer):
    model = model_for(tokenizer, attn_implementation="eager")
    model.__class__ = type("OnlyEager", (type(model),), {"_supports_sdpa": False})
    found = selfcheck(model, tokenizer)
    check = next(c for c in found.checks if c.name == "attention")
    assert check.status == "not run"
    assert "sdpa cannot be had" in check.detail
    assert found.passed
    assert model.config._attn_implementation == "eager"


def test_special_tokens_that_the_template_doubles_are_found():
    for times, wanted in ((1, set()), (2, {"special tokens"})):
        tokenizer = load_model("tiny")[1]
        tokenizer.chat_template = times * "<|pad|>" + tokenizer.chat_template
        found = selfcheck(model_for(tokenizer), tokenizer)
        assert failed(found) == wanted
    assert "<|pad|> twice" in next(c.detail for c in found.checks if c.name == "special tokens")


def test_matrices_of_the_layers_that_the_default_leaves_out_are_found_and_a_star_mends_it(tokenizer):
    model = model_for(tokenizer, "mixtral")
    found = selfcheck(model, tokenizer)
    assert failed(found) == {"coverage"}
    check = next(c for c in found.checks if c.name == "coverage")
    assert "model.layers.*.mlp.experts.gate_up_proj" in check.detail
    inside = [p for n, p in model.named_parameters() if ".layers." in n and p.dim() > 1]
    missed = [p for n, p in model.named_parameters() if ".mlp." in n]
    assert check.value == sum(p.numel() for p in missed) / sum(p.numel() for p in inside)
    assert "coverage" not in failed(selfcheck(model, tokenizer, blocks=["*"]))


def test_unused_blocks_and_blocks_that_take_the_slow_way_are_found(tokenizer):
    model = model_for(tokenizer)
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    assert failed(selfcheck(model, tokenizer)) == {"unused blocks"}
    found = selfcheck(with_stray_parameter(model_for(tokenizer)), tokenizer, blocks=["*"])
    assert failed(found) == {"single runs"}
    assert "model.layers.0.mlp.scale.a" in next(c.detail for c in found.checks if c.name == "single runs")


def test_what_is_not_finite_fails_and_json_stays_strict(tokenizer):
    model = model_for(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    found = selfcheck(model, tokenizer)
    assert {"hooks", "batch", "padding", "dtype", "attention"} <= failed(found)
    json.dumps(found.document(), allow_nan=False)


def test_the_sample_has_every_kind_of_block_at_different_depths_and_keeps_within_its_size(make_llama):
    blocks = select_blocks(make_llama(num_hidden_layers=8))
    sample = sample_of(blocks, elements=10**9)
    kinds = {b.block.name.split(".", 3)[3] for b in blocks}
    assert {b.block.name.split(".", 3)[3] for b in sample} == kinds
    assert len({b.block.name.split(".")[2] for b in sample}) > len(kinds) / 2
    smallest = sample_of(blocks, elements=0)
    assert [b.block.name for b in smallest] == [blocks[k].block.name for k in (0, len(blocks) // 2, len(blocks) - 1)]


def test_every_check_has_a_key_and_a_line(tokenizer):
    found = selfcheck(model_for(tokenizer), tokenizer)
    summary = found.summary()
    assert summary["selfcheck/failed"] == 0
    for check in found.checks:
        assert summary[f"selfcheck/{check.name.replace(' ', '_')}"] == check.value
        assert any(line.startswith(f"{check.name} ") and check.status in line for line in found.lines())


def test_lengths_and_blocks_that_cannot_be_are_refused(tokenizer):
    with pytest.raises(DataError, match="room for an answer"):
        selfcheck(model_for(tokenizer), tokenizer, max_length=9)
    with pytest.raises(UsageError, match=r"No block matches '\*\.oproj'"):
        selfcheck(model_for(tokenizer), tokenizer, blocks=["*.oproj"])
