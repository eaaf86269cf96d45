"""Rows from gradients that something else has formed already: forming one is most of what such a row costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients import Gradients, Outer, wide
from graddiag.projection._one_sided import Map
from graddiag.signals import Block


@runtime_checkable
class TakesFormed(Protocol):
    """A projector that works on whole gradients."""

    def of_formed(self, block: Block, like: Tensor) -> Map | None:
        """What makes a row of a formed gradient, or None."""
        ...


@dataclass
class RowsOfFormed:
    """Makes a row of each gradient that it is handed."""

    make: Map
    _found: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, example: int, gradient: Float[Tensor, "d0 d1"]) -> None:
        """Takes the gradient of an example."""
        self._found[example] = self.make(gradient)

    @property
    def rows(self) -> Float[Tensor, "b k"]:
        """The rows, when every example has been handed over."""
        return torch.stack([self._found[i] for i in range(len(self._found))])


def rows_of_formed(projector: object, block: Block, gradients: Gradients) -> RowsOfFormed | None:
    """What to hand formed gradients to, where the projector takes them and they are outer products; else None."""
    if not isinstance(projector, TakesFormed) or not isinstance(gradients, Outer):
        return None
    make = projector.of_formed(block, wide(gradients.left[:0]))
    return None if make is None else RowsOfFormed(make)
