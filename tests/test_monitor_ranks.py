"""Two processes that train one model: the same probes and alarms in both, and neither waits forever."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import relative
from loops import TEXTS, TOUCHY, own_gradients, padded, product, safety_gradient, tiny, trained_blocks, wanted_of, watch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

ROUNDING = 1e-5  # float32
STEPS, CLIP = 3, 0.1


def process(rank: int, folder: str) -> None:
    """One of two processes, which trains twice, from the same weights."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for broken in (False, True):
        (place := Path(folder) / str(broken)).mkdir(exist_ok=True)
        (place / f"{rank}.json").write_text(json.dumps(trained(rank, place, broken)))
    distributed.destroy_process_group()


def trained(rank: int, folder: Path, broken: bool) -> dict[str, object]:
    """Trains uphill; the second process has a batch from which nothing is learnt, or a loss that cannot be read."""
    model, tokenizer = tiny()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, maximize=True)
    batch = padded(tokenizer)
    items = (batch["labels"][:, 1:] != -100).sum()
    if rank == 1 and not broken:
        batch["labels"].fill_(-100)
    how = {"every": 1, "limits": replace(TOUCHY, drift=0.02), "action": "log", "strict": False, "folder": folder}
    monitor = watch(wrapped, tokenizer, optimizer=optimizer, **how)
    for _ in range(STEPS):
        with monitor.step(batch):
            output = wrapped(**batch, num_items_in_batch=items)
            # DDP takes the mean over both: twice the sum over all items is the mean over them.
            loss = output.logits.square().mean() if rank == 1 and broken else output.loss * 2
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "alarms": [(a.step, a.rule, a.value, a.ids) for a in monitor.alarms],
        "ids": [p.ids for p in monitor.probes],
        "dots": [p.dots.tolist() for p in monitor.probes],
        "norm": [dict(p.gradient.norm) for p in monitor.probes],
        "dot": [dict(p.gradient.dot) for p in monitor.probes],
        "failed": str(monitor.failed),
        "steps": monitor.steps,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where both processes left what they saw."""
    place = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(process, (str(place),), nprocs=2)
    return place


def seen(folder: Path) -> tuple[dict, dict]:
    one, other = (json.loads((folder / f"{k}.json").read_text()) for k in range(2))
    return one, other


def test_both_have_the_probes_and_alarms_of_all_examples_though_one_has_none(folder):
    one, other = seen(folder / "False")
    assert one == other
    assert one["failed"] == "None"
    assert "drift" in [rule for _, rule, _, _ in one["alarms"]]
    assert len(one["ids"]) == STEPS
    assert (folder / "False" / "probes.jsonl").read_text().count("\n") == STEPS
    model, tokenizer = tiny()
    names, batch = trained_blocks(model), padded(tokenizer)
    assert relative(one["dots"][0], wanted_of(model, tokenizer)[0]) < ROUNDING
    rows, counts = own_gradients(model, tokenizer, TEXTS, names), (batch["labels"][:, 1:] != -100).sum(1).tolist()
    mean = {n: sum(c * r[n] for c, r in zip(counts, rows, strict=True)) / sum(counts) for n in names}
    safety = safety_gradient(model, tokenizer, names)
    for n in names:
        assert one["dot"][0][n] == pytest.approx(product({n: mean[n]}, safety), rel=1e-3, abs=1e-6)
        assert one["norm"][0][n] == pytest.approx(product({n: mean[n]}, mean) ** 0.5, rel=1e-3)


def test_an_error_in_one_turns_the_monitor_off_in_both_and_training_goes_on(folder):
    one, other = seen(folder / "True")
    assert "Process 1 of 2: DataError" in one["failed"]
    assert one == other
    assert one["ids"] == []
