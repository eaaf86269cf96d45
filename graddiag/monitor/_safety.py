"""The fresh safety gradient of one probe: the mean over the safety examples, at the weights as they are now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.blocks import Selected
from graddiag.encoding import Encoded, batches
from graddiag.extractor import Extractor
from graddiag.gradients import Gradients, Outer, Workspace, wide
from graddiag.mean_gradient import MeanGradient


@dataclass(frozen=True, eq=False)
class Safety:
    """The mean gradient of the safety set per block, its norms, and the loss of each example in the set's order."""

    means: Mapping[str, Tensor]
    norms: Mapping[str, float]
    losses: Float[np.ndarray, " s"]
    nonfinite: int


def measure_safety(extractor: Extractor, rows: Sequence[Encoded], *, batch_tokens: int) -> Safety:
    """The safety set in eval mode, without a `.grad`, with the random state as before; examples that are not finite
    are left out of the mean and counted. Where none is finite, as in a model that has diverged, the mean is NaN."""
    mean = MeanGradient()
    losses, good = np.full(len(rows), np.nan), np.ones(len(rows), dtype=bool)
    for index in reversed(batches(rows, batch_tokens=batch_tokens)):  # too long a row fails at once
        adder = _Adder(mean, len(index))
        found = extractor.walk(extractor.collate([rows[i] for i in index]), adder)
        losses[index] = [float(x.double().mean()) for x in found]
        good[index] = adder.finite
    names = [b.block.name for b in extractor.blocks]
    means = {n: mean.totals[n] / (mean.counts[n] or math.nan) for n in names}
    norms = {n: float(torch.linalg.vector_norm(m.double())) for n, m in means.items()}
    return Safety(means, norms, losses, int((~(good & np.isfinite(losses))).sum()))


class _Adder:
    """Adds the gradients of a batch to a mean: all examples in one product where all are finite."""

    def __init__(self, mean: MeanGradient, n: int) -> None:
        self._mean, self._workspace = mean, Workspace()
        self.finite = np.ones(n, dtype=bool)

    def __call__(self, b: Selected, gradients: Gradients) -> None:
        total, name = self._mean.total(b), b.block.name
        if isinstance(gradients, Outer):
            left, right = (wide(x).flatten(0, 1) for x in (gradients.left, gradients.right))  # zeros where padded
            whole = left.T @ right
            if bool(torch.isfinite(whole.sum())):
                total += whole
                self._mean.counts[name] += len(gradients.lengths)
                return
        norm2 = gradients.products((), total=total, workspace=self._workspace).norm2
        finite = torch.isfinite(norm2).cpu().numpy()
        self._mean.counts[name] += int(finite.sum())
        self.finite &= finite
