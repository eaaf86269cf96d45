"""Which positions of which row of a batch belong to which example?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from graddiag.errors import DataError


@dataclass(frozen=True)
class Segment:
    """The place of one example in a batch: its row, and its positions from `start` to before `stop`."""

    row: int
    start: int
    stop: int

    @property
    def at(self) -> tuple[int, slice]:
        """Row and positions, as an index."""
        return self.row, slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class Marks:
    """What a batch says about where its examples are: which positions are used at all, and up to three ways to tell the
    examples of one row apart, None where it has none."""

    used: Bool[np.ndarray, "r t"]
    seq_idx: Int[np.ndarray, "r t"] | None = None
    cu_seq_lens: Int[np.ndarray, " m"] | None = None
    position_ids: Int[np.ndarray, "r t"] | None = None


def find_segments(marks: Marks) -> tuple[Segment, ...]:
    """The examples in the order of the batch: told apart by `seq_idx`, else by `cu_seq_lens`, else by where
    `position_ids` do not go up by 1; where none of them is there, each row is one example.

    Padding before a row's first used position belongs to the row's first example, since nothing looks at it; padding
    behind the last one to none. Raises DataError where the borders do not lie inside the rows.
    """
    rows, width = marks.used.shape
    if marks.cu_seq_lens is not None and marks.seq_idx is None:
        return _between(marks.cu_seq_lens, rows, width)
    key = _numbered(marks)
    found = []
    for row in range(rows):
        at = np.flatnonzero(marks.used[row])
        if not len(at):
            continue
        borders = at[1:][key[row][at[1:]] != key[row][at[:-1]]]
        edges = [0, *borders.tolist(), int(at[-1]) + 1]
        found += [Segment(row, a, b) for a, b in pairwise(edges)]
    return tuple(found)


def _numbered(marks: Marks) -> Int[np.ndarray, "r t"]:
    """A number for each position, which changes where a new example begins."""
    if marks.seq_idx is not None:
        return marks.seq_idx
    if marks.position_ids is None:
        return np.zeros(marks.used.shape, dtype=np.int64)
    # Padding on the left has what positions it likes: only borders between used positions count.
    goes_on = np.diff(marks.position_ids, axis=1) == 1
    return np.concatenate([np.zeros((len(goes_on), 1), np.int64), np.cumsum(~goes_on, axis=1)], axis=1)


def _between(borders: Int[np.ndarray, " m"], rows: int, width: int) -> tuple[Segment, ...]:
    edges = borders.tolist()
    whole = [(a, b) for a, b in pairwise(edges) if b > a]
    outside = [(a, b) for a, b in whole if a < 0 or b > rows * width or a // width != (b - 1) // width]
    if outside or edges != sorted(edges):
        raise DataError(
            f"cu_seq_lens_q is {edges[:6]}..., which are not the borders of examples inside {rows} rows of {width} "
            "tokens. Give the cumulative lengths of the flattened batch, beginning with 0."
        )
    return tuple(Segment(a // width, a % width, (b - 1) % width + 1) for a, b in whole)
