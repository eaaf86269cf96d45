"""A row as its exact products with a few known gradients: nothing of the row's own gradient is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.ghost import dot
from graddiag.gradients import Dense, Gradients, Lookup, Outer, Workspace
from graddiag.projection._one_sided import Map
from graddiag.signals import TOWARD, Block


@dataclass(frozen=True, eq=False)
class Toward:
    """`<g_i, M_1>, <g_i, M_2>, ...` for the gradients `means`, each by block; with none, a row of no numbers.

    No projection in the sense of the projection law: two such rows must not be multiplied with each other, and
    `Comparison` refuses them. Each gradient is formed once, for all means.
    """

    means: tuple[Mapping[str, Float[Tensor, "*_"]], ...] = ()
    kind: str = field(default=TOWARD, init=False)
    seed: int = field(default=0, init=False)
    _workspace: Workspace = field(default_factory=Workspace, init=False, repr=False)

    @property
    def dim(self) -> int:
        """How many gradients rows are multiplied with."""
        return len(self.means)

    def size(self, block: Block) -> int:
        """Length of a row: one number per known gradient."""
        return len(self.means)

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """The products of each example with each known gradient, in float32 or better."""
        means = [m[block.name] for m in self.means]
        if not means:
            return _none(gradients)
        if isinstance(gradients, Outer):
            return torch.stack([self._of_one(gradients, i, means) for i in range(len(gradients.lengths))])
        columns = [gradients.products((), reference=m, workspace=self._workspace).reference_dot for m in means]
        return torch.stack([c for c in columns if c is not None], dim=1)

    def of_formed(self, block: Block, like: Tensor) -> Map | None:
        """What makes a row of a gradient that is formed already; None where rows have no numbers."""
        means = [m[block.name] for m in self.means]
        return (lambda gradient: torch.stack([dot(gradient, m) for m in means])) if means else None

    def _of_one(self, gradients: Outer, i: int, means: list[Tensor]) -> Float[Tensor, " k"]:
        formed = gradients.formed(i, self._workspace)
        return torch.stack([dot(formed, m) for m in means])


def _none(gradients: Gradients) -> Float[Tensor, "b 0"]:
    """A row of no numbers per example."""
    if isinstance(gradients, Dense):
        return gradients.values.new_zeros(len(gradients.values), 0)
    assert isinstance(gradients, (Outer, Lookup))
    return torch.zeros(len(gradients.lengths), 0)
