"""How often would chance do as much: signs of clusters flipped, partners permuted, one block or many at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

EXHAUSTIVE = (
    14  # clusters up to which all sign patterns are tried: 2^13 patterns and their mirror images take milliseconds
)
DRAWS = 10_000  # random permutations; the Monte-Carlo error of p = 0.05 is then 0.002
CHUNK = 1_000  # sign patterns held at a time: 12 MB for 3,000 clusters
TOGETHER = 40_000  # values of nulls that are standardised at a time: 0.3 MB an array, whatever the number of blocks
TIE = 16  # units of rounding; without it, sums that are equal but added in another order would not count as ties


@dataclass(frozen=True)
class Null:
    """What a statistic is under each permutation that was tried, [b], the real one first; larger is more extreme.

    Empty where there is nothing to permute; NaN under a permutation that leaves it undefined. Values closer than `tie`
    are equal. `distances` says that they are distances from the middle of a two-sided null.
    """

    values: Float[np.ndarray, " b"]
    tie: float = 0.0
    distances: bool = True

    @property
    def p(self) -> float:
        """The share of permutations, the real one included, that are at least as extreme; NaN where undefined."""
        known = self.values[np.isfinite(self.values)]
        if not len(known) or not math.isfinite(self.values[0]):
            return math.nan
        return float(np.mean(known >= self.values[0] - self.tie))


def familywise_p(nulls: Sequence[Null]) -> Float[np.ndarray, " b"]:
    """p of each block such that, if no block differs, one below 0.05 turns up anywhere in 5 % of experiments.

    The share of permutations whose largest standardised statistic over all blocks reaches the block's own (Westfall and
    Young 1993, single step). Entry k of every null must belong to the same permutation: then the dependence between
    blocks is that of the data. NaN where the block's own p is undefined, 1 where its null does not vary.
    """
    least = np.full(len(nulls), np.nan)  # what the worst of a permutation must reach for each block
    known = [k for k, null in enumerate(nulls) if len(null.values)]
    worst = np.full(len(nulls[known[0]].values) if known else 0, -math.inf)
    together = max(TOGETHER // max(len(worst), 1), 1)
    for start in range(0, len(known), together):
        some = known[start : start + together]
        values, least[some] = _standardised([nulls[k] for k in some])
        worst = np.maximum(worst, values.max(axis=0))
    reaching = len(worst) - np.searchsorted(np.sort(worst), least)
    return np.where(np.isnan(least), np.nan, reaching / max(len(worst), 1))


def _standardised(nulls: Sequence[Null]) -> tuple[Float[np.ndarray, "n b"], Float[np.ndarray, " n"]]:
    """Values in standard deviations of their null, about its mean (a distance is about it already), and those of the
    real permutation less a tie.

    Minus infinity where a value is undefined and where the null does not vary, since then no permutation differs from
    the real one; the second NaN where the real value is undefined.
    """
    values = np.stack([null.values for null in nulls])
    ties, distances = np.array([n.tie for n in nulls]), np.array([n.distances for n in nulls])
    defined = np.isfinite(values)
    counts = np.maximum(defined.sum(axis=1), 1)
    means = np.where(defined, values, 0.0).sum(axis=1) / counts
    moved = np.where(defined, values - np.where(distances, 0.0, means)[:, None], 0.0)
    spread = np.sqrt((moved**2).sum(axis=1) / counts)
    top, bottom = (np.where(defined, v, -math.inf).max(axis=1) for v in (values, -values))
    varies = top + bottom > ties
    scale = np.where(varies, spread, 1.0)
    scaled = np.where(defined & varies[:, None], moved / scale[:, None], -math.inf)
    return scaled, np.where(defined[:, 0], scaled[:, 0] - ties / scale, np.nan)


def smallest_p(n_clusters: int) -> float:
    """The smallest p that sign flips of so many clusters can give; NaN for fewer than two."""
    if n_clusters < 2:
        return math.nan
    return 2.0 ** (1 - n_clusters) if n_clusters <= EXHAUSTIVE else 1 / (1 + DRAWS)


def sign_flips(sums: Float[np.ndarray, "c ..."], *, seed: int = 0, draws: int = DRAWS) -> Null:
    """`||sum_c s_c D_c||` over signs s, D_c the sum of a cluster's differences; two-sided where D_c is a number.

    All signs where there are at most 14 clusters, else the real ones and 10,000 random patterns from `seed`, the same
    for every block. Empty for fewer than two clusters; constant where every difference is zero.
    """
    return sign_flips_each(sums[:, None], seed=seed, draws=draws)[0]


@dataclass(frozen=True)
class Rank:
    """Where the real sum stands among those of flipped signs: the share below it, and up to it, itself too."""

    below: float
    up_to: float


def sign_flip_rank(values: Float[np.ndarray, " n"], *, seed: int = 0, draws: int = DRAWS) -> Rank:
    """Where `sum(values)` stands among the sums with random signs: one-sided, unlike `sign_flips`.

    All signs where there are at most 14 values, else the real ones and `draws` random patterns from `seed`. If each
    value is as likely as its negative, `P(up_to <= p) <= p`, and a number drawn evenly between the two ends is even on
    0..1, whatever the sizes of the values.
    """
    n, scale = len(values), float(np.abs(values).sum())
    unit = values / (scale or 1.0)
    sums = np.concatenate([(s * 2.0 - 1) @ unit for s in sign_patterns(n, seed, draws)])
    if n <= EXHAUSTIVE:
        sums = np.concatenate([sums, -sums])  # the patterns hold one of each mirror image
    real, tie = float(unit.sum()), TIE * float(np.finfo(np.float64).eps)
    return Rank(float(np.mean(sums < real - tie)), float(np.mean(sums <= real + tie)))


def sign_flips_each(sums: Float[np.ndarray, "c b *k"], *, seed: int = 0, draws: int = DRAWS) -> list[Null]:
    """`||sum_c s_c D_c||` of many numbers, or vectors, under the same signs: `sign_flips` of each, in one pass."""
    n, blocks, k = len(sums), sums.shape[1], math.prod(sums.shape[2:])
    data = sums.reshape(n, blocks, k).astype(np.float64)
    scale = np.sqrt(np.einsum("cbk,cbk->cb", data, data)).sum(axis=0)
    if n < 2:
        return [Null(np.zeros(0))] * blocks
    # Random signs carry a Monte-Carlo error of 0.002 anyway: single precision halves the cost of vectors.
    dtype = np.float64 if n <= EXHAUSTIVE or k == 1 else np.float32
    unit = np.divide(data, scale[:, None], out=np.zeros(data.shape), where=scale[:, None] > 0)
    unit = unit.reshape(n, blocks * k).astype(dtype)
    values = [_lengths((s.astype(dtype) * 2 - 1) @ unit, k) for s in sign_patterns(n, seed, draws)]
    columns = np.concatenate(values).astype(np.float64).T
    tie = TIE * float(np.finfo(dtype).eps)
    known = np.isfinite(scale)
    return [Null(v if some else np.zeros(0), tie, distances=k == 1) for v, some in zip(columns, known, strict=True)]


def _lengths(sums: Float[np.ndarray, "d _"], k: int) -> Float[np.ndarray, "d b"]:
    """Of vectors of k numbers each, that stand beside each other in a row."""
    if k == 1:
        return np.asarray(np.abs(sums))
    vectors = sums.reshape(len(sums), -1, k)
    return np.asarray(np.sqrt(np.einsum("dbk,dbk->db", vectors, vectors)))


def sign_flips_of_norm(gram: Float[np.ndarray, "c c"], *, seed: int = 0, draws: int = DRAWS) -> Null:
    """`||sum_c s_c D_c||^2` over signs, given only the inner products `gram` of the cluster sums D_c.

    The diagonal is the same under every pattern and is left out, which keeps the rounding small.
    """
    n = len(gram)
    apart = gram - np.diag(gram.diagonal())
    scale = float(np.abs(apart).sum())
    if n < 2 or not math.isfinite(scale):
        return Null(np.zeros(0), distances=False)
    dtype = np.float64 if n <= EXHAUSTIVE else np.float32
    unit = (apart / (scale or 1.0)).astype(dtype)
    values = [quadratic_forms(s.astype(dtype) * 2 - 1, unit) for s in sign_patterns(n, seed, draws)]
    return Null(np.concatenate(values).astype(np.float64), TIE * float(np.finfo(dtype).eps), distances=False)


def flipped_squares(sums: Float[np.ndarray, "c k"], *, seed: int = 0, draws: int = DRAWS) -> Float[np.ndarray, " b"]:
    """`||sum_c s_c D_c||^2` over signs, at some places of D_c: those of all places add up, and no products of D_c are
    needed."""
    moved = ((s * 2.0 - 1) @ sums for s in sign_patterns(len(sums), seed, draws))
    return np.concatenate([np.einsum("bk,bk->b", v, v) for v in moved])


def sign_flips_of_squares(squares: Float[np.ndarray, " b"], lengths: Float[np.ndarray, " c"]) -> Null:
    """`sign_flips_of_norm` from the `flipped_squares` of all places, and the lengths of D_c over all of them."""
    total = float(lengths.sum())
    if len(lengths) < 2 or not math.isfinite(total):
        return Null(np.zeros(0), distances=False)
    return Null(squares, TIE * float(np.finfo(np.float64).eps) * total**2, distances=False)


def quadratic_forms(signs: Float[np.ndarray, "b c"], gram: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " b"]:
    """`s gram s` for each row s of the signs: the squared norm of a sum of which `gram` has the products."""
    return np.asarray(np.einsum("bc,bc->b", signs @ gram, signs))


def sign_patterns(n_clusters: int, seed: int, draws: int) -> Iterator[Bool[np.ndarray, "b c"]]:
    """All patterns with a fixed last sign (a mirror image has the same statistic), or random ones in chunks; the first
    has one sign everywhere: the data as they are."""
    if n_clusters <= EXHAUSTIVE:
        yield (np.arange(2 ** (n_clusters - 1))[:, None] >> np.arange(n_clusters)) & 1 == 1
        return
    yield np.ones((1, n_clusters), dtype=bool)
    rng = np.random.default_rng(seed)
    width = math.ceil(n_clusters / 8)
    for start in range(0, draws, CHUNK):
        n = min(CHUNK, draws - start)
        raw = np.frombuffer(rng.bytes(n * width), dtype=np.uint8).reshape(n, width)
        yield np.unpackbits(raw, axis=1, count=n_clusters).astype(bool)


def permuted_partners(clusters: Int[np.ndarray, " p"], *, seed: int = 0, draws: int = DRAWS) -> Int[np.ndarray, "p b"]:
    """The real pairing (column 0) and 10,000 random ones inside clusters: in column b, left i meets right [i, b].

    The real pairing alone where every cluster has one row, and none would move.
    """
    if len(np.unique(clusters)) == len(clusters):
        return np.arange(len(clusters), dtype=np.int32)[:, None]
    rng = np.random.default_rng(seed)
    out = np.repeat(np.arange(len(clusters), dtype=np.int32)[:, None], 1 + draws, axis=1)
    for c in np.unique(clusters):
        rows = np.flatnonzero(clusters == c)
        if len(rows) > 1:
            out[rows, 1:] = rng.permuted(out[rows, 1:], axis=0)
    return out


def partner_permutations(cosines: Float[np.ndarray, "p p"], partners: Int[np.ndarray, "p b"]) -> Null:
    """The mean paired cosine, the mean of the diagonal, among the pairings of `permuted_partners`: distances from the
    mean over them.

    Undefined cosines are left out of each mean. Empty where no pairing moves a row: every cluster has one.
    """
    return partner_permutations_each(cosines[None], partners)[0]


def partner_permutations_each(cosines: Float[np.ndarray, "n p p"], partners: Int[np.ndarray, "p b"]) -> list[Null]:
    """`partner_permutations` of several blocks, among the same pairings, in one pass."""
    if (partners == partners[:, :1]).all():
        return [Null(np.zeros(0))] * len(cosines)
    defined = np.isfinite(cosines)
    if defined.all():
        filled, means = cosines, _sums_over(cosines, partners) / len(partners)
    else:
        filled, counts = np.where(defined, cosines, 0.0), _sums_over(defined.astype(np.float64), partners)
        means = np.full(counts.shape, np.nan)
        np.divide(_sums_over(filled, partners), counts, out=means, where=counts > 0)
    largest = np.maximum(filled.max(axis=(1, 2), initial=0.0), -filled.min(axis=(1, 2), initial=0.0))
    paired = np.asarray(np.diagonal(defined, axis1=1, axis2=2).any(axis=1))
    found = zip(means, largest.tolist(), paired, strict=True)
    return [null_of_pairings(m, size) if some else Null(np.zeros(0)) for m, size, some in found]


def null_of_pairings(means: Float[np.ndarray, " b"], largest: float) -> Null:
    """The null of `partner_permutations` from the mean cosine under each pairing, none of them above `largest`."""
    known = np.isfinite(means)
    middle = float(means.mean() if known.all() else means[known].mean())
    return Null(np.abs(means - middle), TIE * float(np.finfo(np.float64).eps) * largest)


def _sums_over(matrices: Float[np.ndarray, "n p p"], partners: Int[np.ndarray, "p b"]) -> Float[np.ndarray, "n b"]:
    total = np.zeros((len(matrices), partners.shape[1]))
    for i, at in enumerate(partners):  # row by row: one row of a block stays in the processor's cache
        total += matrices[:, i].take(at, axis=1)
    return total


def false_discovery_q(p: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """The false discovery rate at which each of several p-values would just be called; undefined ones stay NaN.

    Benjamini and Hochberg (1995), for independent or positively dependent tests.
    """
    out = np.full(len(p), np.nan)
    defined = np.isfinite(p)
    if defined.any():
        out[defined] = false_discovery_control(p[defined])
    return out
