"""Several processes that train one model: what each saw of a step becomes one probe, the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch.distributed as dist

from graddiag.errors import DataError
from graddiag.monitor._check import WrongRows
from graddiag.probes import Against, Probe

T = TypeVar("T")


class FailedTogether(DataError):
    """An error of one process that all of them know of."""


class WrongTogether(FailedTogether, WrongRows):
    """Wrong rows in one process, that all of them know of."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: how many, and which this is."""

    count: int = 1
    this: int = 0

    @staticmethod
    def now() -> Ranks:
        """Those of torch's process group; one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return Ranks(dist.get_world_size(), dist.get_rank())
        return Ranks()

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def gathered(self, mine: T) -> list[T]:
        """What every process gave, in their order. All must call it."""
        out: list[T | None] = [None] * self.count
        dist.all_gather_object(out, mine)
        return out  # type: ignore[return-value]


@dataclass(frozen=True)
class Part:
    """What one process has of a probe: the probe of its own examples, and the gradient that all share; or an error."""

    probe: Probe | None
    shared: Against | None
    error: str | None
    wrong: bool

    @staticmethod
    def of(probe: Probe | None, shared: Against | None, error: Exception | None) -> Part:
        """The part of a process that got this far."""
        said = None if error is None else f"{type(error).__name__}: {error}"
        return Part(probe, shared, said, isinstance(error, WrongRows))


def meet_first_check(ranks: Ranks, error: Exception | None) -> None:
    """Where all processes meet before the first step. Raises WrongTogether in all where one has wrong rows."""
    found = ranks.gathered(Part.of(None, None, error if isinstance(error, WrongRows) else None))
    _check(found)


def _check(parts: Sequence[Part]) -> None:
    failed = [(k, p) for k, p in enumerate(parts) if p.error is not None]
    if failed:
        kind = WrongTogether if any(p.wrong for _, p in failed) else FailedTogether
        raise kind(" ".join(f"Process {k} of {len(parts)}: {p.error}" for k, p in failed))


def joined(parts: Sequence[Part]) -> Probe:
    """One probe of all processes: their examples one after the other, and the mean of their gradients.

    A process has the gradient of its own examples; the norm of the mean is that of the shared gradient before the step,
    freed from clipping by what clipping did to the products. Raises FailedTogether, or WrongTogether, where one failed.
    """
    _check(parts)
    probes = [p.probe for p in parts if p.probe is not None]
    first = probes[0]
    dot = {n: float(np.mean([p.gradient.dot[n] for p in probes])) for n in first.gradient.dot}
    return replace(
        first,
        gradient=Against(dot, _norms(dot, parts[0].shared)),
        ids=tuple(i for p in probes for i in p.ids),
        nonfinite=sum(p.nonfinite for p in probes),
        seconds=max(p.seconds for p in probes),
        step_seconds=max(p.step_seconds for p in probes),
        notes=tuple(dict.fromkeys(n for p in probes for n in p.notes)),
        dots=np.concatenate([p.dots for p in probes]),
        norms=np.concatenate([p.norms for p in probes]),
        losses=np.concatenate([p.losses for p in probes]),
    )


def _norms(dot: Mapping[str, float], shared: Against | None) -> dict[str, float]:
    """The norms of the gradient whose products are `dot`; `shared` is that gradient times some number."""
    if shared is None:
        return dict.fromkeys(dot, float("nan"))
    size = sum(d**2 for d in dot.values())
    factor = sum(d * shared.dot[n] for n, d in dot.items()) / size if size else 1.0
    return {n: x / abs(factor) if factor else float("nan") for n, x in shared.norm.items()}
