"""Whatever the loop does with its loss, a row is the gradient of an example's own mean loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import relative
from loops import (
    TEXTS,
    check,
    exact_model,
    one_step,
    padded,
    product,
    safety_gradient,
    tiny,
    trained_blocks,
    wanted_of,
    watch,
)
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from graddiag.errors import DataError

EXACT = 1e-10  # float64
ROUNDING = 1e-5  # float32, in which transformers computes its own loss


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def test_a_sum_over_a_given_number_of_items_is_scaled_back(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    probe = one_step(
        model,
        watch(model, tokenizer),
        padded(tokenizer),
        lambda m, b: m(**b, num_items_in_batch=torch.tensor(1000)).loss,
    )
    check(probe, wanted, ROUNDING)


def mean_of_means(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return (losses.sum(1) / (batch["labels"][:, 1:] != -100).sum(1)).mean()


def test_a_loss_of_the_loops_own_is_read_off_its_logits(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    check(one_step(model, watch(model, tokenizer), padded(tokenizer), mean_of_means), wanted, EXACT)


def test_a_loss_that_is_no_mean_over_tokens_is_refused(tokenizer):
    def smoothed(model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        return nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], label_smoothing=0.2)

    model = exact_model(tokenizer)
    with pytest.raises(DataError, match="did not count alike"):
        one_step(model, watch(model, tokenizer), padded(tokenizer), smoothed)


def test_what_is_done_with_the_loss_afterwards_is_undone(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    names, batch = trained_blocks(model), padded(tokenizer)
    monitor = watch(model, tokenizer, scale=lambda: 1024.0)
    probe = one_step(model, monitor, batch, lambda m, b: m(**b).loss * 1024 / 4)
    check(probe, wanted, ROUNDING)
    safety = safety_gradient(model, tokenizer, names)
    parameters = dict(model.named_parameters())
    grads = {n: parameters[n].grad / 1024 for n in names}
    assert sum(probe.gradient.dot.values()) == pytest.approx(product(grads, safety), rel=EXACT)
    assert sum(x**2 for x in probe.gradient.norm.values()) == pytest.approx(product(grads, grads), rel=EXACT)


def test_an_accumulated_step_has_the_examples_of_all_its_batches(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    names = trained_blocks(model)
    safety = safety_gradient(model, tokenizer, names)
    monitor = watch(model, tokenizer, accumulation=2)
    for texts in (TEXTS[:1], TEXTS[1:]):
        assert not monitor.probes
        with monitor.step():
            (model(**padded(tokenizer, texts)).loss / 2).backward()
    (probe,) = monitor.probes
    check(probe, wanted, ROUNDING)
    grads = {n: dict(model.named_parameters())[n].grad for n in names}
    assert sum(probe.gradient.dot.values()) == pytest.approx(product(grads, safety), rel=EXACT)
    assert sum(x**2 for x in probe.gradient.norm.values()) == pytest.approx(product(grads, grads), rel=EXACT)
    assert monitor.steps == 1


def test_several_batches_inside_one_with_block_belong_to_one_step(tokenizer):
    model = exact_model(tokenizer)
    wanted = wanted_of(model, tokenizer)
    monitor = watch(model, tokenizer)
    with monitor.step():
        for texts in (TEXTS[:2], TEXTS[2:]):
            model(**padded(tokenizer, texts)).loss.backward()
    check(monitor.probes[0], wanted, ROUNDING)


def test_the_number_of_items_is_used_where_the_model_gives_no_logits(tokenizer):
    model, _ = tiny()
    wanted = wanted_of(model, tokenizer)
    forward = model.forward

    def fused(**given):
        output = forward(**given)
        return CausalLMOutput(loss=output.loss) if "labels" in given else output

    model.forward = fused
    monitor = watch(model, tokenizer)
    with monitor.step():
        model(**padded(tokenizer), num_items_in_batch=1000).loss.backward()
    (probe,) = monitor.probes
    assert relative(probe.dots, wanted[0]) < ROUNDING
    assert np.isnan(probe.losses).all()
    assert probe.nonfinite == 0
