"""When a monitor looks, and what it says of the batch, the update and the safety set."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from architectures import build
from conftest import relative
from loops import (
    SAFETY,
    TEXTS,
    exact_model,
    mean_loss,
    own_gradients,
    padded,
    product,
    safety_gradient,
    tiny,
    trained_blocks,
    watch,
    weights_of,
)

EXACT = 1e-10  # float64


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


def test_the_batch_gradient_is_the_mean_of_the_examples_over_tokens(tokenizer):
    model = exact_model(tokenizer)
    names, batch = trained_blocks(model), padded(tokenizer)
    rows, safety = own_gradients(model, tokenizer, TEXTS, names), safety_gradient(model, tokenizer, names)
    counts = (batch["labels"][:, 1:] != -100).sum(1).tolist()
    mean = {n: sum(c * r[n] for c, r in zip(counts, rows, strict=True)) / sum(counts) for n in names}
    with (monitor := watch(model, tokenizer)).step(batch):
        mean_loss(model, batch).backward()
    (probe,) = monitor.probes
    for n in names:
        assert probe.gradient.dot[n] == pytest.approx(product({n: mean[n]}, safety), rel=EXACT)
        assert probe.gradient.norm[n] == pytest.approx(product({n: mean[n]}, mean) ** 0.5, rel=EXACT)
        assert probe.safety_norms[n] == pytest.approx(product({n: safety[n]}, safety) ** 0.5, rel=EXACT)


@pytest.mark.parametrize("inside", [True, False])
def test_the_update_is_what_the_optimizer_subtracted(tokenizer, inside):
    model = exact_model(tokenizer)
    names = trained_blocks(model)
    safety = safety_gradient(model, tokenizer, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    monitor, before = watch(model, tokenizer, optimizer=optimizer), weights_of(model, names)
    with monitor.step(batch := padded(tokenizer)):
        mean_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if inside:
            optimizer.step()
    if not inside:
        assert not monitor.probes
        optimizer.step()
    (probe,) = monitor.probes
    after = weights_of(model, names)
    update = {n: before[n] - after[n] for n in names}
    assert probe.predicted_change == pytest.approx(-product(update, safety), rel=EXACT)
    assert probe.update.norm[names[0]] == pytest.approx(float(update[names[0]].norm()), rel=EXACT)


def test_a_small_step_changes_the_safety_loss_as_predicted(tokenizer):
    model = exact_model(tokenizer)
    optimizer = torch.optim.SGD([dict(model.named_parameters())[n] for n in trained_blocks(model)], lr=1e-5)
    monitor = watch(model, tokenizer, every=1, optimizer=optimizer)
    for _ in range(2):
        with monitor.step(batch := padded(tokenizer)):
            mean_loss(model, batch).backward()
        optimizer.step()
    first, second = monitor.probes
    change = (second.safety_losses - first.safety_losses).mean()
    assert change == pytest.approx(first.predicted_change, rel=1e-3)  # the second order is 1e-5 of the first


def test_probes_are_at_step_0_and_at_every_kth_step(tokenizer):
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = watch(model, tokenizer, every=3, optimizer=optimizer)
    for _ in range(8):
        with monitor.step():
            model(**padded(tokenizer)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [p.step for p in monitor.probes] == [0, 3, 6]
    assert monitor.steps == 8


def test_a_step_that_the_optimizer_leaves_out_has_no_update(tokenizer):
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = watch(model, tokenizer, every=1, optimizer=optimizer)
    for stepped in (False, True):
        with monitor.step():
            model(**padded(tokenizer)).loss.backward()
        if stepped:
            optimizer.step()
        optimizer.zero_grad()
    (probe,) = monitor.probes
    assert probe.update is None
    assert any("without a step of the optimizer" in n for n in probe.notes)


def test_safety_is_measured_anew_in_every_probe(tokenizer):
    model = exact_model(tokenizer)
    names = trained_blocks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, tokenizer, every=1)
    for _ in range(2):
        wanted = safety_gradient(model, tokenizer, names)
        with monitor.step(batch := padded(tokenizer)):
            mean_loss(model, batch).backward()
        assert (
            relative(list(monitor.probes[-1].safety_norms.values()), [float(wanted[n].norm()) for n in names]) < EXACT
        )
        optimizer.step()


def test_probes_are_handed_on_and_what_their_receiver_raises_reaches_the_loop(tokenizer):
    class StopHere(Exception):
        pass

    def stop(probe):
        raise StopHere(str(probe.step))

    model, _ = tiny()
    monitor = watch(model, tokenizer, on_probe=stop, strict=False)
    with pytest.raises(StopHere, match="0"), monitor.step():
        model(**padded(tokenizer)).loss.backward()
    assert monitor.failed is None


def test_every_parameter_can_be_watched_and_what_has_no_rows_is_said(tokenizer):
    model = exact_model(tokenizer, "llama")
    names = [n for n, _ in model.named_parameters()]
    safety = safety_gradient(model, tokenizer, names)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = weights_of(model, names)
    monitor = watch(model, tokenizer, blocks=["*"], optimizer=optimizer)
    with monitor.step():
        model(**padded(tokenizer)).loss.backward()
    optimizer.step()
    (probe,) = monitor.probes
    assert list(probe.gradient.dot) == names
    wanted = -product({n: before[n] - p.detach() for n, p in model.named_parameters()}, safety)
    assert probe.predicted_change == pytest.approx(wanted, rel=1e-6)  # norms are in float32 inside
    assert not probe.notes
    (notice,) = [n.says for n in monitor.notices if "no example rows" in n.says]
    assert "5 of 21 blocks" in notice


def test_examples_that_are_not_finite_are_counted(tokenizer):
    model, _ = tiny()
    batch, safe = padded(tokenizer), {"prompt": "Q?", "completion": "q"}
    (odd,) = set(tokenizer("q")["input_ids"])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[odd] = float("nan")
    batch["input_ids"][2, 1] = odd
    monitor = watch(model, tokenizer, safety=[*SAFETY, safe], strict=True)
    with monitor.step():
        model(**batch).loss.backward()
    (probe,) = monitor.probes
    assert (probe.nonfinite, probe.safety_nonfinite) == (1, 1)
    assert np.isfinite(probe.dots).tolist() == [True, True, False, True]
    assert np.isfinite(probe.safety_losses).tolist() == [True, True, False]


def test_a_model_that_has_diverged_is_reported_and_no_error(tokenizer):
    model, _ = tiny()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with (monitor := watch(model, tokenizer, exact=False)).step():
        model(**padded(tokenizer)).loss.backward()
    (probe,) = monitor.probes
    assert (probe.nonfinite, probe.safety_nonfinite) == (len(TEXTS), len(SAFETY))


def test_a_part_of_the_gradient_that_no_example_has_is_said(tokenizer):
    model, _ = tiny()
    monitor = watch(model, tokenizer)
    with monitor.step():
        penalty = sum(p.square().sum() for p in model.parameters())
        (model(**padded(tokenizer)).loss + penalty).backward()
    assert any("do not add up" in n for n in monitor.probes[0].notes)


def test_memory_does_not_grow_with_the_steps(tokenizer):
    model = build("llama", vocabulary=len(tokenizer), context=256, change={"num_hidden_layers": 1}).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = watch(model, tokenizer, every=10, optimizer=optimizer)
    batch = padded(tokenizer, ("one text", "another"))

    def steps(n):
        for _ in range(n):
            with monitor.step():
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        gc.collect()
        kept = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        return sum(x.nbytes for x in kept), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    tensors, python = steps(11)
    more_tensors, more_python = steps(100)
    tracemalloc.stop()
    assert more_tensors - tensors + more_python - python < 2**20
    assert np.isfinite([p.seconds for p in monitor.probes]).all()
