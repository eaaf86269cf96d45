"""Blocks that take turns: which means fit into memory together, and tables of some blocks each put side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from graddiag.errors import DataError, UsageError
from graddiag.signals import AdamStep, Block, PairProducts, Reference, Signals

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_BY_BLOCK = ("norms", "gradients", "reference_dot", "adam_dot", "adam_norm", "adam_step_norm")

V = TypeVar("V")


def parse_bytes(text: str) -> int:
    """The bytes that a text such as "8GiB", "500 MB" or "1000000" says. Raises UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise UsageError(f"--mean-memory {text!r} is no number of bytes. Give one such as 8GiB, 500MiB or 1000000.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def groups(blocks: Sequence[Block], budget: int, bytes_per_parameter: int) -> tuple[tuple[str, ...], ...]:
    """Neighbouring blocks that fit into `budget` bytes together, in order, as few groups as that allows.

    Raises UsageError where one block alone does not fit.
    """
    out: list[list[str]] = []
    used = 0
    for b in blocks:
        size = math.prod(b.shape) * bytes_per_parameter
        if size > budget:
            raise UsageError(
                f"--mean-memory {budget} does not hold {b.name!r} alone, which needs {size} bytes. Give at least that, "
                "or leave the block out with --blocks."
            )
        if not out or used + size > budget:
            out.append([])
            used = 0
        out[-1].append(b.name)
        used += size
    return tuple(map(tuple, out))


def side_by_side(parts: Sequence[Signals]) -> Signals:
    """One table of all blocks from tables of the same rows with some blocks each; measuring the blocks together gives
    the same.

    A row is finite where it is in every part. Raises DataError where the rows or what they were measured with differ.
    """
    first = parts[0]
    for other in parts[1:]:
        if (other.ids, other.digests, other.provenance) != (first.ids, first.digests, first.provenance):
            raise DataError(f"{first.provenance.data}: the turns of its blocks have not measured the same rows.")
    by_block = {name: _union(getattr(p, name) for p in parts) for name in _BY_BLOCK}
    return replace(
        first,
        space=replace(first.space, blocks=tuple(b for p in parts for b in p.space.blocks)),
        finite=np.all([p.finite for p in parts], axis=0),
        reference=_reference([p.reference for p in parts if p.reference]),
        token_alignment=_scores([p.token_alignment for p in parts if p.token_alignment is not None]),
        alignment_elsewhere=_sum([p.alignment_elsewhere for p in parts if p.alignment_elsewhere is not None]),
        adam=_adam([p.adam for p in parts if p.adam]),
        **by_block,  # type: ignore[arg-type]
    )


def products_side_by_side(parts: Sequence[PairProducts]) -> PairProducts:
    """Exact products of the same pairs in all blocks."""
    first = parts[0]
    pairs = list(zip(first.left_ids, first.right_ids, strict=True))
    where = [{p: k for k, p in enumerate(zip(part.left_ids, part.right_ids, strict=True))} for part in parts]
    same_order = [part.take([at[p] for p in pairs]) for part, at in zip(parts, where, strict=True)]
    inner, difference = _union(p.inner for p in same_order), _union(p.difference_norm for p in same_order)
    return PairProducts(first.left_ids, first.right_ids, inner, difference)


def _union(parts: Iterable[Mapping[str, V]]) -> dict[str, V]:
    return {block: value for part in parts for block, value in part.items()}


def _reference(parts: Sequence[Reference]) -> Reference | None:
    """The mean of all blocks; `n` is that of the turn with fewest finite rows."""
    if not parts:
        return None
    return replace(parts[0], n=min(p.n for p in parts), norms=_union(p.norms for p in parts))


def _adam(parts: Sequence[AdamStep]) -> AdamStep | None:
    if not parts:
        return None
    dot, norms = _union(p.dot for p in parts), _union(p.norms for p in parts)
    return replace(parts[0], step=max(p.step for p in parts), dot=dot, norms=norms)


def _sum(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    return np.sum(parts, axis=0) if parts else None


def _scores(parts: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...] | None:
    return tuple(np.sum(rows, axis=0) for rows in zip(*parts, strict=True)) if parts else None
