"""Digests are equal exactly where weights, tokenizers or templates are."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY_DIGEST
from torch import nn

from graddiag.models import load_model, template_digest, tokenizer_digest, weights_digest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_digest_changes_with_any_weight_and_with_the_dtype(dtype: str) -> None:
    model, _ = load_model("tiny", dtype=dtype)
    parameters = list(model.parameters())
    seen = {weights_digest(model), TINY_DIGEST}
    for parameter in parameters:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1.0
        seen.add(weights_digest(model))
    assert len(seen) == len(parameters) + (1 if dtype == "float32" else 2)


def test_the_weights_digest_does_not_see_memory_layout_and_counts_a_tied_weight_once() -> None:
    model, _ = load_model("tiny", device="cpu")
    head = model.get_submodule("lm_head")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.data = module.weight.data.t().contiguous().t()
    assert weights_digest(model) == TINY_DIGEST
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(head.weight.detach().clone())  # equal, but no longer the same
    assert weights_digest(model) != TINY_DIGEST


def test_the_weights_digest_changes_when_two_weights_change_places() -> None:
    model, _ = load_model("tiny")
    first, second = (model.get_parameter(f"model.layers.{k}.mlp.up_proj.weight") for k in (0, 1))
    first.data, second.data = second.data, first.data
    assert weights_digest(model) != TINY_DIGEST


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_weights_digest_is_the_same_on_a_gpu() -> None:
    assert weights_digest(load_model("tiny", device="cuda")[0]) == TINY_DIGEST


def test_the_tokenizer_digest_sees_what_changes_tokens_and_nothing_else() -> None:
    _, tokenizer = load_model("tiny")
    first = tokenizer_digest(tokenizer)
    tokenizer(["short", "a longer text"], padding=True, truncation=True, max_length=4)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    assert tokenizer_digest(tokenizer) == first
    tokenizer.add_tokens(["word"])
    assert tokenizer_digest(tokenizer) != first


def test_the_tokenizer_digest_sees_the_end_token_which_a_template_may_print() -> None:
    _, tokenizer = load_model("tiny")
    first = tokenizer_digest(tokenizer)
    tokenizer.eos_token = "<|im_start|>"
    assert tokenizer_digest(tokenizer) != first


def test_no_template_and_an_empty_one_have_the_same_digest() -> None:
    _, tokenizer = load_model("tiny")
    own = template_digest(tokenizer)
    tokenizer.chat_template = None
    none = template_digest(tokenizer)
    tokenizer.chat_template = ""
    assert template_digest(tokenizer) == none != own
