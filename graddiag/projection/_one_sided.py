"""A linear map of the flattened gradient, row by row of the block: what is formed at once is one tile of one
example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from graddiag.gradients import Dense, Gradients, Lookup, Outer, wide
from graddiag.row_layout import two_sides
from graddiag.signals import Block

Rows = Sequence[int]  # of a block seen as a matrix; a vector is a single row
Map = Callable[[Float[Tensor, "rows d1"]], Float[Tensor, " k"]]
MapOf = Callable[[Rows, Tensor], Map]  # the map of some rows of the block, on the device and in the dtype of a tensor


def matrix_shape(block: Block) -> tuple[int, int]:
    """The block as a matrix: experts and their outputs are one side, a vector is one row."""
    sides = two_sides(block.shape)
    return (1, sides[0]) if len(sides) == 1 else (sides[0], sides[1])


def one_sided_rows(
    block: Block, gradients: Gradients, k: int, map_of: MapOf, *, tile_rows: int
) -> Float[Tensor, "b k"]:
    """The map of each example's gradient, as the sum over tiles of `tile_rows` rows of the block.

    A map is asked for once per tile and used for every example; of a table only the rows looked up are visited, and a
    tied head's outer products are added tile by tile.
    """
    if isinstance(gradients, Lookup):
        rows = _looked_up(gradients, k, map_of, tile_rows)
        return rows if gradients.head is None else rows + _all(block, gradients.head, k, map_of, tile_rows)
    return _all(block, gradients, k, map_of, tile_rows)


def whole_map(block: Block, k: int, map_of: MapOf, like: Tensor, *, tile_rows: int) -> Map:
    """The map of a gradient that is there as a whole; what it needs of all tiles is held meanwhile."""
    height, _ = matrix_shape(block)
    tiles = [slice(start, min(start + tile_rows, height)) for start in range(0, height, tile_rows)]
    maps = [map_of(range(t.start, t.stop), like) for t in tiles]

    def mapped(gradient: Tensor) -> Tensor:
        out = like.new_zeros(k)
        for tile, part in zip(tiles, maps, strict=True):
            out += part(gradient[tile])
        return out

    return mapped


def _all(block: Block, gradients: Gradients, k: int, map_of: MapOf, tile_rows: int) -> Float[Tensor, "b k"]:
    height, width = matrix_shape(block)
    like = wide(gradients.left[:0] if isinstance(gradients, Outer) else _values(gradients)[:0])
    n = len(gradients.lengths) if isinstance(gradients, Outer) else len(_values(gradients))
    out = like.new_zeros(n, k)
    buffer = like.new_empty(min(tile_rows, height), width)
    for start in range(0, height, tile_rows):
        rows = range(start, min(start + tile_rows, height))
        mapped = map_of(rows, like)
        for i in range(n):
            if isinstance(gradients, Outer):
                left, right = gradients.factors(i)
                tile = torch.mm(left[:, rows.start : rows.stop].T, right, out=buffer[: len(rows)])
            else:
                tile = wide(_values(gradients)[i].reshape(height, width)[rows.start : rows.stop])
            out[i] += mapped(tile)
    return out


def _looked_up(gradients: Lookup, k: int, map_of: MapOf, tile_rows: int) -> Float[Tensor, "b k"]:
    n, like = len(gradients.lengths), wide(gradients.output_grads[:0])
    out = like.new_zeros(n, k)
    found = [gradients.looked_up(i) for i in range(n)]
    for ids in _pieces(torch.unique(torch.cat([ids for ids, _ in found])), tile_rows):
        mapped = map_of(ids.tolist(), like)
        for i, (own, grads) in enumerate(found):
            inside = torch.isin(own, ids)
            if bool(inside.any()):
                tile = like.new_zeros(len(ids), grads.shape[1])
                tile.index_add_(0, torch.searchsorted(ids, own[inside]), grads[inside])
                out[i] += mapped(tile)
    return out


def _pieces(ids: Tensor, size: int) -> Iterator[Tensor]:
    return (ids[a : a + size] for a in range(0, len(ids), size))


def _values(gradients: Gradients) -> Tensor:
    assert isinstance(gradients, Dense)
    return gradients.values
