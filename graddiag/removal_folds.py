"""What is removed from which rows: the shared space of one half of the clusters, from rows of the other half."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graddiag.analyzers import SharedSpace, shared_space
from graddiag.erosion_setting import FIRST, ErosionRun, Fit
from graddiag.sites import Site


@dataclass(frozen=True)
class Fold:
    """One half of the clusters: what its rows of left and right share behind each layer, and the digests of those
    rows."""

    half: int
    clusters: frozenset[str]
    digests: frozenset[str]
    spaces: Mapping[int, SharedSpace]

    @property
    def fits(self) -> tuple[Fit, ...]:
        """What was found, layer by layer."""
        return tuple(
            Fit(
                self.half,
                layer,
                s.n_rows,
                s.k,
                s.directions.shape[1],
                s.overlap if np.isfinite(s.overlap) else None,
            )
            for layer, s in self.spaces.items()
        )

    def reads(self, cluster: str, digest: str) -> bool:
        """Whether a row is measured without what was found here: neither its cluster nor its text is in the fit."""
        return cluster not in self.clusters and digest not in self.digests


def folds(run: ErosionRun, layers: Sequence[int], measured: Collection[str]) -> tuple[Fold, Fold]:
    """Both halves of the clusters of left, right and the `measured` sets, with what each half's rows share.

    A cluster of one name is in the same half in all sets. Raises DataError as `shared_space`.
    """
    a, b = run.change("left"), run.change("right")
    clusters = [frozenset(c.left.clusters) for c in (a, b, *(run.change_on(name) for name in measured))]
    halves = split(clusters, run.setting.seed)
    out = []
    for number, half in enumerate(halves, start=1):
        digests = frozenset(
            d for c in (a, b) for d, k in zip(c.left.digests, c.left.clusters, strict=True) if k in half
        )
        sites = {k: Site(k, FIRST).name for k in layers}
        spaces = {
            k: shared_space(a, b, site, within=half, k=run.setting.k, seed=run.setting.seed)
            for k, site in sites.items()
        }
        out.append(Fold(number, half, digests, spaces))
    return out[0], out[1]


def split(sets: Sequence[frozenset[str]], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """All clusters in two halves; of those that are in the same sets, half each (of an odd number the larger half in
    turn)."""
    rng = np.random.default_rng([seed, 5])
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name in sorted(frozenset[str]().union(*sets)):
        groups.setdefault(tuple(name in s for s in sets), []).append(name)
    first: set[str] = set()
    extra = 1
    for group in groups.values():
        mixed = [group[i] for i in rng.permutation(len(group))]
        first |= set(mixed[: (len(mixed) + extra) // 2])
        extra = 1 - extra if len(mixed) % 2 else extra
    return frozenset(first), frozenset(frozenset[str]().union(*sets) - first)
