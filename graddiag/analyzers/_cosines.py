"""How do single rows point: cosines of pairs and of rows with the mean safety gradient, exact or projected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.signals import PairProducts, Signals, check_gradients, check_same_space
from graddiag.statistics import cosine


@dataclass(frozen=True)
class RowCosines:
    """One cosine per row, of the whole vector and of each block; NaN where a gradient is zero or the row not finite."""

    whole: Float[np.ndarray, " n"]
    blocks: Mapping[str, Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Products:
    """Of one block: inner products of two vectors per row, and both squared norms."""

    block: str
    inner: Float[np.ndarray, " n"]
    squares_a: Float[np.ndarray, " n"]
    squares_b: Float[np.ndarray, " n"]


def row_cosines(parts: Iterable[Products]) -> RowCosines:
    """Cosines per block, and of all blocks as one vector: summed products over the root of summed squared norms."""
    blocks: dict[str, Float[np.ndarray, " n"]] = {}
    whole = np.zeros((3, 0))
    for part in parts:
        inner, a, b = (v.astype(np.float64) for v in (part.inner, part.squares_a, part.squares_b))
        whole = np.stack([inner, a, b]) + (whole if blocks else 0.0)
        blocks[part.block] = cosine(inner, np.sqrt(a), np.sqrt(b))
    return RowCosines(cosine(whole[0], np.sqrt(whole[1]), np.sqrt(whole[2])), blocks)


def rows64(table: Signals, block: str) -> Float[np.ndarray, "n k"]:
    """The projected gradients of the finite rows in double precision: sums over many rows and blocks lose little."""
    return np.asarray(table.gradients[block][table.finite], dtype=np.float64)


@dataclass(frozen=True)
class At:
    """Which rows of the two sides meet: row `left[k]` of the left and row `right[k]` of the right."""

    left: Int[np.ndarray, " p"]
    right: Int[np.ndarray, " p"]

    @staticmethod
    def of(comparison: Comparison, products: PairProducts) -> tuple[At, list[int]]:
        """The rows that products are of, and of which products: without those of a row that is not finite."""
        sides = comparison.left, comparison.right
        where = [{i: k for k, i in enumerate(s.ids) if s.finite[k]} for s in sides]
        both = zip(products.left_ids, products.right_ids, strict=True)
        found = [(k, where[0][a], where[1][b]) for k, (a, b) in enumerate(both) if a in where[0] and b in where[1]]
        left, right = (np.array([f[side] for f in found], dtype=np.int64) for side in (1, 2))
        return At(left, right), [f[0] for f in found]


def projected_pairs(comparison: Comparison, at: At | None = None) -> RowCosines:
    """Projected cosines of the two members of each pair, or of the rows that meet, [p], with projected norms."""
    at = at or At(comparison.left_index, comparison.right_index)
    return row_cosines(_projected_pair_products(comparison, block, at) for block in comparison.left.blocks)


def _projected_pair_products(comparison: Comparison, block: str, at: At) -> Products:
    a = comparison.left.gradients[block][at.left].astype(np.float64)
    b = comparison.right.gradients[block][at.right].astype(np.float64)
    return Products(block, *(np.einsum("pk,pk->p", x, y) for x, y in ((a, b), (a, a), (b, b))))


def exact_pairs(comparison: Comparison, products: PairProducts, at: At | None = None) -> RowCosines:
    """Exact cosines of the two members of each pair, or of the rows that meet, [p], with exact norms."""
    at = at or At(comparison.left_index, comparison.right_index)
    return row_cosines(
        Products(
            block,
            products.inner[block],
            comparison.left.norms[block][at.left].astype(np.float64) ** 2,
            comparison.right.norms[block][at.right].astype(np.float64) ** 2,
        )
        for block in comparison.left.blocks
    )


def mean_gradient(safety: Signals, block: str) -> Float[np.ndarray, " k"]:
    """The mean of the finite rows in one block, projected."""
    return np.asarray(rows64(safety, block).mean(axis=0))


def projected_with(table: Signals, means: Mapping[str, Float[np.ndarray, " k"]]) -> RowCosines:
    """Projected cosine of each row with the gradient whose blocks are `means`, [n]."""
    return _spread(table, row_cosines(_products_with(table, block, means[block]) for block in table.blocks))


def _products_with(table: Signals, block: str, vector: Float[np.ndarray, " k"]) -> Products:
    rows = rows64(table, block)
    return Products(block, rows @ vector, np.einsum("nk,nk->n", rows, rows), np.full(len(rows), vector @ vector))


def exact_with_reference(table: Signals) -> RowCosines:
    """Exact cosine of each row with the mean gradient that `table.reference` names, [n]."""
    return with_reference(table, table.reference_dot, table.norms)


def with_reference(
    table: Signals, inner: Mapping[str, Float[np.ndarray, " n"]], norms: Mapping[str, Float[np.ndarray, " n"]]
) -> RowCosines:
    """Cosine with the table's reference of one vector per row, given by its products with it and its norms, [n]."""
    reference = table.reference
    assert reference is not None
    at = np.flatnonzero(table.finite)
    parts = (
        Products(
            block,
            inner[block][at],
            norms[block][at].astype(np.float64) ** 2,
            np.full(len(at), reference.norms[block] ** 2),
        )
        for block in table.blocks
    )
    return _spread(table, row_cosines(parts))


def _spread(table: Signals, cosines: RowCosines) -> RowCosines:
    """The same numbers with NaN in the place of every row that is not finite."""

    def spread(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
        out = np.full(len(table), np.nan)
        out[table.finite] = values
        return out

    return RowCosines(spread(cosines.whole), {b: spread(v) for b, v in cosines.blocks.items()})


def knows_safety(table: Signals, safety: Signals) -> bool:
    """Whether the table has exact inner products with the mean gradient of these safety rows under the same weights."""
    reference = table.reference
    return (
        reference is not None
        and reference.rows == safety.rows
        and reference.weights == safety.provenance.weights
        and all(b in table.reference_dot for b in table.blocks)
    )


def check_safety(comparison: Comparison, safety: Signals, controls: Mapping[str, Signals]) -> None:
    """Raises DataError where a set was measured in another space or without gradients, or no safety row is finite."""
    left = comparison.left
    check_gradients(left.space, left.provenance.data)
    for other in (safety, *controls.values()):
        check_same_space(left.space, other.space, left.provenance.data, other.provenance.data)
    if not safety.finite.any():
        raise DataError(
            f"{safety.provenance.data}: none of its {len(safety)} rows has a finite loss and gradient, so there is no "
            "mean safety gradient. Use another safety set, or --safety none."
        )
