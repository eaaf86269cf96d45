"""Which states does a comparison of two models hold at a site, row by row, and in which clusters are the rows?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from graddiag.comparison import Comparison
from graddiag.errors import DataError


@dataclass(frozen=True)
class States:
    """The states of the paired rows of one set at one site: under the tuned model (left) and the aligned one (right).

    `codes` numbers the cluster of each row, the same number for a cluster of the same name in every set of a reading.
    """

    name: str
    tuned: Float[np.ndarray, "n d"]
    aligned: Float[np.ndarray, "n d"]
    codes: Int[np.ndarray, " n"]

    @property
    def change(self) -> Float[np.ndarray, "n d"]:
        """Tuned minus aligned, row by row."""
        change: Float[np.ndarray, "n d"] = self.tuned - self.aligned
        return change

    def scaled(self, by: Float[np.ndarray, " d"]) -> States:
        """Every coordinate divided by a number of its own."""
        return replace(self, tuned=self.tuned / by, aligned=self.aligned / by)


def read_states(changes: Sequence[Comparison], site: str, names: Sequence[str], *, scaled: bool) -> list[States]:
    """The states of each set, in double precision; `scaled` divides by `typical_sizes` of the aligned states of all.

    Raises DataError where a set has no states at the site, no pair, or states of another size.
    """
    found = cluster_numbers(changes)
    out = [_read(c, site, n, codes) for c, n, codes in zip(changes, names, found, strict=True)]
    for other in out[1:]:
        if other.tuned.shape[1] != out[0].tuned.shape[1]:
            raise DataError(
                f"The states of {out[0].name} have {out[0].tuned.shape[1]} numbers at {site} and those of {other.name} "
                f"{other.tuned.shape[1]}: directions of different models cannot be compared."
            )
    by = typical_sizes([s.aligned for s in out]) if scaled else None
    return out if by is None else [s.scaled(by) for s in out]


def _read(change: Comparison, site: str, name: str, codes: Int[np.ndarray, " n"]) -> States:
    for side in (change.left, change.right):
        if site not in side.states:
            held = ", ".join(side.states) or "none"
            raise DataError(
                f"{name}: there are no states at {site!r} of {side.provenance.model}. Read it there. Sites in this "
                f"table: {held}."
            )
    if not change.n_pairs:
        raise DataError(f"{name}: no row of the tuned model has a partner of the same id under the aligned one.")
    sides = ((change.left, change.left_index), (change.right, change.right_index))
    tuned, aligned = (table.states[site][at].astype(np.float64) for table, at in sides)
    return States(name, tuned, aligned, codes)


def cluster_numbers(changes: Sequence[Comparison]) -> list[Int[np.ndarray, " _"]]:
    """The number of the cluster of each pair, for each set; clusters of one name have one number in all sets."""
    number: dict[str, int] = {}
    rows = [[number.setdefault(c.cluster_names[k], len(number)) for k in c.clusters.tolist()] for c in changes]
    return [np.array(r, dtype=np.int64) for r in rows]


def typical_sizes(rows: Sequence[Float[np.ndarray, "_ d"]]) -> Float[np.ndarray, " d"]:
    """The standard deviation of each coordinate within the sets; 1 for one that does not vary."""
    square = sum((centred(r) ** 2).sum(axis=0) for r in rows) / sum(len(r) for r in rows)
    size = np.sqrt(np.asarray(square, dtype=np.float64))
    return np.where(size > 0, size, 1.0)


def centred(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows, the mean over them subtracted from each."""
    out: Float[np.ndarray, "n d"] = rows - rows.mean(axis=0)
    return out


def check_names(changes: Sequence[Comparison], names: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, else those of the sets. Raises DataError where two sets have one name, and so one key."""
    found = tuple(names) if names is not None else tuple(c.left.provenance.data for c in changes)
    if len(found) != len(changes) or len(set(found)) != len(found):
        raise DataError(
            f"{len(changes)} sets need as many different names, and these are {', '.join(map(repr, found))}. "
            "Name them with `names`."
        )
    return found
