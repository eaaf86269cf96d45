"""The monitor inside TRL's SFTTrainer: rows of every way to lay out a batch are those of each example alone."""

from __future__ import annotations

from itertools import pairwise

import datasets
import numpy as np
import peft
import pytest
import torch
from conftest import relative
from loops import product, safety_gradient, tiny, trained_blocks
from torch import nn
from trainers import QUIET, callback
from trl import SFTConfig, SFTTrainer

from graddiag.encoding import Encoded

ROUNDING = 1e-5  # float32
PAIRS = [
    ("What is up?", "Not much."),
    ("Say it", "It, and then some more."),
    ("Why", "Because of that."),
    ("Go", "On."),
]
PLAIN = [{"text": a + b} for a, b in PAIRS]
COMPLETIONS = [{"prompt": a, "completion": b} for a, b in PAIRS]
LORA = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")


def examples_of(dataset):
    """Tokens and labels of each example, packed rows told apart by their lengths."""
    for row in dataset:
        tokens, labels = np.array(row["input_ids"]), labels_of(row)
        edges = [0, *np.cumsum(row.get("seq_lengths", [len(tokens)]))]
        for a, b in pairwise(edges):
            yield tokens[a:b], labels[a:b]


def labels_of(row):
    """A row's labels; where TRL leaves them to its collator (1.0), its tokens where the mask lets them be."""
    if "labels" in row:
        return np.array(row["labels"])
    tokens = np.array(row["input_ids"])
    return np.where(np.array(row.get("completion_mask", [1] * len(tokens))) == 1, tokens, -100)


def own(model, names, tokens, labels):
    """The gradient and the mean loss of one example alone; its first token is never a target."""
    parameters = dict(model.named_parameters())
    logits = model(input_ids=torch.tensor(tokens)[None]).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels[1:]))
    grads = torch.autograd.grad(loss, [parameters[n] for n in names])
    return dict(zip(names, grads, strict=True)), float(loss.detach())


@pytest.mark.parametrize(
    ("rows", "settings", "adapter"),
    [
        (PLAIN, {}, None),
        (COMPLETIONS, {}, None),
        (COMPLETIONS, {"padding_free": True, "max_length": None}, None),
        (PLAIN, {"packing": True}, None),
        (COMPLETIONS, {"gradient_checkpointing": True}, LORA),
    ],
    ids=["plain", "completion_only", "padding_free", "packing", "lora"],
)
def test_rows_are_those_of_each_example_alone(tmp_path, rows, settings, adapter):
    model, tokenizer = tiny()
    watched = callback()
    chosen = {
        "per_device_train_batch_size": 4,
        "max_length": 64,
        "bf16": False,
        "gradient_checkpointing": False,
        **QUIET,
        **settings,
    }
    run = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), max_steps=1, **chosen),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watched],
        peft_config=adapter,
    )
    names = trained_blocks(run.model)
    safety = safety_gradient(run.model, tokenizer, names)
    wanted = {}
    for tokens, labels in examples_of(run.train_dataset):
        start = int(np.flatnonzero(labels[1:] != -100)[0]) + 1
        grads, loss = own(run.model, names, tokens, labels)
        digest = Encoded("", "", tokens.astype(np.int32), start).digest
        wanted[digest] = product(grads, safety), product(grads, grads) ** 0.5, loss
    run.train()
    (probe,) = watched.monitor.probes
    assert len(wanted) >= len(PAIRS)
    seen = [wanted[i] for i in probe.ids]
    assert len(set(probe.ids)) == len(probe.ids) >= 2
    for found, numbers in zip((probe.dots, probe.norms, probe.losses), zip(*seen, strict=True), strict=True):
        assert relative(found, numbers) < ROUNDING
