"""What a monitor refuses, and that its own errors do not reach the training."""

from __future__ import annotations

import logging

import pytest
import torch
from architectures import build
from loops import (
    exact_model,
    flattened,
    padded,
    tiny,
    trained_blocks,
    watch,
    weights_of,
)

from graddiag.errors import DataError, UsageError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def test_errors_of_the_loop_pass_through_and_leave_no_hooks(tokenizer):
    model, _ = tiny()
    monitor = watch(model, tokenizer)

    def loop():
        with monitor.step():
            model(**padded(tokenizer))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert monitor.failed is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_of_the_monitor_turns_it_off_and_is_logged_once(tokenizer, caplog):
    model, _ = tiny()
    monitor = watch(model, tokenizer, every=1, strict=False)
    with caplog.at_level(logging.ERROR, "graddiag"):
        for _ in range(3):
            with monitor.step():
                loss = model(input_ids=padded(tokenizer)["input_ids"]).logits.mean()  # no labels anywhere
                loss.backward()
    assert "needs labels" in str(monitor.failed)
    assert len(caplog.records) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_a_strict_monitor_raises_its_errors(tokenizer):
    model, _ = tiny()
    with pytest.raises(DataError, match="needs labels"), watch(model, tokenizer).step():
        model(input_ids=padded(tokenizer)["input_ids"]).logits.mean().backward()


def test_a_step_without_a_backward_pass_is_refused(tokenizer):
    model, _ = tiny()
    with pytest.raises(DataError, match="no backward pass"), watch(model, tokenizer).step():
        model(**padded(tokenizer))


def attending_to_each_other(tokenizer):
    """Packed rows with a cache, for which transformers makes no mask between examples."""
    return {**flattened(tokenizer, told_by="position_ids"), "use_cache": True}


@pytest.mark.parametrize("watched", [True, False])
def test_rows_that_autograd_does_not_confirm_stop_before_the_first_step(tokenizer, watched):
    model = exact_model(tokenizer, "llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, tokenizer, strict=False, optimizer=optimizer if watched else None)
    before = weights_of(model, trained_blocks(model))

    def loop():
        with monitor.step():
            model(**attending_to_each_other(tokenizer)).loss.backward()
            optimizer.step()

    with pytest.raises(DataError, match="differs from that of its own backward pass"):
        loop()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_flattened_row_that_nothing_tells_apart_is_an_error(tokenizer):
    model, _ = tiny()
    batch = padded(tokenizer)
    flat = {k: batch[k].flatten()[None] for k in ("input_ids", "labels")}
    with pytest.raises(DataError, match="4 rows and the model was given 1"), watch(model, tokenizer).step(batch):
        model(**flat).loss.backward()


def test_a_compiled_model_is_refused(tokenizer):
    model, _ = tiny()
    with pytest.raises(UsageError, match="compiled"):
        watch(torch.compile(model), tokenizer)


@pytest.mark.parametrize(("in_place", "earlier"), [(True, False), (False, True)])
def test_a_model_compiled_behind_the_monitors_back_captures_nothing_and_that_is_said(tokenizer, in_place, earlier):
    model = build("llama", vocabulary=len(tokenizer), context=256, change={"num_hidden_layers": 1}).train()
    batch = padded(tokenizer)
    monitor = watch(model, tokenizer)
    if in_place:
        model.compile(backend="eager")
    loop = model if in_place else torch.compile(model, backend="eager")
    if earlier:
        loop(**batch)
    with pytest.raises(DataError, match=r"0 rows captured.*torch\.compile"), monitor.step():
        loop(**batch).loss.backward()
    torch._dynamo.reset()


def test_modules_that_are_passed_by_are_missed(tokenizer):
    model, _ = tiny()
    mlp, monitor = model.model.layers[0].mlp, watch(model, tokenizer)
    by_weight = torch.nn.functional.linear

    def fused(x):
        if not mlp.training:
            return type(mlp).forward(mlp, x)
        gate, up = by_weight(x, mlp.gate_proj.weight), by_weight(x, mlp.up_proj.weight)
        return by_weight(mlp.act_fn(gate) * up, mlp.down_proj.weight)

    mlp.forward = fused
    with pytest.raises(DataError, match=r"0 rows captured of 4 examples in '\S+.gate_proj.weight'"), monitor.step():
        model(**padded(tokenizer)).loss.backward()


def test_frozen_blocks_and_another_models_optimizer_are_refused(tokenizer):
    model, _ = tiny()
    model.model.layers[0].requires_grad_(False)
    with pytest.raises(UsageError, match="not trained"):
        watch(model, tokenizer, blocks=["*.0.mlp.*"])
    assert all(".0." not in n for n in watch_names(watch(model, tokenizer), model, tokenizer))
    with pytest.raises(UsageError, match="none of the 21 watched blocks"):
        watch(model, tokenizer, optimizer=torch.optim.SGD(tiny()[0].parameters(), lr=1))


def watch_names(monitor, model, tokenizer):
    with monitor.step():
        model(**padded(tokenizer)).loss.backward()
    return list(monitor.probes[0].safety_norms)
