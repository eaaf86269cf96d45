"""Sign flips of cluster sums, block after block and of all blocks as one vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graddiag import tiles as room
from graddiag.permutations import CHUNK, Null, flipped_squares, sign_flips, sign_flips_of_norm, sign_flips_of_squares
from graddiag.tiles import fits


@dataclass
class Flips:
    """What blocks add up to: products of the cluster sums where such a matrix fits, else their flipped squares."""

    n: int
    seed: int
    products: Float[np.ndarray, "c c"] | None
    squares: Float[np.ndarray, " b"] | float = 0.0

    @staticmethod
    def of(n_clusters: int, seed: int) -> Flips:
        """Of no block yet."""
        return Flips(n_clusters, seed, np.zeros((n_clusters, n_clusters)) if fits(n_clusters) else None)

    def add(self, sums: Float[np.ndarray, "c k"]) -> Null:
        """The sign flips of one block: of its sums, or of their products where these are fewer numbers."""
        thin = sums.shape[1] < self.n
        products = None if thin and self.products is None else sums @ sums.T
        if self.products is not None:
            self.products += products
        elif self.n > 1:
            width = max(room.TILE // (8 * CHUNK), 1)
            starts = range(0, sums.shape[1], width)
            self.squares = self.squares + sum(flipped_squares(sums[:, a : a + width], seed=self.seed) for a in starts)
        return (
            sign_flips(sums, seed=self.seed)
            if thin or products is None
            else sign_flips_of_norm(products, seed=self.seed)
        )

    def whole(self, inside: Float[np.ndarray, " c"]) -> Null:
        """Those of all blocks as one vector; `inside` are the squared norms of the cluster sums over all of them."""
        if self.products is not None:
            return sign_flips_of_norm(self.products, seed=self.seed)
        return sign_flips_of_squares(np.asarray(self.squares), np.sqrt(inside))
