"""The rows that a monitor captures in a training loop are those of one backward pass per example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import with_lora
from conftest import relative
from loops import (
    PROMPT,
    TEXTS,
    check,
    exact_model,
    flattened,
    mean_loss,
    one_step,
    own_gradients,
    padded,
    product,
    safety_gradient,
    tiny,
    trained_blocks,
    wanted_of,
    watch,
)
from torch import nn

import graddiag
from graddiag.data import read_set
from graddiag.encoding import Encoded, encode
from graddiag.errors import UsageError
from graddiag.store import read_signals

EXACT = 1e-10  # float64
ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_those_of_each_example_alone(tokenizer, side):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    check(one_step(model, watch(model, tokenizer), padded(tokenizer, side=side)), wanted, EXACT)


def test_rows_of_the_built_in_model_in_float32(tokenizer):
    model, _ = tiny()
    wanted = wanted_of(model, tokenizer)
    check(one_step(model, watch(model, tokenizer), padded(tokenizer), lambda m, b: m(**b).loss), wanted, ROUNDING)


def test_rows_of_adapters(tokenizer):
    model = with_lora(exact_model(tokenizer, "llama")).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wanted = wanted_of(model, tokenizer)
    probe = one_step(model, watch(model, tokenizer), padded(tokenizer))
    assert set(probe.safety_norms) == {n for n in trained_blocks(model) if "lora_" in n}
    check(probe, wanted, ROUNDING)  # a Llama has norms in float32 inside


@pytest.mark.parametrize("reentrant", [True, False])
def test_rows_under_gradient_checkpointing(tokenizer, reentrant):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    check(one_step(model, watch(model, tokenizer), padded(tokenizer)), wanted, EXACT)


@pytest.mark.parametrize("reentrant", [True, False])
def test_rows_of_a_loop_that_checkpoints_on_its_own(tokenizer, reentrant):
    class Twice(nn.Module):
        """A layer that is computed again, and knows nothing of transformers."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, *args, **kwargs):
            again = torch.utils.checkpoint.checkpoint
            return again(lambda y: self.inner(y, *args, **kwargs), x, use_reentrant=reentrant)

    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    names = trained_blocks(model)
    for layer in model.transformer.h:
        layer.mlp = Twice(layer.mlp)
    assert len(trained_blocks(model)) == len(names)
    probe = one_step(model, watch(model, tokenizer), padded(tokenizer))
    check(probe, wanted, EXACT)
    unchecked = [n for n in probe.notes if "No example could be checked" in n]
    assert len(unchecked) == reentrant  # no backward pass to chosen leaves goes through such a checkpoint


@pytest.mark.parametrize("told_by", ["seq_idx", "cu_seq_lens_q", "position_ids"])
def test_rows_of_a_batch_without_padding_are_told_apart(tokenizer, told_by):
    model = exact_model(tokenizer, "llama")  # a GPT-2 takes no such arguments
    wanted = wanted_of(model, tokenizer)
    batch = flattened(tokenizer, told_by=told_by)
    check(one_step(model, watch(model, tokenizer), batch), wanted, ROUNDING)


def test_several_packed_rows_are_told_apart(tokenizer):
    model = exact_model(tokenizer, "llama")
    twice = ("the same again", "and then some more")
    wanted = wanted_of(model, tokenizer, [*TEXTS, *twice])
    one, two = (flattened(tokenizer, t, told_by="position_ids") for t in (TEXTS, twice))
    width = one["input_ids"].shape[1]
    fill = {"input_ids": 0, "position_ids": 0, "labels": -100}
    wide = {k: nn.functional.pad(two[k], (0, width - two[k].shape[1]), value=v) for k, v in fill.items()}
    batch = {**one, **{k: torch.cat([one[k], wide[k]]) for k in fill}}
    check(one_step(model, watch(model, tokenizer), batch), wanted, ROUNDING)


