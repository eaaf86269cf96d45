"""Does a model give the same gradients alone, in a batch, padded, in another dtype, as plain autograd?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graddiag._quiet import quiet
from graddiag.blocks import Selected, select_blocks
from graddiag.encoding import Encoded
from graddiag.errors import GraddiagError, ResourceError, UsageError
from graddiag.head import inner_model
from graddiag.readings import Reading, alone, by_autograd, by_hooks, difference, largest_gap, length
from graddiag.startcheck import limit_for
from graddiag.text import visible

Status = Literal["pass", "fail", "not run"]
# Of the pair difference: an error of this size moves a cosine with the framing gradient by at most 0.05.
DTYPE_LIMIT = 0.05
_SINGLE = torch.float32
_ROOM = 1.5  # a copy needs its weights and half of that again to work in
_REASON = 160  # characters of another library's message that a table shows
_CANNOT = (GraddiagError, RuntimeError, ValueError, NotImplementedError, ImportError)  # of a setting a model has not


@dataclass(frozen=True)
class Check:
    """One row of the table: the measured number and its limit, what they are, and for a fail the option that mends it.

    `value` is None where nothing could be measured: the check was not run, or failed for the reason in `detail`.
    """

    name: str
    status: Status
    value: float | None
    limit: float | None
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Bench:
    """What is checked on: the model, all its selected blocks, a sample of them, and rows that take turns.

    `few` are rows 0 (left) and 1 (right) of one pair and another row; `rows` are all rows, those included.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: tuple[Selected, ...]
    sample: tuple[Selected, ...]
    rows: tuple[Encoded, ...]
    few: tuple[int, ...]

    @property
    def few_rows(self) -> list[Encoded]:
        """The rows that are run one by one."""
        return [self.rows[i] for i in self.few]

    @property
    def limit(self) -> float:
        """The relative difference that rounding can make in the model's dtype."""
        return limit_for(self.model.dtype)


def check_hooks(bench: Bench, hooked: Sequence[Reading], plain: Sequence[Reading]) -> Check:
    """Whether losses, gradients and norms are those of one backward pass per row."""
    gap = largest_gap(hooked, plain)
    detail = f"worst in {gap}, {len(bench.few)} rows, {len(bench.sample)} of {len(bench.blocks)} blocks"
    return judged("hooks", gap.size, bench.limit, detail, f"--blocks without {gap.block or 'the head'}")


def check_batch(bench: Bench, hooked: Sequence[Reading]) -> Check:
    """Whether a row is the same alone and among rows of other lengths, which pad it on the right."""
    together = by_hooks(bench.model, bench.sample, bench.rows)
    gap = largest_gap([together[i] for i in bench.few], hooked)
    mend = (
        "a module mixes the rows of a batch (batch statistics, expert capacity): extract each set by itself with "
        "--batch-tokens 1, and compare the folders"
    )
    return judged("batch", gap.size, bench.limit, f"worst in {gap}, alone and among {len(bench.rows)} rows", mend)


def check_padding(bench: Bench, plain: Sequence[Reading]) -> Check:
    """Whether padding on the left, with mask and positions, changes anything for plain autograd."""
    gap = largest_gap(by_autograd(bench.model, bench.sample, bench.few_rows), plain)
    mend = (
        "the model ignores attention_mask or position_ids: graddiag pads on the right and needs neither, but train it "
        "with padding_side='right' too"
    )
    return judged("padding", gap.size, bench.limit, f"worst in {gap}, padded on the left and not at all", mend)


def check_dtype(bench: Bench, hooked: Sequence[Reading]) -> Check:
    """The error of a gradient in the model's dtype, in units of the difference between the two members of a pair."""
    own = bench.model.dtype
    wide = torch.float64 if own == _SINGLE else _SINGLE
    if own == torch.float64:
        return not_run("dtype", "float64 is the widest there is: nothing to compare it with")
    try:
        model = _widened(bench.model, wide)
        blocks = {b.block.name: b for b in select_blocks(model, [b.block.name for b in bench.sample])}
        exact = alone(by_hooks, model, [blocks[b.block.name] for b in bench.sample], bench.few_rows[:2])
    except _CANNOT as error:
        return not_run("dtype", f"the model does not run in {_name(wide)} here: {_first_line(error)}")
    pair, whole = difference(*exact), max(length(r) for r in exact)
    worst = float(np.max([difference(a, b) for a, b in zip(hooked[:2], exact, strict=True)]))  # NaN is the greatest
    detail = f"of the pair difference: {_name(own)} against {_name(wide)}; {worst / whole:.1e} of a gradient"
    mend = "--dtype float32" if own != _SINGLE else "a device or setting that computes in full float32 (no TF32)"
    return judged("dtype", worst / pair if pair else math.nan, DTYPE_LIMIT, detail, mend)


def check_attention(bench: Bench, hooked: Sequence[Reading]) -> Check:
    """Whether the other attention implementation, eager or sdpa, gives the same."""
    inner = inner_model(bench.model)
    own = str(inner.config._attn_implementation)
    other = "sdpa" if own == "eager" else "eager"
    try:
        with _attention(inner, other):
            found = alone(by_hooks, bench.model, bench.sample, bench.few_rows[:2])
    except _CANNOT as error:
        return not_run("attention", f"{other} cannot be had: {_first_line(error)}")
    gap = largest_gap(hooked[:2], found)
    mend = f"load the model with attn_implementation={other!r} and pass it to graddiag.compare, to see which is right"
    return judged("attention", gap.size, bench.limit, f"worst in {gap}, {own} against {other}", mend)


def judged(name: str, value: float, limit: float, detail: str, mend: str) -> Check:
    """Passed where the value is at most the limit; a value that is undefined fails."""
    if math.isnan(value):
        return Check(name, "fail", None, limit, f"not finite; {detail}", mend)
    passed = value <= limit
    return Check(name, "pass" if passed else "fail", value, limit, detail, "" if passed else mend)


def not_run(name: str, why: str) -> Check:
    """Neither passed nor failed."""
    return Check(name, "not run", None, None, why)


def _widened(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the model in another dtype. Raises ResourceError where it would not fit beside the model."""
    need = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need * _ROOM > free:
        raise ResourceError(f"a copy takes {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    return nn.Module.to(copy.deepcopy(model), dtype)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, the model attends in another way. Raises UsageError, or what the model raises, where it cannot."""
    own = str(model.config._attn_implementation)
    try:
        with quiet():
            model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            raise UsageError("the model does not take another implementation once it is loaded")
        yield
    finally:
        model.set_attn_implementation(own)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return visible((str(error).splitlines() or [type(error).__name__])[0], limit=_REASON)
