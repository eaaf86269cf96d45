"""A module's inputs and output gradients, laid out so that each example has a row of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from graddiag.capture import Call
from graddiag.errors import DataError
from graddiag.formation import Layout
from graddiag.monitor._inputs import Inputs


def layout(inputs: Inputs) -> Layout:
    """How the examples lie after `place`."""
    lengths = tuple(s.stop - s.start for s in inputs.segments)
    return Layout(lengths, max(lengths))


def place(x: Tensor | None, grad: Tensor | None, inputs: Inputs, name: str) -> Call:
    """One call of a module with a row per example, padded behind with zeros.

    Raises DataError where the module saw another number of token rows than the batch has.
    """
    assert x is not None
    assert grad is not None
    if x.is_floating_point() and x.dtype != grad.dtype:
        x = x.to(grad.dtype)  # autocast: the product was taken in the output's precision
    ids = x.dim() == len(inputs.tokens.shape) and not x.is_floating_point()
    features = (x.unsqueeze(-1) if ids else x), grad
    placed = [_by_segment(v, inputs, name) for v in features]
    return Call((placed[0].squeeze(-1) if ids else placed[0],), {}, [], {0: placed[1]})


def _by_segment(x: Tensor, inputs: Inputs, name: str) -> Tensor:
    rows, width = inputs.tokens.shape
    n = x.shape[:-1].numel()
    if n != rows * width:
        raise DataError(
            f"Block {name!r} saw {n} token rows for {rows} rows of {width} tokens: they cannot be matched to examples. "
            "Leave this block out with blocks=[...]."
        )
    whole = x.reshape(rows, width, x.shape[-1])
    spans = inputs.segments
    if [s.row for s in spans] == list(range(rows)) and all(s.start == 0 for s in spans):
        return whole[:, : max(s.stop for s in spans)]
    return torch.nn.utils.rnn.pad_sequence([whole[s.at] for s in spans], batch_first=True)
