"""How do the numbers of a projected row lie, and which of them come from random directions?"""

from __future__ import annotations

import math
from dataclasses import dataclass

ONE_SIDED = ("sjlt", "dense")
# Of i.i.d. rows, k of d directions have 1 / (1 - k / d) times the variance of orthonormal ones. Below a quarter the QR
# would buy less than that quarter, and i.i.d. rows have a variance in closed form.
ORTHONORMAL_SHARE = 0.25
QR_ENTRIES = 2**22  # of a matrix up to which its QR is a matter of seconds, and 32 MiB


@dataclass(frozen=True)
class RowLayout:
    """A row as an array of shape `kept`: one side or two. On side s the first `fixed[s]` places are no random ones.

    `unseen[s]` is the share of side s's directions that its random places leave out where those are orthonormal, as
    draws without replacement are; 1 where they are independent.

    Random places of one side are exchangeable: each alone, scaled up, gives an unbiased inner product, which is what
    makes the projection's error measurable from the rows themselves.
    """

    kept: tuple[int, ...]
    fixed: tuple[int, ...]
    unseen: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.unseen:
            object.__setattr__(self, "unseen", (1.0,) * len(self.kept))

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return math.prod(self.kept)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is random: the row is the gradient itself, or a rotation of it."""
        return self.kept == self.fixed


def row_layout(projection: str, dim: int, shape: tuple[int, ...]) -> RowLayout:
    """The layout of a block's rows under a kind of projection with `dim` numbers at most; `shape` is the block's.

    A side that would not be shortened is kept as it is, and so is a block of no more than `dim` elements.
    """
    if projection in ONE_SIDED:
        shape = (math.prod(shape),)
    sides = two_sides(shape)
    if projection == "exact" or math.prod(sides) <= dim:
        return RowLayout(sides, sides)
    most = dim if len(sides) == 1 else math.isqrt(dim)
    kept = tuple(min(d, most) for d in sides)
    chosen = most // 2 if projection == "lowrank" and len(sides) == 2 else 0
    fixed = tuple(k if k == d else chosen for k, d in zip(kept, sides, strict=True))
    unseen = tuple(
        1 - (k - f) / (d - f) if projection != "sjlt" and k < d and becomes_orthonormal(k - f, d - f) else 1.0
        for k, f, d in zip(kept, fixed, sides, strict=True)
    )
    return RowLayout(kept, fixed, unseen)


def becomes_orthonormal(k: int, d: int) -> bool:
    """Whether k random directions of d are made orthonormal: where it pays, and can be paid."""
    return k >= ORTHONORMAL_SHARE * d and k * d <= QR_ENTRIES


def two_sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as one or two sides: experts and their outputs count as one."""
    return shape if len(shape) <= 2 else (math.prod(shape[:-1]), shape[-1])
