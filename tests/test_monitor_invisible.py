"""A monitored run is the unmonitored run, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import build, with_lora
from loops import SAFETY, TEXTS, flattened, padded, tiny
from torch import nn

import graddiag

STEPS = 3
CLIP = 0.5  # of the norm: below that of every step here


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def gpt2(tokenizer):
    """With dropout in attention, embeddings and residuals."""
    return build("gpt2", vocabulary=len(tokenizer), context=256).float()


def checkpointed(reentrant):
    def make(tokenizer):
        model = gpt2(tokenizer)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        return model

    return make


def adapted(tokenizer):
    return with_lora(build("llama", vocabulary=len(tokenizer), context=256).float())


def trained(make, tokenizer, *, monitored, inside=False, watched=True, packed=False, **settings):
    """The model, the optimizer, the gradients before each step, and the next random number after some steps."""
    model = make(tokenizer).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(3)
    seen = []

    def finish():
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.zero_grad()

    monitor = None
    if monitored:
        given = {"optimizer": optimizer} if watched else {"accumulation": 2}
        monitor = graddiag.Monitor(model, tokenizer, safety=SAFETY, every=2, strict=True, **given, **settings)
    for _ in range(STEPS):
        for k, texts in enumerate((TEXTS[:2], TEXTS[2:])):
            batch = flattened(tokenizer, texts, told_by="position_ids") if packed else padded(tokenizer, texts)
            if monitor is None:
                (model(**batch).loss / 2).backward()
                if k == 1:
                    finish()
                continue
            with monitor.step(batch):
                (model(**batch).loss / 2).backward()
                if k == 1 and inside:
                    finish()
            if k == 1 and not inside:
                finish()
    return model, seen, torch.rand(()), monitor


def check_same(one, other):
    for (name, a), b in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert one[2] == other[2]


@pytest.mark.parametrize(
    ("make", "inside", "watched"),
    [
        *((gpt2, inside, watched) for inside in (True, False) for watched in (True, False)),
        (adapted, True, True),
        (checkpointed(True), False, True),
        (checkpointed(False), False, True),
    ],
)
def test_weights_gradients_and_random_numbers_are_those_of_an_unmonitored_run(tokenizer, make, inside, watched):
    found = trained(make, tokenizer, monitored=True, inside=inside, watched=watched)
    check_same(found, trained(make, tokenizer, monitored=False))
    assert [p.step for p in found[3].probes] == [0, 2]
    assert all(len(p.ids) == len(TEXTS) for p in found[3].probes)


def test_the_built_in_model_is_trained_the_same_on_packed_rows(tokenizer):
    found, plain = (trained(lambda _: tiny()[0], tokenizer, monitored=m, packed=True) for m in (True, False))
    check_same(found, plain)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [len(getattr(m, k)) for m in model.modules() for k in kinds]
    return sum(modules) + sum(len(p._backward_hooks or {}) for p in model.parameters())


def test_hooks_are_there_inside_a_probed_step_only(tokenizer):
    model = gpt2(tokenizer).train()
    monitor = graddiag.Monitor(model, tokenizer, safety=SAFETY, every=2, strict=True)
    found = []
    for _ in range(3):
        before = hooks_of(model)
        with monitor.step():
            found.append((before, hooks_of(model)))
            model(**padded(tokenizer)).loss.backward()
    assert [(a, b > 0) for a, b in found] == [(0, True), (0, False), (0, True)]
    assert hooks_of(model) == 0


def test_modes_and_what_is_trained_stay_as_they_are(tokenizer):
    model = adapted(tokenizer).train()
    next(m for m in model.modules() if isinstance(m, nn.Dropout)).eval()
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    monitor = graddiag.Monitor(model, tokenizer, safety=SAFETY, strict=True)
    with monitor.step():
        assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before
        assert all(p.grad is None for p in model.parameters())
        model(**padded(tokenizer)).loss.backward()
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before


def test_what_a_forward_pass_counts_is_counted_once(tokenizer):
    model = gpt2(tokenizer).train()
    model.register_buffer("seen", torch.zeros(()))

    def count(layer, *_):
        if layer.training:
            model.seen += 1

    model.transformer.h[0].register_forward_hook(count)
    monitor = graddiag.Monitor(model, tokenizer, safety=SAFETY, strict=True)
    with monitor.step():
        model(**padded(tokenizer)).loss.backward()
    assert model.seen == 1


def test_gradients_that_were_there_before_stay(tokenizer):
    model, batch = gpt2(tokenizer).eval(), padded(tokenizer)
    model(**batch).loss.backward()
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    monitor = graddiag.Monitor(model, tokenizer, safety=SAFETY, strict=True)
    with monitor.step():
        model(**batch).loss.backward()
    other(**batch).loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True))
