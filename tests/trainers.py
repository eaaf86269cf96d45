"""Short runs of the Hugging Face Trainer and of TRL's on a few texts, and what a monitor should see in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from conftest import relative
from loops import PROMPT, SAFETY, TEXTS, padded, wanted_of
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

import graddiag
from graddiag.encoding import Encoded
from graddiag.probes import Probe

QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}


class Texts(Dataset):
    """Texts as a dataset."""

    def __init__(self, texts: Sequence[str] = TEXTS) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, k: int) -> str:
        return self.texts[k]


def trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *callbacks: object,
    texts: Sequence[str] = TEXTS,
    uphill: bool = False,
    **settings: object,
) -> Trainer:
    """A Trainer whose steps have two batches of two texts, with clipping; `uphill`, it makes its texts less likely, and
    with them the safe answers."""
    chosen = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, **QUIET}
    args = TrainingArguments(str(folder), remove_unused_columns=False, **{**chosen, **settings})
    return Trainer(
        model,
        args,
        train_dataset=Texts(texts),
        data_collator=lambda found: padded(tokenizer, found),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.05, maximize=True) if uphill else None, None),
    )


def callback(**settings: object) -> graddiag.MonitorCallback:
    """A callback whose monitor multiplies exactly and raises its errors, unless told otherwise."""
    return graddiag.MonitorCallback(**{"safety": SAFETY, "exact": True, "strict": True, **settings})


def check_by_id(
    probe: Probe, model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tolerance: float
) -> None:
    """The probe's examples are these texts, each once, with the numbers of one backward pass each."""
    ids = [Encoded("", "", np.array(tokenizer(t)["input_ids"], dtype=np.int32), PROMPT).digest for t in texts]
    assert sorted(probe.ids) == sorted(ids)
    order = [ids.index(i) for i in probe.ids]
    for found, wanted in zip((probe.dots, probe.norms, probe.losses), wanted_of(model, tokenizer, texts), strict=True):
        assert relative(found, [wanted[k] for k in order]) < tolerance


def third_probe_limit(probes: Sequence[Probe]) -> float:
    """A budget of drift that the predictions of the first three probes reach together, and those of two do not."""
    first, second, third = (p.predicted_change or 0.0 for p in list(probes)[:3])
    assert third > 0
    return first + second + third / 2


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights, bit for bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
