"""How often would chance do as much: signs of clusters flipped, partners permuted, one block or many at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

EXHAUSTIVE = (
    14  # clusters up to which all sign patterns are tried: 2^13 patterns and their mirror images take milliseconds
)
DRAWS = 10_000  # random permutations; the Monte-Carlo error of p = 0.05 is then 0.002
CHUNK = 1_000  # sign patterns held at a time: 12 MB for 3,000 clusters
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

    @property
    def relative(self) -> float:
        """The real value over the mean of all; NaN where that is not above zero."""
        middle = float(self.values.mean()) if len(self.values) else math.nan
        return float(self.values[0]) / middle if middle > 0 else math.nan

    def standardised(self) -> Null:
        """In standard deviations of the null, about its mean (a distance is about it already); empty where it does not
        vary, since then no permutation differs from the real one."""
        known = self.values[np.isfinite(self.values)]
        centre = 0.0 if self.distances or not len(known) else float(known.mean())
        spread = math.sqrt(float(((known - centre) ** 2).mean())) if len(known) else 0.0
        if not len(known) or float(np.ptp(known)) <= self.tie:
            return Null(np.zeros(0))
        return Null((self.values - centre) / spread, self.tie / spread, self.distances)


def familywise_p(nulls: Sequence[Null]) -> Float[np.ndarray, " b"]:
    """p of each block such that, if no block differs, one below 0.05 turns up anywhere in 5 % of experiments.

    The share of permutations whose largest standardised statistic over all blocks reaches the block's own (Westfall and
    Young 1993, single step). Entry k of every null must belong to the same permutation: then the dependence between
    blocks is that of the data. NaN where the block's own p is undefined, 1 where its null does not vary.
    """
    worst: Float[np.ndarray, " b"] | None = None
    least = []  # what the worst must reach for each block; kept instead of the standardised null, which is as long
    for null in nulls:
        one = null.standardised()
        if len(one.values):
            worst = one.values if worst is None else np.fmax(worst, one.values)
        own = one.values[0] - one.tie if len(one.values) else -math.inf
        least.append(own if math.isfinite(null.p) else math.nan)
    return np.array([_share_reaching(worst, v) for v in least], dtype=np.float64)


def _share_reaching(worst: Float[np.ndarray, " b"] | None, least: float) -> float:
    if math.isnan(least) or worst is None:
        return math.nan if math.isnan(least) else 1.0
    return float(np.mean(np.nan_to_num(worst, nan=-math.inf) >= least))


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
    rows = (sums if sums.ndim > 1 else sums[:, None]).astype(np.float64)
    scale = float(np.sqrt((rows**2).sum(axis=1)).sum())
    found = _flips(rows, scale, lambda signs, d: np.sqrt(((signs @ d) ** 2).sum(axis=1)), seed=seed, draws=draws)
    return Null(found.values, found.tie, distances=rows.shape[1] == 1)


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


def sign_flips_each(sums: Float[np.ndarray, "c b"], *, seed: int = 0, draws: int = DRAWS) -> list[Null]:
    """`|sum_c s_c D_c|` of many numbers under the same signs: `sign_flips` of each column, in one pass."""
    n = len(sums)
    scale = np.abs(sums).sum(axis=0)
    unit = np.divide(sums, scale, out=np.zeros(sums.shape), where=scale > 0)
    if n < 2:
        return [Null(np.zeros(0))] * sums.shape[1]
    values = np.concatenate([np.abs((s * 2.0 - 1) @ unit) for s in sign_patterns(n, seed, draws)])
    tie = TIE * np.finfo(np.float64).eps
    return [Null(v if math.isfinite(k) else np.zeros(0), tie) for v, k in zip(values.T, scale, strict=True)]


def sign_flips_of_norm(gram: Float[np.ndarray, "c c"], *, seed: int = 0, draws: int = DRAWS) -> Null:
    """`||sum_c s_c D_c||^2` over signs, given only the inner products `gram` of the cluster sums D_c.

    The diagonal is the same under every pattern and is left out, which keeps the rounding small.
    """
    apart = gram - np.diag(gram.diagonal())
    scale = float(np.abs(apart).sum())
    return _flips(apart, scale, lambda signs, g: np.einsum("bc,bc->b", signs @ g, signs), seed=seed, draws=draws)


def _flips(
    data: Float[np.ndarray, "c k"],
    scale: float,
    statistic: Callable[[Float[np.ndarray, "b c"], Float[np.ndarray, "c k"]], Float[np.ndarray, " b"]],
    *,
    seed: int,
    draws: int,
) -> Null:
    n = len(data)
    if n < 2 or not math.isfinite(scale):
        return Null(np.zeros(0), distances=False)
    # Random signs carry a Monte-Carlo error of 0.002 anyway: single precision halves their cost.
    dtype = np.float64 if n <= EXHAUSTIVE or data.shape[1] == 1 else np.float32
    data = (data / (scale or 1.0)).astype(dtype)
    values = [statistic(signs.astype(dtype) * 2 - 1, data) for signs in sign_patterns(n, seed, draws)]
    return Null(np.concatenate(values).astype(np.float64), TIE * float(np.finfo(dtype).eps), distances=False)


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
    """The real pairing (column 0) and 10,000 random ones inside clusters: in column b, left i meets right [i, b]."""
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
    defined = np.isfinite(cosines)
    if not defined.diagonal().any() or (partners == partners[:, :1]).all():
        return Null(np.zeros(0))
    filled = np.where(defined, cosines, 0.0)
    means = _sums_over(filled, partners)
    if defined.all():
        means /= len(partners)
    else:
        counts = _sums_over(defined.astype(np.float64), partners)
        means = np.divide(means, counts, out=np.full(len(means), np.nan), where=counts > 0)
    tie = TIE * float(np.finfo(np.float64).eps) * float(np.abs(filled).max())
    return Null(np.abs(means - np.nanmean(means)), tie)


def _sums_over(matrix: Float[np.ndarray, "p p"], partners: Int[np.ndarray, "p b"]) -> Float[np.ndarray, " b"]:
    total = np.zeros(partners.shape[1])
    for row, at in zip(matrix, partners, strict=True):  # row by row: one row stays in the processor's cache
        total += row.take(at)
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
