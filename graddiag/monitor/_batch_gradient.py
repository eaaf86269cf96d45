"""The gradient that a step's backward passes give the parameters, beside the safety gradient: read as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from graddiag.blocks import Selected
from graddiag.monitor._guard import Guard
from graddiag.monitor._standin import StandIn, squared_norm
from graddiag.probes import Against


@dataclass
class _Sum:
    """The running sum of a block's gradients: its products with the mean and with the stand-in, its squared norm."""

    dot: Tensor
    stand_in: Tensor
    norm2: Tensor
    unknown: bool  # the parameter already had a gradient when the step began, so a sum cannot be told from it


class BatchGradient:
    """Sums over the backward passes of a step, before clipping. No gradient is kept: the norm of a sum is had from what
    the parameter's `.grad` holds when the next part arrives."""

    def __init__(
        self, blocks: Sequence[Selected], stand_ins: Mapping[str, StandIn], scale: Callable[[], float]
    ) -> None:
        self._blocks, self._stand_ins, self._scale_now = blocks, stand_ins, scale
        self.scale = 1.0  # by which the last gradients were too large
        self._sums: dict[str, _Sum] = {}

    @contextmanager
    def running(self, guard: Guard) -> Iterator[None]:
        """Gradients that arrive inside are read."""
        handles = []
        for b in self._blocks:
            if b.parameter.requires_grad:
                handles.append(b.parameter.register_hook(guard(self._hook(b))))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, b: Selected) -> Callable[[Tensor], None]:
        return lambda grad: self._add(b, grad)

    def _add(self, b: Selected, grad: Tensor) -> None:
        name, device = b.block.name, grad.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            part, stand_in = share(grad, b), self._stand_ins[name]
            self.scale = scale = self._scale_now()
            dot = (part.to(stand_in.whole.dtype) * stand_in.whole).sum() / scale
            rough = dot if stand_in.exact else stand_in.dot(part) / scale
            norm2 = squared_norm(part) / scale**2
            before = b.parameter.grad
            old = self._sums.get(name)
            if old is None:
                unclean = before is not None and bool(before.any())
                self._sums[name] = _Sum(dot, rough, norm2, unclean)
                return
            if before is not None:
                wide = part.to(stand_in.whole.dtype)
                norm2 = norm2 + 2 * (wide * share(before, b)).sum() / scale**2
            self._sums[name] = _Sum(
                old.dot + dot,
                old.stand_in + rough,
                old.norm2 + norm2 if not old.unknown else torch.full_like(norm2, torch.nan),
                old.unknown,
            )

    def against(self) -> Against:
        """The sum beside the safety gradient, per block; 0 where no gradient arrived."""
        names = [b.block.name for b in self._blocks]
        sums = {n: self._sums.get(n) for n in names}
        return Against(
            {n: float(s.dot) if s else 0.0 for n, s in sums.items()},
            {n: float(s.norm2.clamp(min=0).sqrt()) if s else 0.0 for n, s in sums.items()},
        )

    def stand_in_dot(self, name: str) -> float:
        """The sum's product with the stand-in of the mean, in one block."""
        found = self._sums.get(name)
        return float(found.stand_in) if found else 0.0

    def arrived(self, name: str) -> bool:
        """Whether a block's parameter had a gradient that is not 0."""
        found = self._sums.get(name)
        return found is not None and float(found.norm2) != 0


def held(blocks: Sequence[Selected], means: Mapping[str, Tensor]) -> Against:
    """The gradient that the parameters hold now, beside the means: averaged over processes, maybe clipped."""
    dot, norm = {}, {}
    with torch.no_grad():
        for b in blocks:
            name, grad = b.block.name, b.parameter.grad
            part = None if grad is None else share(grad, b)
            dot[name] = 0.0 if part is None else float((part.to(means[name].dtype) * means[name]).sum())
            norm[name] = 0.0 if part is None else float(squared_norm(part).sqrt())
    return Against(dot, norm)


def share(x: Tensor, b: Selected) -> Tensor:
    """The block's share of something of its parameter's shape: one attention head's, or all."""
    return x.narrow(b.part.dim, b.part.start, b.part.stop - b.part.start) if b.part else x
