"""The cheap part of `graddiag selfcheck`, at the start of every long run: one short row, three blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from graddiag.blocks import Selected
from graddiag.encoding import Encoded
from graddiag.errors import DataError
from graddiag.extractor import Extractor
from graddiag.readings import by_autograd, by_hooks, largest_gap

TARGETS = 24  # tokens that the loss of a checked row averages: a defect shows in any token
# Relative difference of gradients that rounding can make; transformers computes norms and softmax in float32 even in a
# float64 model. A term that is missing shows in a tenth or more, and half precision rounds to 1 part in 256.
LIMITS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def limit_for(dtype: torch.dtype) -> float:
    """The largest relative difference between two ways to a gradient that is put down to rounding."""
    return LIMITS.get(dtype, LIMITS[torch.bfloat16])


def shortened(row: Encoded) -> Encoded:
    """The row with its first 24 targets."""
    kept = row.tokens[: row.start + TARGETS]
    return replace(row, tokens=kept, n_cut=row.n_cut + len(row.tokens) - len(kept))


def check_start(extractor: Extractor, rows: Sequence[Encoded]) -> None:
    """Nothing, if hooks and plain autograd agree on the shortest row in the lowest, middle and highest block.

    Done once per extractor. Raises DataError with the block and the difference where they do not agree.
    """
    if extractor.checked:
        return
    row = shortened(min(rows, key=lambda r: len(r.tokens)))
    blocks = spread(extractor.blocks)
    limit = limit_for(extractor.model.dtype)
    gap = largest_gap(by_hooks(extractor.model, blocks, [row]), by_autograd(extractor.model, blocks, [row]))
    # A row that is not finite in either way is none of this check's business: such rows are counted later.
    if gap.size > limit:
        raise DataError(
            f"The {gap}: what graddiag measures differs from plain autograd by {gap.size:.2g} of its size on the row "
            f"{row.id!r}; in {str(extractor.model.dtype).removeprefix('torch.')}, rounding makes at most {limit:g}. "
            "Leave such blocks out with --blocks; 'graddiag selfcheck' says more about this model."
        )
    extractor.checked = True


def spread(blocks: Sequence[Selected]) -> tuple[Selected, ...]:
    """The lowest, the middle and the highest block."""
    return tuple(blocks[k] for k in sorted({0, len(blocks) // 2, len(blocks) - 1}))
