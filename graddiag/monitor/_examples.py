"""The numbers of a step's examples, collected block by block as their gradients come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import DataError
from graddiag.monitor._batch_gradient import BatchGradient
from graddiag.monitor._capture import Pass
from graddiag.monitor._standin import StandIn

_ADDS_UP = 1e-2  # of the product of the norms: rounding of half precision stays below; a part that is missing does not
_UNEVEN = (
    "The examples' gradients do not add up to the batch's in {n} of {of} blocks, the first is {first}: something else "
    "than the examples' own losses is trained too (a penalty?), or part of it went past the monitor."
)


@dataclass(frozen=True, eq=False)
class OfExamples:
    """The examples of a step in their order: ids, inner products with the safety gradient, norms and losses, each [n],
    of each one's own mean loss."""

    ids: tuple[str, ...]
    dots: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(one: Pass, dots: Float[np.ndarray, " n"], norms: Float[np.ndarray, " n"]) -> OfExamples:
        """Those of one forward pass."""
        empty = one.inputs.without_target
        notes = (f"{empty} examples have no target token: nothing is learnt from them, and they have no row.",)
        assert one.weights is not None
        return OfExamples(one.inputs.ids, dots, norms, one.weights.losses(), notes if empty else ())

    @staticmethod
    def none() -> OfExamples:
        """Those of a process that has no batch."""
        return OfExamples((), np.zeros(0), np.zeros(0), np.zeros(0))

    @staticmethod
    def concat(parts: Sequence[OfExamples], notes: tuple[str, ...]) -> OfExamples:
        """The parts one after the other, with what else must be said."""
        dots, norms, losses = (np.concatenate([getattr(p, x) for p in parts]) for x in ("dots", "norms", "losses"))
        said = dict.fromkeys(n for p in parts for n in p.notes)
        return OfExamples(tuple(i for p in parts for i in p.ids), dots, norms, losses, (*said, *notes))

    @property
    def nonfinite(self) -> int:
        """Examples whose gradient is not finite; a loss that is not has no other."""
        return int((~np.isfinite(self.norms)).sum())


@dataclass(eq=False)
class Rows:
    """Of each pass and block: inner products with the stand-in [n] and squared norms [n], not scaled yet."""

    dots: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    norm2: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def add(self, one: Pass, name: str, dot: Tensor, norm2: Tensor) -> None:
        """Keeps one block of one pass. Raises DataError unless every example has its row."""
        n = len(one.inputs.segments)
        if len(dot) != n or (one.number, name) in self.dots:
            raise DataError(f"{len(dot)} rows captured in {name!r} of a batch of {n} examples: none may be missing.")
        self.dots[one.number, name], self.norm2[one.number, name] = dot, norm2

    def check_complete(self, passes: Sequence[Pass], names: Sequence[str], batch: BatchGradient) -> None:
        """Raises DataError where a block's parameter had a gradient and its rows were not seen."""
        for name in names:
            if batch.arrived(name) and not any((p.number, name) in self.dots for p in passes):
                n = sum(len(p.inputs.segments) for p in passes)
                raise DataError(
                    f"0 rows captured of {n} examples in {name!r}, though its parameter had a gradient. A compiled "
                    "model or a fused kernel goes past the hooks: give the monitor and the loop the model as it was "
                    "before torch.compile, or leave such blocks out with blocks=[...]."
                )

    def of(self, one: Pass, names: Sequence[str], factors: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and norms of one pass's examples, all blocks as one vector, of each one's own mean loss."""
        dots, norm2 = (np.zeros(len(factors)) for _ in range(2))
        for name in names:
            if (one.number, name) in self.dots:
                dots += _numpy(self.dots[one.number, name])
                norm2 += _numpy(self.norm2[one.number, name])
        return dots * factors, np.sqrt(np.maximum(norm2, 0)) * np.abs(factors)

    def notes(
        self,
        passes: Sequence[Pass],
        names: Sequence[str],
        batch: BatchGradient,
        stand_ins: Mapping[str, StandIn],
    ) -> tuple[str, ...]:
        """What must be said where rows and batch do not add up."""
        norms = batch.against().norm
        off = []
        for name in names:
            total = sum(
                float(self.dots[p.number, name].double().sum()) for p in passes if (p.number, name) in self.dots
            )
            far = abs(total / batch.scale - batch.stand_in_dot(name))
            if far > _ADDS_UP * norms[name] * stand_ins[name].norm2 ** 0.5:  # NaN is counted elsewhere
                off.append(name)
        return (_UNEVEN.format(n=len(off), of=len(names), first=off[0]),) if off else ()


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
