"""How do the states of a set change from the aligned to the tuned model: all alike, and beyond that, how variously?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._directions import count_components, singular_values
from graddiag.analyzers._states import States, centred, check_names, read_states
from graddiag.analyzers._two_samples import Sample
from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.permutations import sign_flips_of_norm
from graddiag.statistics import Estimate, cluster_sums, jackknife, optional


@dataclass(frozen=True)
class Shift:
    """The change of states, tuned minus aligned, of one set at one site: its mean and its centred spectrum apart.

    `size` is the root of the summed squares of all changes over that of the aligned states: 0 where nothing changed.
    `mean_norm` is the length of the expected change, in units of the states, without the noise of the mean (products of
    rows in different clusters), with its jackknife interval over clusters; NaN, not measurable, where its square is not
    above 0. `mean_share` is the share of the summed squares that the mean of the rows has, `mean_share_null` what it
    has on average under random signs of clusters, and `mean_p` their p: does the set move as one?

    `shares` [m] are the shares of the components of the centred changes in their summed squares, largest first, and
    `edges` what those of `count_components` were measured against, in the same unit. `k` is their number, or the one
    that was given. `effective_rank` is `(sum s^2)^2 / sum s^4` over the singular values s.
    """

    name: str
    site: str
    n_rows: int
    n_clusters: int
    scaled: bool
    size: float
    mean_norm: Estimate
    mean_share: float
    mean_share_null: float
    mean_p: float
    shares: Float[np.ndarray, " m"]
    edges: tuple[float, ...]
    k: int
    effective_rank: float

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        values = {
            "size": self.size,
            "mean_norm": self.mean_norm.value,
            "mean_norm/low": self.mean_norm.low,
            "mean_norm/high": self.mean_norm.high,
            "mean_share": self.mean_share,
            "mean_share/null": self.mean_share_null,
            "mean_share/p": self.mean_p,
            "effective_rank": self.effective_rank,
            "first_share": float(self.shares[0]) if len(self.shares) else math.nan,
            "k": float(self.k),
        }
        kinds = ((key.partition("/"), v) for key, v in values.items())
        return {f"subspace/{head}:{self.name}{slash}{tail}": optional(v) for (head, slash, tail), v in kinds}


def shift(
    change: Comparison, site: str, *, k: int | None = None, scaled: bool = False, name: str | None = None, seed: int = 0
) -> Shift:
    """The change of states between two models on the same rows (left = tuned, right = aligned) at a site.

    `k` None counts components (`count_components`, drawn from `seed`). `scaled` divides every coordinate by its
    standard deviation over the aligned states, so that a few coordinates of huge activations do not stand for all.
    Raises DataError where a table has no states at the site, no row has a partner, or there are too few rows for `k`.
    """
    names = check_names([change], None if name is None else (name,))
    (states,) = read_states([change], site, names, scaled=scaled)
    rows = centred(states.change)
    check_k(k, states)
    found = count_components(rows, seed=seed)
    values = singular_values(rows)
    squares = values**2
    total = float(squares.sum())
    summed, counts = _by_cluster(states)
    null = sign_flips_of_norm(summed @ summed.T, seed=seed)
    everything = float((states.change**2).sum())
    mean_share = float((summed.sum(axis=0) ** 2).sum()) / len(rows)
    within = float((summed**2).sum()) / len(rows)
    return Shift(
        name=states.name,
        site=site,
        n_rows=len(rows),
        n_clusters=len(counts),
        scaled=scaled,
        size=_ratio(math.sqrt(everything), float(np.linalg.norm(states.aligned))),
        mean_norm=_mean_norm(Sample.of(summed, counts)),
        mean_share=_ratio(mean_share, everything),
        mean_share_null=_ratio(within, everything),
        mean_p=null.p,
        shares=squares / total if total else np.zeros(0),
        edges=tuple(_ratio(e**2, total) for e in found.edges) if total else (),
        k=found.k if k is None else k,
        effective_rank=_ratio(total**2, float((squares**2).sum())),
    )


def check_k(k: int | None, states: States) -> None:
    """Raises DataError where a number of components is given that centred rows of this number cannot have."""
    if k is None:
        return
    n, d = states.tuned.shape
    most = min(n - 1, d)
    if not 1 <= k <= most:
        raise DataError(
            f"{states.name}: {k} components were asked for, and {n} rows of {d} numbers, their mean subtracted, have "
            f"at most {most}. Ask for 1 to {most}, or give more rows."
        )


def _by_cluster(states: States) -> tuple[Float[np.ndarray, "c d"], Int[np.ndarray, " c"]]:
    present, codes = np.unique(states.codes, return_inverse=True)
    return cluster_sums(states.change, codes, len(present)), np.bincount(codes)


def _mean_norm(sample: Sample) -> Estimate:
    norms = np.sqrt(sample.square_apart())
    if not math.isfinite(norms[0]):
        return Estimate(math.nan)
    return jackknife(float(norms[0]), norms[1:], bounds=(0.0, math.inf))


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan
