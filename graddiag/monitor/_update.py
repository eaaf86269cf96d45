"""What the optimizer really subtracted from the weights, beside the safety gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graddiag.blocks import Selected
from graddiag.gradients import wide
from graddiag.probes import Against


class UpdateReader:
    """Keeps the weights of some blocks from just before an optimizer's step until just after it."""

    def __init__(self, blocks: Sequence[Selected]) -> None:
        self._blocks = blocks
        self._before: dict[int, Tensor] = {}

    def before(self) -> None:
        """Keeps the weights as they are."""
        self._before = {id(b.parameter): b.parameter.detach().clone() for b in self._blocks}

    def after(self, means: Mapping[str, Tensor]) -> Against | None:
        """Weights before minus weights now, beside the means; None where `before` was not called. Forgets them."""
        if not self._before:
            return None
        dot, norm = {}, {}
        with torch.no_grad():
            for b in self._blocks:
                whole = wide(self._before[id(b.parameter)]) - wide(b.parameter.detach())
                part = whole.narrow(b.part.dim, b.part.start, b.part.stop - b.part.start) if b.part else whole
                dot[b.block.name] = float((part.to(means[b.block.name].dtype) * means[b.block.name]).sum())
                norm[b.block.name] = float(torch.linalg.vector_norm(part))
        self._before = {}
        return Against(dot, norm)
