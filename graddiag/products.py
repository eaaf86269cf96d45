"""Exact products of per-example gradients in one block: norms, pairs, and a mean gradient, one example in memory at a
time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

_CANCELS = 0.05  # ||d|| / ||g|| below which n_l + n_r - 2 <l, r> loses too many digits (as its inverse square)


@dataclass(frozen=True)
class Products:
    """Of one batch in one block: squared norms [b], `<g_l, g_r>` and `||g_l - g_r||^2` [pairs], `<g, reference>` [b]
    or None."""

    norm2: Float[Tensor, " b"]
    inner: Float[Tensor, " pairs"]
    difference2: Float[Tensor, " pairs"]
    reference_dot: Float[Tensor, " b"] | None


@dataclass
class Workspace:
    """Buffers that are used again for every example: fresh memory of this size is returned to the system at each
    use."""

    buffers: dict[tuple[tuple[int, int], int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def get(self, shape: tuple[int, int], slot: int, like: Tensor) -> Tensor:
        """A buffer with unspecified content."""
        key = (shape, slot, like.dtype, like.device)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self.buffers[key]


def products(
    inputs: Float[Tensor, "b t d_in"],
    output_grads: Float[Tensor, "b t d_out"],
    lengths: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    *,
    reference: Float[Tensor, "d_out d_in"] | None = None,
    total: Float[Tensor, "d_out d_in"] | None = None,
    workspace: Workspace,
) -> Products:
    """All products of a batch; `total`, if given, has the finite gradients of the batch added to it.

    Each gradient `G^T A` is formed once, from the example's own tokens; with nothing but norms asked for, a short
    example uses `||G^T A||^2 = sum (A A^T) * (G G^T)` instead where that is cheaper.
    """
    wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    inputs, output_grads = inputs.to(wide), output_grads.to(wide)
    n = len(inputs)
    norm2 = torch.zeros(n, dtype=wide, device=inputs.device)
    dots = None if reference is None else torch.zeros_like(norm2)
    inner, difference2 = (torch.zeros(len(pairs), dtype=wide, device=inputs.device) for _ in range(2))
    only_norms = reference is None and total is None

    def one(i: int, slot: int) -> Tensor:
        a, g = inputs[i, : lengths[i]], output_grads[i, : lengths[i]]
        w = torch.mm(g.T, a, out=workspace.get((g.shape[1], a.shape[1]), slot, a))
        norm2[i] = _dot(w, w)
        if dots is not None and reference is not None:
            dots[i] = _dot(w, reference)
        if total is not None and bool(torch.isfinite(norm2[i])):
            total.add_(w)
        return w

    paired = set()
    for k, (i, j) in enumerate(pairs):
        left, right = one(i, 0), one(j, 1)
        paired |= {i, j}
        inner[k] = _dot(left, right)
        difference2[k] = norm2[i] + norm2[j] - 2 * inner[k]
        if difference2[k] < _CANCELS**2 * torch.maximum(norm2[i], norm2[j]):
            difference2[k] = _dot(left.sub_(right), left)
    for i in range(n):
        if i not in paired and only_norms and _ghost_is_cheaper(lengths[i], inputs.shape[2], output_grads.shape[2]):
            norm2[i] = _ghost_norm2(inputs[i, : lengths[i]], output_grads[i, : lengths[i]])
        elif i not in paired:
            one(i, 0)
    return Products(norm2, inner, difference2, dots)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _ghost_is_cheaper(t: int, d_in: int, d_out: int) -> bool:
    return t * (d_in + d_out) < d_in * d_out


def _ghost_norm2(a: Float[Tensor, "t d_in"], g: Float[Tensor, "t d_out"]) -> Tensor:
    return ((a @ a.T) * (g @ g.T)).sum().clamp(min=0)
