"""What must not change a gradient of any architecture: neighbours, padding, attention, precision, training settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import build
from reference import row_gradients
from test_architectures import NAMES, model_of, scale_of
from test_extractor import ALONE, SINGLE, extractor_for
from torch import nn

from graddiag.errors import UsageError

# Against another computation the scale of rounding is the whole gradient: OPT's key bias has a gradient of exactly 0.
OF_WHOLE = 1e-2
EXACT = 1e-10
DROPOUT = {"gpt2": "resid_pdrop", "opt": "dropout", "gpt-neox": "hidden_dropout"}


def worst(found, oracles, floor=None):
    """The largest difference of a row's block, relative to the block's norm, or to `floor` of the whole."""
    gaps = []
    for i, oracle in enumerate(oracles):
        whole = sum(g.square().sum() for g in oracle.values()) ** 0.5
        for block, g in found.items():
            scale = scale_of(oracle, block) if floor is None else max(oracle[block].norm().item(), floor * whole.item())
            gaps.append((torch.from_numpy(g[i]) - oracle[block].flatten()).norm().item() / scale)
    return max(gaps)


def gradients(model, rows, patterns=("*",)):
    return extractor_for(model, patterns).measure(rows).gradients


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_alone_and_in_a_batch(name, make_rows):
    model, rows = model_of(name), make_rows(4)
    assert worst(gradients(model, rows), [row_gradients(model, [row])[0] for row in rows]) < ALONE


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_left_with_mask_and_positions_changes_nothing(name, make_rows):
    model, rows = model_of(name), make_rows(4)
    assert len({len(r.tokens) for r in rows}) > 1, "something is padded"
    assert worst(gradients(model, rows), row_gradients(model, rows, left=True)) < ALONE


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_within_its_rounding(name, make_rows):
    model, rows = model_of(name), make_rows(3)
    oracle = row_gradients(model, rows)
    assert worst(gradients(model.float(), rows), oracle, floor=OF_WHOLE) < SINGLE


@pytest.mark.parametrize("name", NAMES)
def test_either_attention_is_exact_and_both_give_the_same(name, make_rows):
    rows, found = make_rows(3), {}
    for attention in ("sdpa", "eager"):
        model = model_of(name, attn_implementation=attention)
        assert model.config._attn_implementation == attention
        oracle = row_gradients(model, rows)
        found[attention] = gradients(model, rows)
        # Gemma multiplies by its norms' weights in float32, so these are sums in float32.
        assert worst(found[attention], oracle) < (ALONE if name == "gemma3" else EXACT)
    # Eager attention has its softmax in float32.
    assert worst(found["sdpa"], oracle, floor=OF_WHOLE) < ALONE


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("name", ["llama-tied", "qwen3-moe", "opt"])
def test_gradient_checkpointing_changes_nothing(name, mode, make_rows):
    rows = make_rows(3)
    wanted = gradients(model_of(name), rows)
    model = model_of(name).train()
    model.gradient_checkpointing_enable({"use_reentrant": mode == "reentrant"})
    for block, g in gradients(model, rows).items():
        assert np.array_equal(g, wanted[block]), block
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_of_a_model_in_training_is_off(name, make_rows):
    rows = make_rows(3)
    wanted = gradients(model_of(name), rows)
    model = build(name, change={DROPOUT[name]: 0.5}).train()
    plain = [row_gradients(model, rows)[0] for _ in range(2)]
    assert any(not torch.equal(plain[0][b], plain[1][b]) for b in plain[0]), "dropout is random outside of graddiag"
    for block, g in gradients(model, rows).items():
        assert np.array_equal(g, wanted[block]), block
    assert model.training


def test_gemma_scales_its_embedding_and_the_gradient_too(make_rows):
    model, rows = build("gemma3", change={"tie_word_embeddings": False}), make_rows(3)
    scale = model.model.embed_tokens.embed_scale.item()
    assert scale == pytest.approx(24**0.5, rel=1e-2)
    name = "model.embed_tokens.weight"
    found = gradients(model, rows, [name])[name]
    assert worst({name: found}, row_gradients(model, rows)) < EXACT


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_the_row_that_pads_has_no_gradient_from_the_embedding(name, make_rows):
    model, rows = build(name), make_rows(3)
    embedding = model.model.embed_tokens
    embedding.padding_idx = 7
    for k, row in enumerate(rows):
        row.tokens[k : k + 2] = 7
    block = "model.embed_tokens.weight"
    found = gradients(model, rows, [block])
    oracle = row_gradients(model, rows)
    assert worst(found, oracle) < EXACT
    at_padding = found[block].reshape(3, *embedding.weight.shape)[:, 7]
    assert at_padding.any() == (name == "llama-tied"), "a tied head has a gradient there all the same"


class Again(nn.Module):
    """Calls a module twice, with another input the second time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **more):
        first = self.inner(*args, **more)
        return 0.6 * first + 0.4 * self.inner(args[0].flip(-1) if args[0].is_floating_point() else args[0] // 2, **more)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc"),
        ("gpt2", "transformer.h.1.ln_2"),
        ("llama", "model.layers.1.post_attention_layernorm"),
        ("gemma3", "model.layers.1.pre_feedforward_layernorm"),
        ("llama", "model.embed_tokens"),
        ("llama-tied", "model.embed_tokens"),
        ("opt", "model.decoder.layers.0.fc1"),
        ("mixtral", "model.layers.1.mlp"),
    ],
)
def test_a_module_of_any_kind_that_is_called_twice_sums_its_calls(name, path, make_rows):
    model, rows = build(name), make_rows(3)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, Again(model.get_submodule(path)))
    patterns = [n for n, _ in model.named_parameters() if n.startswith(path)]
    ex = extractor_for(model, patterns)
    found = ex.measure(rows).gradients
    assert not any("one backward pass" in n for n in ex.notes)
    assert worst(found, row_gradients(model, rows)) < (ALONE if name == "gemma3" else EXACT)


def test_a_compiled_model_is_refused(make_rows):
    with pytest.raises(UsageError, match="OptimizedModule is no transformers causal LM"):
        extractor_for(torch.compile(build("llama"), backend="eager"))


def test_a_module_that_was_compiled_in_place_is_exact_all_the_same(make_rows):
    model, rows = build("llama"), make_rows(3)
    oracle = row_gradients(model, rows)
    model.model.layers[0].mlp.compile(backend="eager")
    assert worst(gradients(model, rows), oracle) < EXACT
