"""An array per example: biases, norms, and whatever was recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients._base import Formable, Formed, Products, Workspace, wide


@dataclass(frozen=True)
class Dense(Formable):
    """One array per example: biases, norms, and parameters whose module was run again example by example."""

    values: Float[Tensor, b * shape]

    def tile(self, i: int, rows: range) -> Float[Tensor, "*_"]:
        """Some rows of example i's gradient."""
        return wide(self.values[i, rows.start : rows.stop])

    def products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        reference: Float[Tensor, "*shape"] | None = None,
        total: Float[Tensor, "*shape"] | None = None,
        formed: Formed | None = None,
        workspace: Workspace,
    ) -> Products:
        """Products of the arrays."""
        flat = wide(self.values).flatten(1)
        norm2 = flat.square().sum(1)
        left, right = flat[[i for i, _ in pairs]], flat[[j for _, j in pairs]]
        if total is not None:
            total.add_(flat[torch.isfinite(norm2)].sum(0).reshape(total.shape))
        dots = None if reference is None else flat @ reference.flatten().to(flat.dtype)
        return Products(norm2, (left * right).sum(1), (left - right).square().sum(1), dots)
