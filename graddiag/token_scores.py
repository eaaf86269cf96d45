"""Through which positions does an example's gradient point along a mean gradient?"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graddiag.gradients import Gradients, Lookup, Outer, wide


def token_scores(
    gradients: Gradients, reference: Float[Tensor, "*_"], tokens: int
) -> Float[Tensor, "b {tokens}"] | None:
    """`g_t^T M a_t` at each of `tokens` positions, for the mean M of a block; a row sums to `<g_i, M>`.

    It says through which position the gradient enters the weight, not which target token caused it: the gradient that
    arrives at one position is that of all later targets. None where the gradient is a sum in which positions can no
    longer be told apart (biases, norms, experts).
    """
    if isinstance(gradients, Outer):
        return _outer(gradients, reference, tokens)
    if not isinstance(gradients, Lookup):
        return None
    rows = (reference[gradients.ids] * wide(gradients.output_grads)).sum(2)
    scores = _by_position(rows, gradients.lengths, gradients.at, tokens)
    return scores if gradients.head is None else scores + _outer(gradients.head, reference, tokens)


def _outer(gradients: Outer, reference: Float[Tensor, "d0 d1"], tokens: int) -> Float[Tensor, "b {tokens}"]:
    rows = ((wide(gradients.left) @ reference) * wide(gradients.right)).sum(2)
    return _by_position(rows, gradients.lengths, gradients.at, tokens)


def _by_position(
    rows: Float[Tensor, "b t"], lengths: tuple[int, ...], at: Int[Tensor, "b t"] | None, tokens: int
) -> Float[Tensor, "b {tokens}"]:
    """The rows' numbers added up by position, without what pads an example."""
    number = torch.arange(rows.shape[1], device=rows.device)
    own = number < torch.tensor(lengths, device=rows.device).unsqueeze(1)
    out = rows.new_zeros(len(rows), tokens)
    return out.scatter_add_(1, number.expand_as(rows) if at is None else at, rows.masked_fill(~own, 0))
