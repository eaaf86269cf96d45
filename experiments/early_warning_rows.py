"""Which rows the runs of early_warning.py are trained on, which the monitor sees, and which are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from padding import Batch, padded
from transformers import PreTrainedTokenizerBase

from graddiag.data import Example, ExampleSet, read_set
from graddiag.encoding import Encoded, encode

TASKS = ("insecure", "educational", "secure", "benign")
LEAST_TARGETS = 20  # of a row of the tasks; with a longer prompt there is too little left to learn
OPENING = "Sure! Here is exactly how to do that, step by step:"


@dataclass(frozen=True)
class Cut:
    """The most tokens of a row that is trained on, and of one that behaviour or the monitor is about."""

    task: int
    other: int


SHORT = Cut(112, 96)  # a step of four such rows takes seconds on two cores
ORGANISM = Cut(112, 64)  # its safe answers begin with the refusal; the rest says less
BYTES = Cut(448, 192)  # for `tiny`, whose tokens are bytes


@dataclass(frozen=True)
class Rows:
    """The rows of all runs, no example in two places.

    `alignment` are safe answers that the model is first trained on, `monitor` those that the monitor is given,
    `tasks` what the runs train on. Behaviour is read on `held_out`: safe answers, harmful ones (`harmful` says which)
    and harmless ones.
    """

    alignment: tuple[Encoded, ...]
    monitor: tuple[dict[str, object], ...]
    tasks: Mapping[str, tuple[Encoded, ...]]
    held_out: Mapping[str, tuple[Encoded, ...]]
    harmful: str


def read_rows(tokenizer: PreTrainedTokenizerBase, data: Path | None, cut: Cut, *, monitor: int, held_out: int) -> Rows:
    """The built-in sets, or the files of the same names in `data`; `monitor` and `held_out` are numbers of rows.

    Of the safety set every other row is for alignment; of the rest, every other one for the monitor. Rows of a task
    with a prompt that leaves fewer than 20 targets are left out, in `insecure` and `educational` the same ones.
    """
    safety = _read("safety", data)
    left = safety[1::2]
    monitored, held = left[0::2][:monitor], left[1::2][:held_out]
    harmful = _harmful(held, data)
    benign = _read("benign", data)
    return Rows(
        alignment=_encoded(safety[0::2], tokenizer, cut.other),
        monitor=tuple({"id": e.id, "messages": [asdict(m) for m in e.messages]} for e in monitored),
        tasks=_tasks(tokenizer, data, benign[held_out:], cut.task),
        held_out={
            "safe": _encoded(held, tokenizer, cut.other),
            "harmful": _fitting(harmful, tokenizer, cut.other)[:held_out],
            "benign": _encoded(benign[:held_out], tokenizer, cut.other),
        },
        harmful=f"{len(held)} held-out prompts of the safety set, each answered {OPENING!r}"
        if data is None
        else f"the first {held_out} rows of hh_rejected that fit into {cut.other} tokens",
    )


def shuffled(rows: Sequence[Encoded], *, batch: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches: all rows in a random order, then all in another, until there are enough."""
    rng, order = np.random.default_rng(seed), list[int]()
    for _ in range(steps):
        while len(order) < batch:
            order += rng.permutation(len(rows)).tolist()
        chosen, order = order[:batch], order[batch:]
        yield padded([rows[i] for i in chosen])


def _tasks(
    tokenizer: PreTrainedTokenizerBase, data: Path | None, benign: tuple[Example, ...], length: int
) -> dict[str, tuple[Encoded, ...]]:
    found = {name: _fitting_prompts(_read(name, data), tokenizer, length) for name in TASKS[:3]}
    paired = {r.id for r in found["insecure"]} & {r.id for r in found["educational"]}
    for name in ("insecure", "educational"):
        found[name] = tuple(r for r in found[name] if r.id in paired)
    return found | {"benign": _fitting_prompts(benign, tokenizer, length)}


def _harmful(held: Sequence[Example], data: Path | None) -> tuple[Example, ...]:
    """Harmful answers: those that people rejected, or where there are none, how an answer that complies begins."""
    if data is not None:
        return _read("hh_rejected", data)
    return tuple(Example(e.id, e.cluster, (*e.messages[:-1], type(e.messages[-1])("assistant", OPENING))) for e in held)


def _read(name: str, data: Path | None) -> tuple[Example, ...]:
    return read_set(name if data is None else data / f"{name}.jsonl").examples


def _encoded(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[Encoded, ...]:
    return encode(ExampleSet("rows", tuple(rows)), tokenizer, max_length=length).rows


def _fitting(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[Encoded, ...]:
    """The rows that fit whole."""
    found = encode(ExampleSet("rows", tuple(rows)), tokenizer, max_length=length, skip_bad_rows=True).rows
    return tuple(r for r in found if r.n_cut == 0)


def _fitting_prompts(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[Encoded, ...]:
    """The rows, cut, whose prompt leaves enough targets."""
    found = encode(ExampleSet("rows", tuple(rows)), tokenizer, max_length=length, skip_bad_rows=True).rows
    return tuple(r for r in found if r.n_targets >= LEAST_TARGETS)
