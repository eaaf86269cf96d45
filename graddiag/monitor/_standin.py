"""Inner products with a mean gradient: exact, or with a stand-in of low rank, which forms no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients import Gradients, Outer, Workspace, wide

_EXTRA = (
    8  # directions beyond the rank: randomised SVD then finds the leading ones (Halko et al. 2011, arXiv 0909.4061)
)
_POWERS = 2  # power iterations: spectra of gradients fall slowly
_SEED = 0


@dataclass(frozen=True, eq=False)
class StandIn:
    """What examples are multiplied with in place of a mean M: M itself, or the nearest `left right^T` of some rank.

    `norm2` is its squared norm.
    """

    whole: Tensor
    left: Float[Tensor, "d0 r"] | None
    right: Float[Tensor, "d1 r"] | None
    norm2: float

    @staticmethod
    def of(mean: Tensor, rank: int | None) -> StandIn:
        """The stand-in of a rank; None, or a rank that is not smaller than the matrix, is the mean itself, and so is a
        mean that is not finite."""
        norm2 = float(mean.double().square().sum())
        if rank is None or mean.dim() != 2 or rank + _EXTRA >= min(mean.shape) or not math.isfinite(norm2):
            return StandIn(mean, None, None, norm2)
        generator = torch.Generator().manual_seed(_SEED)
        basis = torch.randn(mean.shape[1], rank + _EXTRA, generator=generator, dtype=mean.dtype).to(mean.device)
        for _ in range(_POWERS):
            basis, _ = torch.linalg.qr(mean.T @ (mean @ basis))
        u, s, vt = torch.linalg.svd(mean @ basis, full_matrices=False)
        left, right = u[:, :rank] * s[:rank], basis @ vt[:rank].T
        return StandIn(mean, left, right, float(s[:rank].double().square().sum()))

    @property
    def exact(self) -> bool:
        """Whether it is the mean itself."""
        return self.left is None

    def dot(self, gradient: Tensor) -> Tensor:
        """Its inner product with one gradient, formed."""
        if self.left is None or self.right is None:
            return (gradient.to(self.whole.dtype) * self.whole).sum()
        return ((gradient.to(self.left.dtype).T @ self.left) * self.right).sum()

    def products(self, gradients: Gradients, workspace: Workspace) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Inner product and squared norm of each example's gradient."""
        if isinstance(gradients, Outer) and self.left is not None and self.right is not None:
            left, right = wide(gradients.left) @ self.left, wide(gradients.right) @ self.right
            norm2 = gradients.products((), workspace=workspace).norm2
            return (left * right).sum((1, 2)), norm2
        found = gradients.products((), reference=self.whole, workspace=workspace)
        assert found.reference_dot is not None
        return found.reference_dot, found.norm2


def squared_norm(gradient: Tensor) -> Tensor:
    """The squared norm of a gradient, in float32 or better."""
    return wide(gradient).square().sum()
