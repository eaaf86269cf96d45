"""Which parameters are measured: defaults, patterns, refusals."""

from __future__ import annotations

import pytest

from graddiag.blocks import select_blocks
from graddiag.errors import UsageError

KINDS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def names(model, patterns=None):
    return [b.block.name for b in select_blocks(model, patterns)]


def test_by_default_the_linear_weights_inside_the_layers_in_model_order(make_llama):
    model = make_llama()
    found = names(model)
    order = [n for n, _ in model.named_parameters()]
    assert len(found) == 3 * len(KINDS)
    assert {n.split(".")[-2] for n in found} == KINDS
    assert found == sorted(found, key=order.index)
    assert all(b.block.shape == tuple(b.module.weight.shape) for b in select_blocks(model))


def test_a_pattern_matches_the_parameter_or_its_module(make_llama):
    model = make_llama()
    by_module, by_name = names(model, ["*.mlp.down_proj"]), names(model, ["*.mlp.down_proj.weight"])
    assert by_module == by_name == [f"model.layers.{k}.mlp.down_proj.weight" for k in range(3)]
    assert names(model, ["*.down_proj", "*.mlp.*"]) == names(model, ["*.mlp.*"]), "a block counts once"


def test_a_pattern_without_a_match_names_the_closest_blocks(make_llama):
    with pytest.raises(UsageError, match=r"No block matches '\*\.oproj'\. Closest: .*o_proj"):
        select_blocks(make_llama(), ["*.oproj"])


def test_other_kinds_of_parameter_are_refused_by_name(make_llama):
    with pytest.raises(UsageError, match=r"not weights of a linear layer.*'model.embed_tokens.weight'"):
        select_blocks(make_llama(), ["*"])
    tied = make_llama(tie_word_embeddings=True)
    with pytest.raises(UsageError, match=r"not weights of a linear layer.*embed_tokens"):
        select_blocks(tied, ["*embed*"])
    assert names(make_llama(), ["lm_head"]) == ["lm_head.weight"]
