"""What went into a linear module is let go in the forward pass already, where norms and projections need less of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from graddiag.blocks import Kind, Selected
from graddiag.capture import Call, by_example
from graddiag.ghost import Gram, forming_cost, norm_cost, same
from graddiag.gradients import Shortened, wide
from graddiag.projection import Factors, shorten
from graddiag.signals import Block

AS_THEY_ARE = (
    8  # modules called last keep their inputs: in the last layer only targets have output gradients, and few rows
)
KEPT_SHARE = 5 / 8  # of a square matrix is kept
SLACK = 1.25  # times the work on norms that less memory may cost: with all blocks, a few per cent of the whole pass


class Condenser:
    """Replaces inputs by their Gram matrices and their projection, once some more modules have been called.

    Memory then grows with the square of a row's length, no more with the width of the model: an input is kept where
    that is more, and where norms are cheaper from the formed gradient.
    """

    def __init__(self, blocks: Sequence[Selected], factors: Factors, lengths: tuple[int, ...], tokens: int) -> None:
        self._factors, self._lengths, self._tokens = factors, lengths, tokens
        self._waiting: deque[tuple[nn.Module, Call]] = deque()
        self._last: tuple[Tensor, tuple[Gram, ...]] | None = None  # q, k and v have the same input; so do gate and up
        self._block_of: dict[nn.Module, Selected] = {}
        several = set()
        for b in blocks:
            for use in b.uses:
                if use.kind is Kind.LINEAR and b.part is None and len(b.uses) == 1:
                    self._block_of[use.module] = b
                elif use.kind is not Kind.BIAS:
                    several.add(use.module)
        for module in several:
            self._block_of.pop(module, None)

    def saw(self, module: nn.Module, call: Call) -> None:
        """A module has been called; the call of some modules ago may be condensed now."""
        if module in self._block_of:
            self._waiting.append((module, call))
        if len(self._waiting) > AS_THEY_ARE:
            self._condense(*self._waiting.popleft())

    def _condense(self, module: nn.Module, call: Call) -> None:
        b = self._block_of[module]
        x = by_example(call.input.to(b.parameter.device), len(self._lengths), self._tokens, b.block.name)
        known = self._last is not None and same(self._last[0], call.input)
        if not known and self._pays(b.block, self._outputs(b, call), x):
            grams = tuple(Gram.of(wide(x[i, :n])).trimmed() for i, n in enumerate(self._lengths))
            self._last, known = (call.input, grams), True
        if known and self._last:
            call.condense(Shortened(self._last[1], shorten(self._factors, b.block, 1, x)))

    def _outputs(self, b: Selected, call: Call) -> list[int]:
        """The widths of all outputs that come from the input of a call, of modules that have been called since."""
        others = [self._block_of[m] for m, c in self._waiting if same(c.input, call.input)]
        return [s.block.shape[0] for s in (b, *others)]

    def _pays(self, block: Block, outputs: Sequence[int], x: Float[Tensor, "b t d1"]) -> bool:
        """Whether that takes less memory than the input, and norms not much longer than they would with it."""
        d1, like = x.shape[2], wide(x[:0])
        if shorten(self._factors, block, 1, x[:0]).shape[2] == d1:
            return False
        kept = KEPT_SHARE * like.element_size() * sum(n * n for n in self._lengths)
        ghost = sum(norm_cost(n, sum(outputs), d1, like) for n in self._lengths)
        forming = sum(forming_cost(n, sum(outputs), d1) for n in self._lengths)
        return kept < x.element_size() * x.numel() and ghost < SLACK * forming
