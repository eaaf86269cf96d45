"""The mean paired cosine among permuted partners from tiles of rows: only rows that share a cluster ever meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag import tiles as room
from graddiag.permutations import Null, null_of_pairings


@dataclass(frozen=True)
class _Part:
    """Some pairs of a cluster whose left rows meet the right rows of all its pairs."""

    pairs: Int[np.ndarray, " a"]
    cluster: Int[np.ndarray, " b"]


def partner_null(
    tiles: Iterable[Float[np.ndarray, "m _"]],
    lengths: Float[np.ndarray, " m"],
    at: tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]],
    clusters: Int[np.ndarray, " p"],
    partners: Int[np.ndarray, "p b"],
) -> Null:
    """`partner_permutations` of rows of which all tiles together have all places, and `lengths` one over the norms.

    `at` are the rows of the two members of each pair. All tiles are read once for as many cosines as fit into one.
    """
    if (partners == partners[:, :1]).all():
        return Null(np.zeros(0))
    some = [lengths[side] > 0 for side in at]
    sums, counts = np.zeros((2, partners.shape[1]))
    place = np.empty(len(clusters), dtype=np.int64)  # of a pair among those of its cluster
    largest = 0.0
    for batch in _batches(clusters):
        products = _products(tiles, at, batch)
        for part, matrix in zip(batch, products, strict=True):
            place[part.cluster] = np.arange(len(part.cluster))
            cosines = matrix * lengths[at[0][part.pairs], None] * lengths[at[1][part.cluster]]
            np.clip(cosines, -1.0, 1.0, out=cosines)
            largest = max(largest, float(np.abs(cosines).max()))
            for i, row in zip(part.pairs, cosines, strict=True):
                sums += row.take(place[partners[i]])
                counts += some[1][partners[i]] if some[0][i] else 0.0
    means = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return null_of_pairings(means, largest) if (some[0] & some[1]).any() else Null(np.zeros(0))


def _batches(clusters: Int[np.ndarray, " p"]) -> Iterator[list[_Part]]:
    """All pairs, in parts whose cosines fit into one tile together."""
    batch: list[_Part] = []
    left = room.TILE
    order = np.argsort(clusters, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        start = 0
        while start < len(members):
            n = max(left // (8 * len(members)), 0 if batch else 1)
            if not n:
                yield batch
                batch, left = [], room.TILE
                continue
            pairs = members[start : start + n]
            batch.append(_Part(pairs, members))
            start, left = start + len(pairs), max(left - 8 * len(pairs) * len(members), 0)
    yield batch


def _products(
    tiles: Iterable[Float[np.ndarray, "m _"]],
    at: tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]],
    batch: list[_Part],
) -> list[np.ndarray]:
    """Of the left rows of each part with the right rows of its cluster, [a, b] each."""
    out = [np.zeros((len(p.pairs), len(p.cluster))) for p in batch]
    for places in tiles:
        for total, part in zip(out, batch, strict=True):
            np.add(total, places[at[0][part.pairs]] @ places[at[1][part.cluster]].T, out=total)
    return out
