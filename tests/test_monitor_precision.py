"""Mixed precision: the same training, rows as exact as its rounding allows, and steps that a scaler leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import relative
from loops import TEXTS, padded, tiny, wanted_of, watch
from torch import nn
from trainers import callback, same_weights, trainer

# bfloat16 keeps 8 bits: each factor of a product is off by up to 1 part in 256, at random, and a few layers add up to a
# few of these; a term that is missing shows in a tenth or more.
ROUNDING = 3e-2
STEPS = 3


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def halved():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def trained(tokenizer, *, monitored, around=False, scaled=None, broken=(), **settings):
    """Weights after some steps, the probes; the autocast is around the step, or inside it. In the steps `broken` a
    gradient is not finite."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scaled or 1.0, growth_interval=10**6, enabled=scaled is not None)
    monitor = None
    if monitored:
        monitor = watch(
            model, tokenizer, every=1, optimizer=optimizer, scale=scaler.get_scale if scaled else None, **settings
        )  # fmt: skip

    def forward(batch):
        with halved():
            return model(**batch).loss

    for k in range(STEPS + len(broken)):
        batch = padded(tokenizer)
        if monitor is None:
            loss = forward(batch)
            scaler.scale(loss).backward()
        elif around:
            with halved(), monitor.step(batch):
                loss = model(**batch).loss
                scaler.scale(loss).backward()
        else:
            with monitor.step(batch):
                loss = forward(batch)
                scaler.scale(loss).backward()
        if k in broken:
            model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, monitor


def check_rows(probe, wanted):
    for found, numbers in zip((probe.dots, probe.norms, probe.losses), wanted, strict=True):
        assert relative(found, numbers) < ROUNDING


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("scaled", [None, 1024.0])
def test_autocast_trains_the_same_and_rows_are_those_of_full_precision(tokenizer, around, scaled):
    model, monitor = trained(tokenizer, monitored=True, around=around, scaled=scaled)
    plain, _ = trained(tokenizer, monitored=False, scaled=scaled)
    assert same_weights(model, plain)
    check_rows(monitor.probes[0], wanted_of(tiny()[0], tokenizer))
    assert [p.step for p in monitor.probes] == list(range(STEPS))
    assert not any(n for p in monitor.probes for n in p.notes)
    assert monitor.alarms == []


def test_what_a_scaler_multiplied_the_gradient_by_is_undone(tokenizer):
    scaled, plain = (trained(tokenizer, monitored=True, scaled=s)[1].probes[-1] for s in (2.0**14, None))
    for mine, theirs in ((scaled.gradient, plain.gradient), (scaled.update, plain.update)):
        # A power of 2 changes no bit of a product; only sums of the logits' smallest gradients are rounded elsewhere.
        assert relative(list(mine.dot.values()), list(theirs.dot.values())) < ROUNDING
        assert relative(list(mine.norm.values()), list(theirs.norm.values())) < ROUNDING


def test_the_trainers_own_bfloat16_trains_the_same(tokenizer, tmp_path):
    watched = callback(every=1)
    how = {"max_steps": 2, "bf16": True}
    monitored, plain = tiny()[0], tiny()[0]
    trainer(monitored, tokenizer, tmp_path, watched, **how).train()
    trainer(plain, tokenizer, tmp_path, **how).train()
    assert same_weights(monitored, plain)
    (first, _), wanted = watched.monitor.probes, wanted_of(tiny()[0], tokenizer)
    assert relative(np.sort(first.norms), np.sort(wanted[1])) < ROUNDING
    assert len(first.ids) == len(TEXTS)


def test_a_step_that_the_scaler_leaves_out_is_not_counted_and_no_alarm(tokenizer):
    model, monitor = trained(tokenizer, monitored=True, scaled=1024.0, broken=(0, 2))
    plain, _ = trained(tokenizer, monitored=False, scaled=1024.0, broken=(0, 2))
    assert same_weights(model, plain)
    assert monitor.steps == STEPS
    assert [(p.step, p.update is None) for p in monitor.probes] == [(0, True), (1, True), (2, False)]
    assert monitor.alarms == []


def overflowing(tokenizer, *, scale, nan=False, tries=40):
    """Steps in float16 whose scale begins far too high, until the optimizer has stepped three times; or whose loss is
    not finite, so that it never does."""
    model, _ = tiny()
    if nan:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    monitor = watch(model, tokenizer, every=1, optimizer=optimizer, scale=scaler.get_scale, action="log")
    for _ in range(tries):
        if monitor.steps == STEPS:
            break
        with monitor.step(batch := padded(tokenizer)):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return monitor


def test_gradients_beyond_the_range_that_a_scale_makes_are_no_alarm_and_said(tokenizer):
    monitor = overflowing(tokenizer, scale=2.0**24)
    assert monitor.steps == STEPS
    assert monitor.alarms == []
    assert [p.step for p in monitor.probes] == list(range(STEPS))
    first, *later = monitor.probes
    check_rows(first, wanted_of(tiny()[0], tokenizer))
    assert first.update is not None
    assert any("beyond the range" in n for n in first.notes)
    assert not any(p.notes for p in later)


def test_one_gradient_beyond_the_range_is_no_wrong_row(tokenizer):
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    passes = []

    def last_one_overflows(grad):
        grad = grad.clone()
        grad[-1, -1, 0] = torch.inf
        return grad

    def watch_out(module, args, output):
        if model.training:
            passes.append(output)
            if len(passes) == 2:  # the loop's own: the first is the check's
                output.register_hook(last_one_overflows)

    model.model.layers[0].self_attn.q_proj.register_forward_hook(watch_out)  # in the lowest block, which is checked
    monitor = watch(model, tokenizer, every=1, optimizer=optimizer, scale=lambda: 2.0)
    for stepped in (False, True):
        with monitor.step(batch := padded(tokenizer)):
            (2 * model(**batch).loss).backward()
        if stepped:
            optimizer.step()
        optimizer.zero_grad()
    assert len(passes) == 4  # checked again
    assert monitor.failed is None
    assert [(p.step, p.nonfinite) for p in monitor.probes] == [(0, 0)]


def test_a_loss_that_is_not_finite_is_an_alarm_whatever_the_scale(tokenizer):
    monitor = overflowing(tokenizer, scale=2.0**14, nan=True, tries=3)
    assert [a.rule for a in monitor.alarms] == ["nonfinite"]


def test_gradients_that_no_scale_explains_are_an_alarm(tokenizer):
    monitor = overflowing(tokenizer, scale=1.0, nan=True, tries=3)
    assert [a.rule for a in monitor.alarms] == ["nonfinite"]
