"""The leading directions of some rows, how far two sets of directions agree, and how many are more than noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh, subspace_angles

from graddiag.statistics import ROUNDING

FLIPS = 19  # draws of a round: a component beyond all of them has p = 1/20 where there is none


def leading(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "d k"]:
    """The first k right singular vectors of the rows, orthonormal; NaN where the rows span fewer directions.

    Their order and signs mean nothing; the space that they span does, if the k-th singular value is not the next one.
    """
    n, d = rows.shape
    if k == 0:
        return np.zeros((d, 0))
    if k > min(n, d):
        return np.full((d, k), np.nan)
    wide = n <= d
    values, vectors = _last(rows @ rows.T if wide else rows.T @ rows, k)
    if values[0] <= ROUNDING * values[-1] or values[-1] <= 0:
        return np.full((d, k), np.nan)
    # Rounding leaves the mapped vectors a little oblique where singular values are far apart.
    return np.asarray(np.linalg.qr(rows.T @ vectors)[0] if wide else vectors)


def _last(gram: Float[np.ndarray, "m m"], k: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "m k"]]:
    m = len(gram)
    values, vectors = eigh(gram, subset_by_index=(m - k, m - 1))
    return np.asarray(values), np.asarray(vectors)


def singular_values(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " m"]:
    """All singular values, largest first; those that are rounding are zero."""
    values = np.linalg.svd(rows, compute_uv=False)
    return np.where(values**2 > ROUNDING * values[0] ** 2, values, 0.0)


def agreement(a: Float[np.ndarray, "d k"], b: Float[np.ndarray, "d m"]) -> float:
    """`tr(P_A P_B) / min(k, m)` of two spaces, each spanned by orthonormal columns: the mean squared cosine of the
    principal angles, 0..1; NaN where a space has no direction or is not known."""
    least = min(a.shape[1], b.shape[1])
    return float(((a.T @ b) ** 2).sum()) / least if least else float("nan")


def principal_angles(a: Float[np.ndarray, "d k"], b: Float[np.ndarray, "d m"]) -> tuple[float, ...]:
    """The angles between two spaces, in degrees, smallest first, min(k, m) of them."""
    if not (a.shape[1] and b.shape[1] and np.isfinite(a).all() and np.isfinite(b).all()):
        return ()
    return tuple(float(x) for x in np.sort(np.degrees(subspace_angles(a, b))))


@dataclass(frozen=True)
class Components:
    """How many components are more than noise, and what each was measured against: `edges` [k + 1] is the largest
    singular value of all flipped matrices of the round in which the component was tried (the last was not taken)."""

    k: int
    edges: tuple[float, ...]


def count_components(rows: Float[np.ndarray, "n d"], *, seed: int = 0) -> Components:
    """The components of centred rows that are more than independent entries of the same sizes would give.

    Parallel analysis with random signs (Hong, Sheng and Dobriban 2020, arXiv 2012.02985): each entry gets a random
    sign, which leaves every row's and column's squares and takes what entries have in common. Components above the
    largest singular value of 19 such matrices are taken at once and removed, and what is left is tried again, since
    large components hide small ones. If entries are independent and symmetric, one is found in 5 % of sets.

    What counts as a component is any dependence between coordinates, also that of ordinary noise, and any dependence
    between rows. One coordinate that has nearly all variance (a massive activation) is no component, and hides all that
    are smaller: divide by the coordinates' sizes first.
    """
    rng = np.random.default_rng(seed)
    removed, edges = np.zeros((rows.shape[1], 0)), []
    most = min(len(rows) - 1, rows.shape[1])
    total = float((rows**2).sum())
    while removed.shape[1] < most:
        left = rows - (rows @ removed) @ removed.T
        found = _above(left, rows @ removed, removed, rng)
        taken = min(found.k, most - removed.shape[1]) if (left**2).sum() > ROUNDING * total else 0
        edges += list(found.edges[:taken])
        if not taken:
            edges.append(found.edges[-1])
            break
        removed = np.linalg.qr(np.concatenate([removed, leading(left, taken)], axis=1))[0]
    return Components(removed.shape[1], tuple(edges))


def _above(
    left: Float[np.ndarray, "n d"],
    scores: Float[np.ndarray, "n k"],
    removed: Float[np.ndarray, "d k"],
    rng: np.random.Generator,
) -> Components:
    """The components of what is left above those of flipped matrices.

    What is left has lost the mean and k directions of rows and of columns, and so have the flipped matrices; before
    that they are made larger by the squares that independent entries lose with those directions. Otherwise, what noise
    is left would seem to have components, and the more the more were removed.
    """
    (n, d), k = left.shape, removed.shape[1]
    of_rows = np.linalg.qr(np.column_stack([np.ones(n), scores]))[0]
    larger = np.sqrt(n / (n - 1 - k) * d / (d - k))
    edge = 0.0
    for _ in range(FLIPS):
        flipped = larger * left * (2 * rng.integers(0, 2, left.shape, dtype=np.int8) - 1)
        flipped -= of_rows @ (of_rows.T @ flipped)
        edge = max(edge, _largest(flipped - (flipped @ removed) @ removed.T))
    found = int((singular_values(left) > edge).sum())
    return Components(found, (edge,) * (found + 1))


def _largest(rows: Float[np.ndarray, "n d"]) -> float:
    n, d = rows.shape
    return float(np.sqrt(max(_last(rows @ rows.T if n <= d else rows.T @ rows, 1)[0][0], 0.0)))
