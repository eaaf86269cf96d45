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
    assert all(b.block.shape == tuple(b.parameter.shape) for b in select_blocks(model))


def test_a_pattern_matches_the_parameter_or_its_module(make_llama):
    model = make_llama()
    by_module, by_name = names(model, ["*.mlp.down_proj"]), names(model, ["*.mlp.down_proj.weight"])
    assert by_module == by_name == [f"model.layers.{k}.mlp.down_proj.weight" for k in range(3)]
    assert names(model, ["*.down_proj", "*.mlp.*"]) == names(model, ["*.mlp.*"]), "a block counts once"


def test_a_pattern_without_a_match_names_the_closest_blocks(make_llama):
    with pytest.raises(UsageError, match=r"No block matches '\*\.oproj'\. Closest: .*o_proj"):
        select_blocks(make_llama(), ["*.oproj"])


def test_a_star_is_every_parameter_and_a_tied_one_counts_once(make_llama):
    for tied in (False, True):
        model = make_llama(tie_word_embeddings=tied)
        assert names(model, ["*"]) == [n for n, _ in model.named_parameters()]
        assert ("lm_head.weight" in names(model, ["*"])) == (not tied)


def test_heads_are_split_off_before_matching_and_refused_where_there_are_none(make_llama):
    found = names(make_llama(), ["*.o_proj[head=2]"])
    assert found == [f"model.layers.{k}.self_attn.o_proj.weight[head=2]" for k in range(3)]
    with pytest.raises(UsageError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' has no heads"):
        select_blocks(make_llama(), ["model.layers.0.mlp.up_proj[head=0]"])
    with pytest.raises(UsageError, match=r"No block matches '\*\.oproj\[head=0\]'"):
        select_blocks(make_llama(), ["*.oproj[head=0]"])