def test_rows_with_dropout_are_those_of_the_masks_that_were_drawn(tokenizer):
    model = exact_model(tokenizer)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    names, batch = trained_blocks(model), padded(tokenizer)
    safety = safety_gradient(model, tokenizer, names)
    parameters = dict(model.named_parameters())
    wanted = []
    for k in range(len(TEXTS)):
        torch.manual_seed(5)
        one = torch.full_like(batch["labels"], -100)
        one[k] = batch["labels"][k]
        loss = mean_loss(model, {**batch, "labels": one})
        grads = torch.autograd.grad(loss, [parameters[n] for n in names])
        wanted.append(product(dict(zip(names, grads, strict=True)), safety))
    monitor = watch(model, tokenizer)
    torch.manual_seed(5)
    assert relative(one_step(model, monitor, batch).dots, wanted) < EXACT


def test_ids_are_those_of_saved_signals(tokenizer):
    model = exact_model(tokenizer)
    probe = one_step(model, watch(model, tokenizer), padded(tokenizer, side="left"))
    rows = [Encoded("", "", np.array(tokenizer(t)["input_ids"], dtype=np.int32), PROMPT) for t in TEXTS]
    assert probe.ids == tuple(r.digest for r in rows)


@pytest.mark.parametrize("projection", ["exact", "logra", "sjlt"])
def test_kept_rows_are_the_signals_of_extract(tokenizer, tmp_path, projection):
    model, _ = tiny()
    how = {"projection": projection, "dim": 64, "seed": 3, "blocks": ["*.up_proj", "*.down_proj"]}
    answers = [{"prompt": f"Question {k}", "completion": "Yes. " * (k + 1)} for k in range(3)]
    wanted = graddiag.extract(model, tokenizer, answers, **how)
    rows = encode(read_set(answers), tokenizer, max_length=256).rows
    batch = tokenizer.pad({"input_ids": [r.tokens.tolist() for r in rows]}, return_tensors="pt", padding_side="right")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for k, r in enumerate(rows):
        batch["labels"][k, : r.start] = -100
    monitor = watch(model, tokenizer, folder=tmp_path, **how)
    with monitor.step():
        model(**batch).loss.backward()
    found = read_signals(tmp_path / "rows" / "step-00000000")
    assert found.space == wanted.space
    assert found.provenance.weights == wanted.provenance.weights
    assert found.digests == wanted.digests == monitor.probes[0].ids
    assert relative(found.loss, wanted.loss) < ROUNDING
    for mine, theirs in zip(found.token_loss, wanted.token_loss, strict=True):
        assert relative(mine, theirs) < ROUNDING
    for b in wanted.blocks:
        assert relative(found.norms[b], wanted.norms[b]) < ROUNDING
        assert relative(found.gradients[b], wanted.gradients[b]) < ROUNDING


def test_rows_need_a_place_and_a_projection_without_a_reference(tokenizer, tmp_path):
    model, _ = tiny()
    with pytest.raises(UsageError, match="say where with folder"):
        watch(model, tokenizer, projection="logra")
    with pytest.raises(UsageError, match="exact, logra, sjlt, dense"):
        watch(model, tokenizer, projection="lowrank", folder=tmp_path)


def test_the_stand_in_of_low_rank_is_the_nearest_one(tokenizer):
    model = exact_model(tokenizer, "llama")
    names, rank = trained_blocks(model), 3
    rows = own_gradients(model, tokenizer, TEXTS, names)
    nearest, kept = {}, 0.0
    for n, m in safety_gradient(model, tokenizer, names).items():
        u, s, vt = torch.linalg.svd(m, full_matrices=False)
        nearest[n] = (u[:, :rank] * s[:rank]) @ vt[:rank]
        kept += float(s[:rank].square().sum())
    whole = safety_gradient(model, tokenizer, names)
    probe = one_step(model, watch(model, tokenizer, exact=False, rank=rank), padded(tokenizer))
    assert not probe.dots_exact
    assert probe.captured == pytest.approx(kept / product(whole, whole), rel=1e-3)
    assert relative(probe.dots, [product(r, nearest) for r in rows]) < 1e-2  # the power iteration stops early


def test_an_example_without_a_target_has_no_row_and_is_counted(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer, TEXTS[1:])
    batch = padded(tokenizer)
    batch["labels"][0] = -100
    probe = one_step(model, watch(model, tokenizer), batch)
    check(probe, wanted, EXACT)
    assert any(n.startswith("1 examples have no target") for n in probe.notes)
