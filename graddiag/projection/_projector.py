"""The projector of a kind, and how two are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.errors import UsageError
from graddiag.gradients import Gradients, Outer
from graddiag.projection._dense import GaussianRows
from graddiag.projection._exact import Exact
from graddiag.projection._logra import LoGra
from graddiag.projection._lowrank import Bases, LowRank
from graddiag.projection._sjlt import Sjlt
from graddiag.signals import Block, digest_of

KINDS = ("exact", "logra", "sjlt", "dense", "lowrank")
_PROBE = Block("probe", (48, 40))  # the block whose projection is hashed, so that two spaces can be told apart


@runtime_checkable
class Projector(Protocol):
    """Maps the gradient of one example in one block to a row of length `size(block)`.

    Law: over seeds, the expected inner product of two rows is the inner product of the two gradients.
    """

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        ...

    @property
    def dim(self) -> int:
        """Numbers per row and block, 0 where nothing is projected."""
        ...

    @property
    def seed(self) -> int:
        """Which random matrices."""
        ...

    def size(self, block: Block) -> int:
        """Length of a row."""
        ...

    def rows(self, block: Block, gradients: Gradients) -> Float[Tensor, "b k"]:
        """One row per example."""
        ...


def make_projector(
    kind: str, dim: int, seed: int, *, blocks: Sequence[Block] = (), bases: Bases | None = None
) -> Projector:
    """The projector of a kind, for these blocks; `lowrank` has its bases.

    Raises UsageError for an unknown kind, a `dim` that the kind does not take, `lowrank` without the bases of these
    blocks, and `dense` on so many numbers that it is hopeless.
    """
    if kind == "exact":
        return Exact()
    if kind == "logra":
        return LoGra(dim, seed)
    if kind == "sjlt":
        return Sjlt(dim, seed)
    if kind == "dense":
        dense = GaussianRows(dim, seed)
        dense.check(blocks)
        return dense
    if kind != "lowrank":
        raise UsageError(f"There is no projection {kind!r}. Allowed: {', '.join(KINDS)}.")
    if bases is None:
        raise UsageError(
            "The projection 'lowrank' needs a reference: the examples whose mean gradient says where to look. Give "
            "reference=examples, or the bases of an earlier measurement; on the command line --reference SET or RUN."
        )
    low_rank = LowRank(dim, seed, bases)
    low_rank.check(blocks)
    return low_rank


def probe_digest(projector: Projector) -> str:
    """A digest of what the projector does to a fixed gradient, and of its bases: equal digests, equal projections."""
    low_rank = projector if isinstance(projector, LowRank) else None
    seen = LoGra(low_rank.dim, low_rank.seed) if low_rank else projector  # its random rows are these, off the bases
    left = torch.linspace(-1, 1, _PROBE.shape[0], dtype=torch.float64).reshape(1, 1, -1)
    right = torch.linspace(-1, 1, _PROBE.shape[1], dtype=torch.float64).reshape(1, 1, -1)
    row = seen.rows(_PROBE, Outer(left, right, (1,))).numpy()
    return digest_of([",".join(f"{x:.9g}" for x in row.ravel()), *([low_rank.bases.digest] if low_rank else [])])
