"""Which random directions does a seed stand for? Made on the CPU in float64, whatever the device, dtype, thread or
order."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from jaxtyping import Float

from graddiag.row_layout import becomes_orthonormal


def generator(*key: object, row: int = 0) -> np.random.Generator:
    """A generator of its own for every key and row; counter-based (Philox), so that no draw depends on another."""
    return np.random.Generator(philox(*key, at=row << 64))  # rows are 2^64 steps apart


def philox(*key: object, at: int = 0) -> np.random.Philox:
    """The counter of a key, set to a step of it."""
    digest = hashlib.sha256("\0".join(str(k) for k in key).encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(digest, "little"), counter=at)


def unbiased(draws: Float[np.ndarray, "k _"], d: int) -> Float[np.ndarray, "k _"]:
    """The rows of a Gaussian matrix P that lie in a space of d dimensions, scaled so that `E[P^T P]` is its identity.

    Where `becomes_orthonormal`, the rows are first made orthonormal in their order (QR, positive diagonal, whatever
    sign a LAPACK would choose), hence scaled by sqrt(d / k) instead of 1 / sqrt(k).
    """
    k = len(draws)
    if not becomes_orthonormal(k, d):
        return draws / math.sqrt(k)
    q, r = np.linalg.qr(draws.T)
    return (q * np.sign(np.diag(r))).T * math.sqrt(d / k)
