"""What one example adds to the next step of Adam, and how that step moves the safety loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.blocks import Part, Selected
from graddiag.gradients import Formable, wide
from graddiag.signals import AdamStep

_TILE_ROWS = 1024  # rows of a block whose steps are formed at once; a step needs some ten arrays of its size


@dataclass(frozen=True)
class Moments:
    """Adam's state of one block: running means of the gradient and of its square after `step` steps, and the settings.

    The next step on a gradient g, per unit of learning rate, is Gamma(g) = m / (sqrt(v) + eps) with
    m = (beta1 first + (1 - beta1) g) / (1 - beta1^(step + 1)), v = (beta2 second + (1 - beta2) g^2) / (1 - beta2^(step
    + 1)), each element for itself (Kingma and Ba, arXiv 1412.6980). Decoupled weight decay is not in it: it does not
    depend on g.
    """

    first: Float[Tensor, "*shape"]
    second: Float[Tensor, "*shape"]
    step: int
    beta1: float
    beta2: float
    eps: float

    def on(self, device: torch.device) -> Moments:
        """The same, in float32 or better, on a device."""
        first, second = (wide(x).to(device) for x in (self.first, self.second))
        return Moments(first, second, self.step, self.beta1, self.beta2, self.eps)

    def share(self, part: Part | None) -> Moments:
        """The state of one attention head's share of a block."""
        if part is None:
            return self
        first, second = (x.narrow(part.dim, part.start, part.stop - part.start) for x in (self.first, self.second))
        return Moments(first, second, self.step, self.beta1, self.beta2, self.eps)

    def rows(self, rows: range) -> Moments:
        """The state of some rows of the block."""
        first, second = (x[rows.start : rows.stop] for x in (self.first, self.second))
        return Moments(first, second, self.step, self.beta1, self.beta2, self.eps)

    def tiles(self) -> Iterator[range]:
        """All rows of the block, some at a time."""
        n = len(self.first)
        yield from (range(a, min(a + _TILE_ROWS, n)) for a in range(0, n, _TILE_ROWS))

    def resting(self) -> Float[Tensor, "*shape"]:
        """Gamma(0): the step that momentum takes without any gradient."""
        return self._momentum() / (self._root(None) + self.eps)

    def added(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Gamma(g) - Gamma(0), without the cancellation of forming both:
        `a g / (s + eps) - m0 c g^2 / ((s + s0) (s + eps) (s0 + eps))`, with s and s0 the roots of v for g and for 0."""
        at_rest, root = self._root(None), self._root(gradient)
        own = (1 - self.beta1) / self._bias(self.beta1) * gradient
        both = root + at_rest
        # Where both roots are 0, g is 0 and so is their difference.
        grown = ((1 - self.beta2) / self._bias(self.beta2)) * gradient.square() / torch.where(both > 0, both, 1.0)
        return (own - self._momentum() * grown / (at_rest + self.eps)) / (root + self.eps)

    def _momentum(self) -> Tensor:
        return self.first * (self.beta1 / self._bias(self.beta1))

    def _root(self, gradient: Tensor | None) -> Tensor:
        second = self.beta2 * self.second
        if gradient is not None:
            second = second + (1 - self.beta2) * gradient.square()
        return (second / self._bias(self.beta2)).sqrt()

    def _bias(self, beta: float) -> float:
        return float(1 - beta ** (self.step + 1))


@dataclass(frozen=True)
class AdamProducts:
    """Of one batch in one block, all [b]: `<D_i, M>` and `||D_i||^2` for D_i = Gamma(g_i) - Gamma(0), and
    `||Gamma(g_i)||^2`."""

    dot: Float[Tensor, " b"]
    norm2: Float[Tensor, " b"]
    step_norm2: Float[Tensor, " b"]


def adam_products(gradients: Formable, moments: Moments, reference: Float[Tensor, "*shape"], n: int) -> AdamProducts:
    """Products of the steps on each of the n examples with the mean `reference`, formed some rows at a time."""
    dot, norm2, step_norm2 = (torch.zeros(n, dtype=torch.float64, device=reference.device) for _ in range(3))
    for rows in moments.tiles():
        some, toward = moments.rows(rows), reference[rows.start : rows.stop]
        resting = some.resting()
        for i in range(n):
            added = some.added(gradients.tile(i, rows))
            dot[i] += (added * toward).sum()
            norm2[i] += added.square().sum()
            step_norm2[i] += (added + resting).square().sum()
    return AdamProducts(dot, norm2, step_norm2)


@dataclass(frozen=True)
class OptimizerState:
    """The Adam states of the chosen blocks under the blocks' names, with a digest of all that a step depends on.

    The states are those of the optimizer itself, on its device, or are read from its file when they are used.
    """

    name: str
    digest: str
    moments: Mapping[str, Moments]
    notes: tuple[str, ...] = ()

    def at_hand(self, blocks: Sequence[Selected]) -> OptimizerState:
        """The same with the states of some blocks only, each on its block's device."""
        moments = {b.block.name: self.moments[b.block.name].on(b.parameter.device) for b in blocks}
        return OptimizerState(self.name, self.digest, moments, self.notes)

    def toward(self, means: Mapping[str, Tensor]) -> AdamStep:
        """How the step without any example stands to a mean gradient, per block."""
        dot, norms = {}, {}
        for name, moments in self.moments.items():
            resting = moments.resting().double()
            dot[name] = float((resting * means[name]).sum())
            norms[name] = float(torch.linalg.vector_norm(resting))
        return AdamStep(self.name, self.digest, max(m.step for m in self.moments.values()), dot, norms)
