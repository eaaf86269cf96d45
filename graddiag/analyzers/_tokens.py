"""Which tokens of the answer carry the loss gap, and through which positions does alignment enter?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.bands import Band, simultaneous_band
from graddiag.comparison import Comparison
from graddiag.signals import Signals
from graddiag.statistics import cluster_mean, optional

MOST_TELLING = 20
MIN_COUNT = 10  # occurrences from which a token is ranked by its mean gap: below, one answer decides
FIRST = 10  # the first answer tokens, of which He et al. (2024, arXiv 2404.01099) take the loss


@dataclass(frozen=True)
class Telling:
    """One token of the vocabulary: how often it is an answer token, its mean gap (nats), and its part of the mean gap.

    `contribution` (nats/token) sums over all tokens to the mean loss gap of these pairs. `text` is None where nobody
    kept it.
    """

    token: int
    text: str | None
    count: int
    pairs: int
    mean_gap: float
    contribution: float


@dataclass(frozen=True)
class PairOnShow:
    """The answer tokens of one pair, their texts, their losses on both sides in nats, and the pair's gap.

    With token scores, `through_left` and `through_right` are the parts of the rows' cosine with safety that enter
    through the position before each token (the one that predicts it), never what that token caused; else empty.
    """

    id: str
    tokens: tuple[int, ...]
    texts: tuple[str | None, ...]
    left: Float[np.ndarray, " t"]
    right: Float[np.ndarray, " t"]
    gap: float
    through_left: Float[np.ndarray, " s"]
    through_right: Float[np.ndarray, " s"]


@dataclass(frozen=True)
class Through:
    """Parts of the rows' cosine with safety by the position through which the gradient enters, exact.

    `left` and `right` are mean parts at the positions that predict answer token 1, 2, ..., `prompt_left` and
    `prompt_right` the mean sums over all earlier positions. What positions cannot be told apart in is in neither.
    """

    left: Band
    right: Band
    prompt_left: float
    prompt_right: float


@dataclass(frozen=True)
class TokenView:
    """The loss gap by answer token, left minus right, over the pairs with identical target tokens.

    `gap` is the mean gap at answer token 1, 2, ... in nats over the pairs that have it, with a simultaneous band;
    `share` the part of the mean gap that each position carries, and sums to 1, NaN unless the interval of the mean
    gap (`mean_gap`, nats/token) excludes 0. `telling` are all tokens, the largest absolute contribution first. `shown`
    is the pair with the median gap, a typical one; None without pairs.
    """

    left_name: str
    right_name: str
    n_pairs: int
    n_tokens: int
    mean_gap: float
    gap: Band
    share: Float[np.ndarray, " t"]
    telling: tuple[Telling, ...]
    shown: PairOnShow | None
    through: Through | None

    @property
    def top(self) -> tuple[Telling, ...]:
        """The 20 tokens with the largest absolute contribution."""
        return self.telling[:MOST_TELLING]

    @property
    def by_mean(self) -> tuple[Telling, ...]:
        """The 20 tokens with the largest absolute mean gap among those that occur at least 10 times."""
        often = [t for t in self.telling if t.count >= MIN_COUNT]
        return tuple(sorted(often, key=lambda t: -abs(t.mean_gap))[:MOST_TELLING])

    def summary(self) -> dict[str, int | float | None]:
        """The flat keys of this result; None where undefined."""
        first = [float(a[0]) if len(a) else math.nan for a in (self.gap.mean, self.gap.low, self.gap.high)]
        head = float(self.share[:FIRST].sum()) if len(self.share) else math.nan
        return {
            "tokens/n": self.n_tokens,
            "tokens/first_gap": optional(first[0]),
            "tokens/first_gap/low": optional(first[1]),
            "tokens/first_gap/high": optional(first[2]),
            "tokens/first_share": optional(float(self.share[0])) if len(self.share) else None,
            f"tokens/first_{FIRST}_share": optional(head),
        }

    def block_summary(self) -> dict[str, dict[str, float | None]]:
        """Empty: a loss has no blocks."""
        return {}

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        return dict.fromkeys(self.summary(), "loss")


def token_view(comparison: Comparison, texts: Mapping[int, str] | None = None, *, seed: int = 0) -> TokenView:
    """The loss gap by answer token; `texts` are those of the tokens as far as they are known, `seed` draws the band."""
    at = np.flatnonzero(comparison.identical)
    left, right = comparison.left, comparison.right
    tokens = [left.target_ids[comparison.left_index[p]] for p in at]
    gaps = [_gap(comparison, int(p)) for p in at]
    clusters = comparison.clusters[at]
    by_pair = np.array([g.mean() for g in gaps], dtype=np.float64)
    overall = cluster_mean(by_pair, clusters)
    parts = [g / (len(g) * len(gaps)) for g in gaps]
    claimed = overall.low > 0 or overall.high < 0
    carried = np.nansum(_grid(parts), axis=0)
    return TokenView(
        left_name=left.provenance.data,
        right_name=right.provenance.data,
        n_pairs=len(at),
        n_tokens=sum(len(g) for g in gaps),
        mean_gap=overall.value,
        gap=simultaneous_band(_grid(gaps), clusters, seed=seed),
        share=carried / overall.value if claimed else np.full(len(carried), np.nan),
        telling=_telling(tokens, gaps, parts, texts or {}),
        shown=_on_show(comparison, at, by_pair, texts or {}) if len(at) else None,
        through=_through(comparison, at, seed),
    )


def _gap(comparison: Comparison, p: int) -> Float[np.ndarray, " t"]:
    a, b = int(comparison.left_index[p]), int(comparison.right_index[p])
    return np.asarray(np.subtract(comparison.left.token_loss[a], comparison.right.token_loss[b], dtype=np.float64))


def _grid(rows: list[Float[np.ndarray, " _"]]) -> Float[np.ndarray, "p t"]:
    """Rows of different lengths under each other, NaN where a row has ended."""
    out = np.full((len(rows), max((len(r) for r in rows), default=0)), np.nan)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


def _telling(
    tokens: list[Int[np.ndarray, " _"]],
    gaps: list[Float[np.ndarray, " _"]],
    parts: list[Float[np.ndarray, " _"]],
    texts: Mapping[int, str],
) -> tuple[Telling, ...]:
    if not tokens:
        return ()
    ids, code, count = np.unique(np.concatenate(tokens), return_inverse=True, return_counts=True)
    total, carried = (np.bincount(code, np.concatenate(values)) for values in (gaps, parts))
    pairs = np.bincount(np.concatenate([np.searchsorted(ids, np.unique(t)) for t in tokens]))
    found = [
        Telling(int(i), texts.get(int(i)), int(n), int(p), float(s / n), float(c))
        for i, n, p, s, c in zip(ids, count, pairs, total, carried, strict=True)
    ]
    return tuple(sorted(found, key=lambda t: -abs(t.contribution)))


def _on_show(
    comparison: Comparison, at: Int[np.ndarray, " q"], by_pair: Float[np.ndarray, " q"], texts: Mapping[int, str]
) -> PairOnShow:
    """The pair whose gap is the median one; of two in the middle, the lower."""
    chosen = int(np.argsort(by_pair, kind="stable")[(len(by_pair) - 1) // 2])
    p = at[chosen]
    a, b = int(comparison.left_index[p]), int(comparison.right_index[p])
    tokens = tuple(comparison.left.target_ids[a].tolist())
    return PairOnShow(
        id=comparison.left.ids[a],
        tokens=tokens,
        texts=tuple(texts.get(i) for i in tokens),
        left=comparison.left.token_loss[a].astype(np.float64),
        right=comparison.right.token_loss[b].astype(np.float64),
        gap=float(by_pair[chosen]),
        through_left=_parts_of_cosine(comparison.left, a)[1],
        through_right=_parts_of_cosine(comparison.right, b)[1],
    )


def _parts_of_cosine(table: Signals, row: int) -> tuple[float, Float[np.ndarray, " s"]]:
    """The part of a row's cosine with safety through its prompt, and through each position that predicts a target.

    `g_t^T M a_t / (||g|| ||M||)`; nothing where there are no token scores, or a norm is zero.
    """
    if table.token_alignment is None or table.reference is None:
        return math.nan, np.zeros(0)
    own = math.sqrt(sum(float(n[row]) ** 2 for n in table.norms.values()))
    size = own * math.sqrt(sum(n**2 for n in table.reference.norms.values()))
    if size == 0:
        return math.nan, np.zeros(0)
    scores = table.token_alignment[row].astype(np.float64) / size
    border = len(scores) - int(table.n_tokens[row])
    return float(scores[:border].sum()), scores[border:]


def _through(comparison: Comparison, at: Int[np.ndarray, " q"], seed: int) -> Through | None:
    """None where a side has no token scores, or the two know different means."""
    left, right = comparison.left, comparison.right
    if left.token_alignment is None or right.token_alignment is None or left.reference != right.reference:
        return None
    of_left = [_parts_of_cosine(left, int(comparison.left_index[p])) for p in at]
    of_right = [_parts_of_cosine(right, int(comparison.right_index[p])) for p in at]
    clusters = comparison.clusters[at]
    return Through(
        simultaneous_band(_grid([row for _, row in of_left]), clusters, seed=seed),
        simultaneous_band(_grid([row for _, row in of_right]), clusters, seed=seed),
        cluster_mean(np.array([p for p, _ in of_left], dtype=np.float64), clusters).value,
        cluster_mean(np.array([p for p, _ in of_right], dtype=np.float64), clusters).value,
    )
