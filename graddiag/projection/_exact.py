"""The gradient itself as a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients import Dense, Gradients, Lookup, Outer
from graddiag.signals import Block


@dataclass(frozen=True)
class Exact:
    """The gradient itself, flattened in the parameter's own shape and order."""

    kind: str = field(default="exact", init=False)
    dim: int = field(default=0, init=False)
    seed: int = field(default=0, init=False)

    def size(self, block: Block) -> int:
        """Number of elements of the block."""
        return math.prod(block.shape)

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """Each example's gradient, flattened, [b, elements of the block]."""
        if isinstance(gradients, Outer):
            return torch.bmm(gradients.left.transpose(1, 2), gradients.right).flatten(1)
        if isinstance(gradients, Lookup):
            n, whole = len(gradients.lengths), range(block.shape[0])
            return torch.stack([gradients.tile(i, whole).flatten() for i in range(n)])
        assert isinstance(gradients, Dense)
        return gradients.values.flatten(1)
