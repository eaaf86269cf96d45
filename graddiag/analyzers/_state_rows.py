"""Which hidden states belong together: sites that all tables have, rows that were read under every model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.signals import Signals
from graddiag.sites import check_position, parse_site


def layers_at(position: str, *comparisons: Comparison) -> dict[int, str]:
    """The layers whose states at this position all tables have, in order, with the names of the sites.

    Raises UsageError for an unknown position, and DataError where a table has no states there or not those of the same
    layers.
    """
    check_position(position)
    found = [_layers(table, position) for c in comparisons for table in (c.left, c.right)]
    for table, layers in zip([t for c in comparisons for t in (c.left, c.right)], found, strict=True):
        name = f"{table.provenance.data} under {table.provenance.model}"
        if not layers:
            there = sorted({parse_site(s).position for s in table.states})
            raise DataError(
                f"{name}: there are no hidden states at {position!r}, only at {', '.join(there) or 'no position'}. "
                "Read all sets at the same layers and positions."
            )
        if layers != found[0]:
            raise DataError(
                f"{name}: hidden states at {position!r} are of layers {_some(layers)}, those of the first table of "
                f"layers {_some(found[0])}. Read all sets at the same layers."
            )
    return found[0]


def _layers(table: Signals, position: str) -> dict[int, str]:
    sites = [parse_site(name) for name in table.states]
    return {s.layer: s.name for s in sorted(sites) if s.position == position}


def _some(layers: dict[int, str]) -> str:
    shown = [str(k) for k in layers]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:5], "...", shown[-1]])


@dataclass(frozen=True)
class Shifts:
    """Rows that were read under three models, with two shifts of each: aligned minus base, and tuned minus aligned."""

    reference: Comparison
    change: Comparison
    reference_at: Int[np.ndarray, " n"]
    change_at: Int[np.ndarray, " n"]
    clusters: Int[np.ndarray, " n"]

    @staticmethod
    def of(reference: Comparison, change: Comparison) -> Shifts:
        """The rows that are pairs in both comparisons; clusters are those of the first, numbered without gaps.

        Raises DataError where the aligned model is not the same in both, no row is in both, or a row is not the same.
        """
        _check_aligned(reference, change)
        where = {change.left.ids[a]: k for k, a in enumerate(change.left_index)}
        at = [(k, where[i]) for k, a in enumerate(reference.left_index) if (i := reference.left.ids[a]) in where]
        names = reference.left.provenance.data, change.left.provenance.data
        if not at:
            raise DataError(
                f"No row of {names[0]} (aligned and base) has the id of a row of {names[1]} (tuned and aligned). Read "
                "the same rows under all three models."
            )
        first, second = np.array(at, dtype=np.int64).T
        for k, m in at:
            a, b = reference.left_index[k], change.right_index[m]
            if reference.left.digests[a] != change.right.digests[b]:
                raise DataError(
                    f"Row {reference.left.ids[a]!r} of {names[0]} is another text than that of {names[1]}, under the "
                    "same model. Read the same rows under all three models."
                )
        clusters = np.unique(reference.clusters[first], return_inverse=True)[1]
        return Shifts(reference, change, first, second, np.asarray(clusters))

    def alignment(self, site: str) -> Float[np.ndarray, "n d"]:
        """Aligned minus base, in the units of the hidden states."""
        return np.asarray(difference(self.reference, site)[self.reference_at])

    def tuning(self, site: str) -> Float[np.ndarray, "n d"]:
        """Tuned minus aligned."""
        return np.asarray(difference(self.change, site)[self.change_at])


def difference(comparison: Comparison, site: str) -> Float[np.ndarray, "p d"]:
    """Left minus right hidden states of each pair, in double precision."""
    left, right = comparison.left.states[site], comparison.right.states[site]
    return np.asarray(np.subtract(left[comparison.left_index], right[comparison.right_index], dtype=np.float64))


def _check_aligned(reference: Comparison, change: Comparison) -> None:
    a, b = reference.left.provenance, change.right.provenance
    if a.weights != b.weights:
        raise DataError(
            f"The aligned model must be the same in both comparisons, but it is {a.model} (left of the first) and "
            f"{b.model} (right of the second). The first is aligned and base, the second tuned and aligned."
        )
