"""Where the products of both sides' rows come from: a Gram matrix, or tiles of the rows where none would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from graddiag.analyzers._conflict_error import LabelWeights
from graddiag.analyzers._partner_tiles import partner_null
from graddiag.analyzers._row_sums import RowSums, inverse_norms
from graddiag.analyzers._rows import Rows, are_rounding, cosines_of, label_products, without_rounding
from graddiag.analyzers._side_products import SideProducts
from graddiag.permutations import Null, partner_permutations
from graddiag.relabelling import Relabellings
from graddiag.statistics import COSINE, ROUNDING, cluster_sums
from graddiag.tiles import Tiles


@dataclass(frozen=True)
class Chance:
    """What is permuted, the same in all blocks: partners inside the `clusters` of pairs, and the labels of clusters."""

    clusters: Int[np.ndarray, " p"]
    partners: Int[np.ndarray, "p b"]
    labels: Relabellings
    weights: LabelWeights


def of_gram(products: Float[np.ndarray, "m m"], rows: Rows, chance: Chance) -> SideProducts:
    """From the products of all rows, centred already where they are to be."""
    cosines = cosines_of(products)
    matched = cosines[: rows.n_left, rows.n_left :][np.ix_(rows.left_at, rows.right_at)]
    partners, paired = partner_permutations(matched, chance.partners), matched.diagonal().copy()
    of_labels = label_products(products, rows)
    return SideProducts(
        plain=RowSums.of_gram(products, rows.groups),
        unit=RowSums.of_gram(np.nan_to_num(cosines, copy=False, nan=0.0), rows.groups),
        paired=paired,
        partners=partners,
        labels=chance.labels.null(of_labels),
        label_totals=chance.weights.totals(of_labels),
    )


@dataclass(frozen=True)
class _Prepared:
    """Tiles of rows with the mean of all of them subtracted if `centered`, and rows that are `gone` then as zeros."""

    tiles: Tiles
    centered: bool
    gone: Bool[np.ndarray, " m"]

    @staticmethod
    def of(tiles: Tiles, *, centered: bool) -> tuple[_Prepared, Float[np.ndarray, " m"]]:
        """And the squared norm of each row; a row that equals the mean up to rounding is zero, as in `centre`."""
        raw, squares = np.zeros((2, tiles.n_rows))
        for places in tiles:
            raw += np.einsum("mk,mk->m", places, places)
            if centered:
                np.subtract(places, places.mean(axis=0), out=places)
                squares += np.einsum("mk,mk->m", places, places)
        if not centered:
            return _Prepared(tiles, False, np.zeros(len(raw), dtype=bool)), raw
        gone = squares <= ROUNDING * raw.max()
        return _Prepared(tiles, True, gone), np.where(gone, 0.0, squares)

    def __iter__(self) -> Iterator[Float[np.ndarray, "m k"]]:
        for places in self.tiles:
            if self.centered:
                np.subtract(places, places.mean(axis=0), out=places)
                places[self.gone] = 0.0
            yield places


def of_tiles(tiles: Tiles, rows: Rows, chance: Chance, *, centered: bool) -> SideProducts:
    """From the rows themselves, some places at a time: what `of_gram` gives but for rounding, and no matrix of all rows
    with each other."""
    prepared, squares = _Prepared.of(tiles, centered=centered)
    lengths, groups = inverse_norms(squares), rows.groups
    plain, unit = RowSums.zero(groups), RowSums.zero(groups)
    paired, right_at = np.zeros(len(rows.left_at)), rows.n_left + rows.right_at
    labels = _Labels(rows, chance)
    for places in prepared:
        plain += RowSums.of_rows(places, groups)
        labels.add(places)
        np.multiply(places, lengths[:, None], out=places)
        unit += RowSums.of_rows(places, groups)
        paired += np.einsum("pk,pk->p", places[rows.left_at], places[right_at])
    some = squares > 0
    null, totals = labels.found(squares)
    return SideProducts(
        plain=plain,
        unit=RowSums(some.astype(np.float64), unit.whole, unit.inside),
        paired=np.where(some[rows.left_at] & some[right_at], np.clip(paired, *COSINE), np.nan),
        partners=partner_null(prepared, lengths, (rows.left_at, right_at), chance.clusters, chance.partners),
        labels=null,
        label_totals=totals,
    )


class _Labels:
    """The distance of the means among permuted labels, added up over tiles."""

    def __init__(self, rows: Rows, chance: Chance) -> None:
        self._rows, self._chance = rows, chance
        n = rows.n_clusters
        self._products = np.zeros((n, n)) if chance.weights.middle is not None else None
        self._squares, self._moved = np.zeros(n), np.zeros(len(chance.labels.signs))

    def add(self, places: Float[np.ndarray, "m k"]) -> None:
        """What some places of the rows add."""
        groups = self._rows.groups
        signed = places * np.where(groups.sides == 0, 1.0, -1.0)[:, None]
        sums = cluster_sums(signed, groups.clusters, groups.n_clusters)
        sums -= np.outer(self._rows.more_left, places.mean(axis=0))
        if self._products is not None:
            self._products += sums @ sums.T
        else:
            self._squares += np.einsum("ck,ck->c", sums, sums)
            self._moved += self._chance.labels.squares(sums)

    def found(self, squares: Float[np.ndarray, " m"]) -> tuple[Null, Float[np.ndarray, " 2"]]:
        """The null and the totals, given the squared norms of the rows."""
        labels, weights = self._chance.labels, self._chance.weights
        if self._products is not None:
            products = without_rounding(self._products, squares, self._rows)
            return labels.null(products), weights.totals(products)
        if are_rounding(self._squares, squares, self._rows).all():
            self._squares[:], self._moved[:] = 0.0, 0.0
        totals = np.array([weights.real * self._moved[0], float((self._moved * labels.scale).mean())])
        return labels.null_of_squares(self._moved, np.sqrt(self._squares)), totals
