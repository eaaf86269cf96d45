"""What rows of one set have in common with each other: products, cosines and signs of these, all blocks as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graddiag import tiles as room
from graddiag.analyzers._row_sums import Groups, RowSums, inverse_norms
from graddiag.analyzers._rows import cosines_of
from graddiag.grams import Grams, whole_products
from graddiag.signals import Signals
from graddiag.statistics import cluster_sums
from graddiag.tiles import Tiles, fits


@dataclass(frozen=True)
class AgreementSums:
    """Sums of products, of cosines and of the signs of cosines; the last two without rows that are zero."""

    plain: RowSums
    unit: RowSums
    signs: RowSums

    @staticmethod
    def of(table: Signals, groups: Groups, grams: Grams | None = None) -> AgreementSums:
        """Those of a table's finite rows; `grams` are products that are known already."""
        if not fits(len(groups.sides)):
            return _of_tiles(Tiles((table,), table.blocks), groups)
        products = whole_products([table], grams)
        cosines = np.nan_to_num(cosines_of(products), copy=False, nan=0.0)
        sums = (RowSums.of_gram(m, groups) for m in (products, cosines, np.sign(cosines)))
        return AgreementSums(*sums)


def _of_tiles(tiles: Tiles, groups: Groups) -> AgreementSums:
    plain = sum((RowSums.of_rows(places, groups) for places in tiles), RowSums.zero(groups))
    lengths = inverse_norms(plain.squares)
    unit = sum((RowSums.of_rows(places * lengths[:, None], groups) for places in tiles), RowSums.zero(groups))
    some = (plain.squares > 0).astype(np.float64)
    return AgreementSums(plain, RowSums(some, unit.whole, unit.inside), _signs(tiles, groups, some))


def _signs(tiles: Tiles, groups: Groups, some: np.ndarray) -> RowSums:
    """A sign is no sum over places: products of all rows with some of them at a time, all tiles read for each."""
    whole, inside = np.zeros((2, len(some), 1))
    step = max(room.TILE // (8 * max(len(some), 1)), 1)
    for start in range(0, len(some), step):
        at = slice(start, start + step)
        products = np.zeros((len(some), len(some[at])))
        for places in tiles:
            products += places @ places[at].T
        signs = cluster_sums(np.sign(products), groups.clusters, groups.n_clusters)
        whole[at, 0] = signs.sum(axis=0)
        inside[at, 0] = signs[groups.clusters[at], np.arange(len(some[at]))]
    return RowSums(some, whole, inside)
