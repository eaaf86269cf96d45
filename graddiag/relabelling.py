"""Would sides named by chance be as far apart: label permutation of two sets of rows, paired or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from graddiag.permutations import CHUNK, DRAWS, EXHAUSTIVE, TIE, Null, quadratic_forms, sign_patterns


@dataclass(frozen=True)
class Relabellings:
    """How whole clusters change sides, again and again; the first relabelling is none.

    `signs[b, c]` is -1 where the left rows of cluster c are called right, and its right rows left. A cluster with rows
    of both sides (pairs, or rows that share a template) changes or stays by the toss of a coin; clusters with rows of
    one side only share out their labels anew, as many left ones as there were. Either is as likely as what was
    observed if a label says nothing about a cluster's rows. `scale[b]` is `4 n^2 / (n^2 - m^2)^2`, n all rows, m the
    left ones less the right ones once relabelled.
    """

    signs: Int[np.ndarray, "b c"]
    scale: Float[np.ndarray, " b"]

    @staticmethod
    def of(
        left: Int[np.ndarray, " c"], right: Int[np.ndarray, " c"], *, seed: int = 0, draws: int = DRAWS
    ) -> Relabellings:
        """For clusters with so many left and right rows: all relabellings where there are at most 2^13, else 10,000."""
        signs = _signs(left, right, seed, draws)
        starts = range(0, len(signs), CHUNK)  # a product of integers widens them all
        n, more = int((left + right).sum()), np.concatenate([signs[a : a + CHUNK] @ (left - right) for a in starts])
        return Relabellings(signs, 4.0 * n**2 / (n**2 - more.astype(np.float64) ** 2) ** 2)

    def null(self, gram: Float[np.ndarray, "c c"]) -> Null:
        """`||mean of left - mean of right||^2` under each relabelling.

        `gram` has the inner products of `E_c`, the sum over cluster c of its left rows minus that of its right rows,
        the mean of all rows subtracted from each: the means of the relabelled sides differ by
        `2 n sum_c s_c E_c / (n^2 - m^2)`. Where every cluster has as many left as right rows, centring cancels, E_c is
        the sum of the differences of pairs, and this is the sign flip of those sums: the test of `framing/p`. Means of
        products within and across sides say the same: `within left + within right - 2 across` is this distance.

        Empty where there is nothing to relabel; constant where all E_c are zero.
        """
        apart = gram - np.diag(gram.diagonal())
        size = float(np.abs(apart).sum())
        if len(self.signs) < 2 or not math.isfinite(size):
            return Null(np.zeros(0), distances=False)
        # As for sign flips: random relabellings have an error of their own, and single precision halves their cost.
        dtype = np.float64 if len(gram) <= EXHAUSTIVE else np.float32
        unit = (apart / (size or 1.0)).astype(dtype)
        parts = (self.signs[start : start + CHUNK].astype(dtype) for start in range(0, len(self.signs), CHUNK))
        moved = np.concatenate([quadratic_forms(s, unit) for s in parts]).astype(np.float64)
        trace = float(gram.trace())
        rounding = float(np.finfo(dtype).eps) * size + float(np.finfo(np.float64).eps) * trace
        return Null((moved * size + trace) * self.scale, TIE * rounding * float(self.scale.max()), distances=False)

    def squares(self, sums: Float[np.ndarray, "c k"]) -> Float[np.ndarray, " b"]:
        """`||sum_c s_c E_c||^2` under each relabelling, at some places of E_c: those of all places add up."""
        return np.concatenate([np.einsum("bk,bk->b", v, v) for v in self._moved(sums)])

    def mean_squares(self, sums: Float[np.ndarray, "c k"]) -> Float[np.ndarray, " k"]:
        """The squared distance of the relabelled means at each place, on average over relabellings."""
        starts = range(0, len(self.signs), CHUNK)
        parts = (self.scale[a : a + CHUNK] @ v**2 for a, v in zip(starts, self._moved(sums), strict=True))
        return np.asarray(sum(parts) / len(self.signs))

    def _moved(self, sums: Float[np.ndarray, "c k"]) -> Iterator[Float[np.ndarray, "_ k"]]:
        for start in range(0, len(self.signs), CHUNK):
            yield self.signs[start : start + CHUNK].astype(np.float64) @ sums

    def null_of_squares(self, squares: Float[np.ndarray, " b"], lengths: Float[np.ndarray, " c"]) -> Null:
        """`null` without products of E_c: from the `squares` of all places, and the lengths of E_c over all of them."""
        if len(self.signs) < 2 or not math.isfinite(float(lengths.sum())):
            return Null(np.zeros(0), distances=False)
        rounding = float(np.finfo(np.float64).eps) * float(lengths.sum()) ** 2
        return Null(squares * self.scale, TIE * rounding * float(self.scale.max()), distances=False)


def _signs(left: Int[np.ndarray, " c"], right: Int[np.ndarray, " c"], seed: int, draws: int) -> Int[np.ndarray, "b c"]:
    of_left, of_right = np.flatnonzero((left > 0) & (right == 0)), np.flatnonzero((left == 0) & (right > 0))
    alone, both = np.concatenate([of_left, of_right]), np.flatnonzero((left > 0) & (right > 0))
    if not len(alone):
        patterns = np.concatenate(list(sign_patterns(len(left), seed, draws)))
        return patterns.astype(np.int8) * np.int8(2) - np.int8(1)
    names = np.repeat(np.array([1, -1], dtype=np.int8), [len(of_left), len(of_right)])
    shared = math.comb(len(alone), len(of_left))
    if shared * 2 ** len(both) <= 2 ** (EXHAUSTIVE - 1):
        chosen = np.full((shared, len(alone)), -1, dtype=np.int8)
        for row, at in zip(chosen, combinations(range(len(alone)), len(of_left)), strict=True):
            row[list(at)] = 1
        tossed = 1 - 2 * ((np.arange(2 ** len(both))[:, None] >> np.arange(len(both))) & 1)
        chosen, tossed = np.repeat(chosen, len(tossed), axis=0), np.tile(tossed, (shared, 1))
    else:
        rng = np.random.default_rng(seed)
        chosen, tossed = np.tile(names, (1 + draws, 1)), np.ones((1 + draws, len(both)), dtype=np.int8)
        chosen[1:] = rng.permuted(chosen[1:], axis=1)
        tossed[1:] = 2 * rng.integers(0, 2, size=(draws, len(both)), dtype=np.int8) - 1
    signs = np.ones((len(chosen), len(left)), dtype=np.int8)
    signs[:, alone], signs[:, both] = chosen * names, tossed
    return signs
