"""Label permutation where labels mean nothing: sides with clusters of their own, or with uneven parts of the same ones.

Where every row has a partner it is the sign flip that the row "framing" of calibration.py is about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from calibration_cells import BLOCKS, CLUSTER, Design, Kind, rejects

from graddiag.permutations import familywise_p
from graddiag.relabelling import Relabellings
from graddiag.statistics import cluster_sums

DIM = 20  # numbers of a drawn gradient
BLOCK_DIM = 3  # the same in each of many blocks
DRAWS, FEW_DRAWS = 999, 99  # relabellings of one block and of many: with the real sides, 5 % is a whole number
LEFT = 3  # one cluster in so many is a left one

Experiment = Callable[[np.random.Generator], dict[Kind, bool | None]]


def own_clusters(design: Design, size: int) -> Experiment:
    """A third of the clusters, rows and all, are called left."""
    clusters = design.clusters(size)
    return _once(design, clusters, clusters % LEFT == 0)


def shared_clusters(design: Design, size: int) -> Experiment:
    """Every cluster has one to three left rows among its four: its sides are of different size."""
    clusters = design.clusters(size)
    return _once(design, clusters, np.arange(design.n) % CLUSTER <= clusters % 3)


def _once(design: Design, clusters: np.ndarray, is_left: np.ndarray) -> Experiment:
    labels = relabellings(clusters, is_left, DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = signed_sums(design.draw(rng, DIM), clusters, is_left)
        return {"rejected": rejects(labels.null(sums @ sums.T).p)}

    return once


def many_labels(design: Design, size: int) -> Experiment:
    """A third of the clusters are called left, in many blocks."""
    clusters = design.clusters(size)
    is_left = clusters % LEFT == 0
    labels = relabellings(clusters, is_left, FEW_DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = signed_sums(design.in_blocks(rng, BLOCK_DIM), clusters, is_left)
        nulls = [labels.null(sums[:, b] @ sums[:, b].T) for b in range(BLOCKS)]
        return {"any block": rejects(familywise_p(nulls).min())}

    return once


def relabellings(clusters: np.ndarray, is_left: np.ndarray, draws: int) -> Relabellings:
    """Those of whole clusters, of which some are left."""
    counts = (np.bincount(clusters[at], minlength=int(clusters.max()) + 1) for at in (is_left, ~is_left))
    return Relabellings.of(*counts, draws=draws)


def signed_sums(rows: np.ndarray, clusters: np.ndarray, is_left: np.ndarray) -> np.ndarray:
    """Left less right rows of each cluster, the mean of all rows subtracted."""
    sides = np.where(is_left, 1.0, -1.0).reshape(-1, *[1] * (rows.ndim - 1))
    return cluster_sums((rows - rows.mean(axis=0)) * sides, clusters, int(clusters.max()) + 1)
