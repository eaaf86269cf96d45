"""Which inner products do all rows of several tables have, block by block?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from graddiag.signals import Signals

COLUMNS = 8_192  # converted to double precision at a time: unprojected rows of a large block would not fit twice


def gram(tables: Sequence[Signals], block: str) -> Float[np.ndarray, "m m"]:
    """Inner products of the projected gradients in one block, of the finite rows of the tables in order.

    The Gram matrix of the whole vector is the sum over blocks: add it up block by block, so that no more than a few
    [m, m] are ever held.
    """
    columns = [t.gradients[block] for t in tables]
    kept = [t.finite for t in tables]
    m = sum(int(k.sum()) for k in kept)
    out = np.zeros((m, m))
    for start in range(0, columns[0].shape[1], COLUMNS):
        part = np.concatenate([c[k, start : start + COLUMNS] for c, k in zip(columns, kept, strict=True)])
        part = part.astype(np.float64)
        out += part @ part.T
    return out
