"""What every form of gradients can give, and what it works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.ghost import GramCache

CANCELS = 0.05  # ||d|| / ||g|| below which n_l + n_r - 2 <l, r> loses too many digits (as its inverse square)


@dataclass(frozen=True)
class Products:
    """Of one batch in one block: squared norms [b], `<g_l, g_r>` and `||g_l - g_r||^2` [pairs], `<g, reference>`
    [b]."""

    norm2: Float[Tensor, " b"]
    inner: Float[Tensor, " pairs"]
    difference2: Float[Tensor, " pairs"]
    reference_dot: Float[Tensor, " b"] | None

    def settle_difference(self, k: int, pair: tuple[int, int]) -> bool:
        """Sets `||g_l - g_r||^2` of pair k from norms and inner product; whether that cancels too many digits."""
        a, b = self.norm2[pair[0]], self.norm2[pair[1]]
        self.difference2[k] = a + b - 2 * self.inner[k]
        return bool(self.difference2[k] < CANCELS**2 * torch.maximum(a, b))


@dataclass
class Workspace:
    """What is used again within a batch and from batch to batch: buffers (fresh memory of that size goes back to the
    system at each use), and the Gram matrices of the inputs seen last."""

    buffers: dict[tuple[tuple[int, int], int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)
    inputs: GramCache = field(default_factory=GramCache)

    def get(self, shape: tuple[int, int], slot: int, like: Tensor) -> Tensor:
        """A buffer with unspecified content."""
        key = (shape, slot, like.dtype, like.device)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self.buffers[key]


Formed = Callable[[int, Tensor], None]  # takes the number of an example and its gradient


class Gradients(ABC):
    """The gradients of the examples of one batch in one block."""

    @abstractmethod
    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "*_"] | None = None,
        total: Float[Tensor, "*_"] | None = None,
        formed: Formed | None = None,
        workspace: Workspace,
    ) -> Products:
        """All products of the batch; `total`, if given, has the finite gradients added to it. `formed`, if given, is
        handed the gradient of every example where they are outer products: it may read it, once."""


class Formable(Gradients):
    """Gradients of which any part can be formed."""

    @abstractmethod
    def tile(self, i: int, rows: range) -> Float[Tensor, "*_"]:
        """Some rows of example i's gradient, formed, in float32 or better."""


def wide(x: Tensor) -> Tensor:
    """In float32 or better: products of half precision are formed there."""
    return x if x.dtype == torch.float64 else x.float()
