"""Which directions do two sets' changes of states have in common, at one site, on chosen clusters of their rows?"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag.analyzers._directions import agreement, count_components, leading
from graddiag.analyzers._states import States, centred, read_states
from graddiag.comparison import Comparison


@dataclass(frozen=True)
class SharedSpace:
    """The directions that lie between the subspaces of two sets' centred changes, and what they were fitted on.

    `directions` [d, m] are orthonormal, m the smaller of the two subspaces' sizes `k`; 0 where a set has no component,
    or no more rows than components. `overlap` is that of the two subspaces on these rows, `tr(P_A P_B) / m`. `rows`
    [n, d] are the tuned model's states on the rows of both sets, each set's mean subtracted.
    """

    k: tuple[int, int]
    n_rows: tuple[int, int]
    directions: Float[np.ndarray, "d m"]
    overlap: float
    rows: Float[np.ndarray, "n d"]


def shared_space(
    a: Comparison,
    b: Comparison,
    site: str,
    *,
    within: Collection[str] | None = None,
    k: int | None = None,
    seed: int = 0,
) -> SharedSpace:
    """The bisectors of the principal angles between the subspaces of which `subspace_overlap` gives the overlap.

    Each set is a comparison of the same two models (left = tuned, right = aligned); only rows of the clusters `within`
    are used, by default all. `k` None counts the components of each set. With principal directions `A u_i` and `B v_i`
    (singular vectors of `A^T B`), `A u_i + B v_i` span the space: all m of them, also of a pair that is far apart.
    Raises DataError as `subspace_overlap`.
    """
    states = read_states([a, b], site, ("left", "right"), scaled=False)
    kept = [_within(s, c, within) for s, c in zip(states, (a, b), strict=True)]
    counts = [_count(s, k, seed) for s in kept]
    spaces = [leading(centred(s.change), n) for s, n in zip(kept, counts, strict=True) if n]
    m = min(counts) if len(spaces) == 2 and all(np.isfinite(x).all() for x in spaces) else 0
    between, overlap = np.zeros((states[0].tuned.shape[1], 0)), math.nan
    if m:
        left, _, right = np.linalg.svd(spaces[0].T @ spaces[1])
        between = np.linalg.qr(spaces[0] @ left[:, :m] + spaces[1] @ right.T[:, :m])[0]
        overlap = agreement(spaces[0], spaces[1])
    rows = [centred(s.tuned) if len(s.tuned) else s.tuned for s in kept]
    n_rows = len(kept[0].tuned), len(kept[1].tuned)
    return SharedSpace((counts[0], counts[1]), n_rows, between, overlap, np.concatenate(rows))


def _within(states: States, change: Comparison, clusters: Collection[str] | None) -> States:
    named = [change.cluster_names[c] for c in change.clusters.tolist()]
    kept = np.array([clusters is None or name in clusters for name in named], dtype=bool)
    return States(states.name, states.tuned[kept], states.aligned[kept], states.codes[kept])


def _count(states: States, given: int | None, seed: int) -> int:
    """Components to take; 0 where there are no more rows than that."""
    n = len(states.tuned)
    found = given if given is not None or n < 2 else count_components(centred(states.change), seed=seed).k
    return found if found is not None and found < n else 0
