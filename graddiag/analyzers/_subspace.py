"""Do two sets change the states of a model along the same directions, more than chance and more than harmless data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graddiag.analyzers._blocks import BlockTests
from graddiag.analyzers._directions import count_components, leading, principal_angles
from graddiag.analyzers._overlap import Draws, against, contrast, matching_null, overlap, random_null, states_null
from graddiag.analyzers._overlap_scope import SiteReading, SubspaceScope, mean_scope
from graddiag.analyzers._spectrum import check_k
from graddiag.analyzers._states import States, centred, check_names, read_states
from graddiag.analyzers._transfer import mean_cosine, split_clusters, transfer
from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.sites import check_position, parse_site

N_NULL = 199  # draws of each null: p is then a multiple of 1/200, and 0.05 known within 0.015


@dataclass(frozen=True)
class SubspaceOverlap:
    """The overlap of the subspaces of two sets' centred shifts, site by site and on average over sites.

    `overall` is the mean over the sites at which the number is defined; its intervals and p come from the same clusters
    and draws at all sites, so that sites that say the same thing do not count as several. `sites` are in order of
    layers; `tests` adjusts the p of the matching null for their number.
    """

    names: tuple[str, str]
    controls: tuple[str, ...]
    position: str
    scaled: bool
    n_rows: tuple[int, int]
    overall: SubspaceScope
    sites: Mapping[str, SubspaceScope]
    tests: BlockTests

    def summary(self) -> dict[str, float | None]:
        """The flat keys of this result; None where undefined."""
        return self.overall.keys(self.names)

    def site_summary(self) -> dict[str, dict[str, float | None]]:
        """The same keys at each site, and its p over sites: `subspace/overlap:A:B/q` and `.../p_fwe`."""
        pair = f"subspace/overlap:{':'.join(self.names)}"
        return {site: scope.keys(self.names) | self.tests.keys(pair, site) for site, scope in self.sites.items()}


def subspace_overlap(
    a: Comparison,
    b: Comparison,
    controls: Mapping[str, Comparison] | None = None,
    *,
    position: str = "first:10",
    layers: Sequence[int] | None = None,
    k: int | None = None,
    scaled: bool = False,
    names: tuple[str, str] | None = None,
    n_null: int = N_NULL,
    seed: int = 0,
) -> SubspaceOverlap:
    """`tr(P_A P_B) / k` of the shifts of two sets, each a comparison of the same two models (left = tuned, right =
    aligned) on rows of its own, with what nulls and controls make of it.

    The mean of each set is subtracted first, since one vector added to every state (any fine-tune does that) would be
    one shared direction; what the means have in common is `mean_cosine`. `k` None counts the components of each set
    (`count_components`); where the two numbers differ, the overlap is divided by the smaller. `scaled`, `seed` as in
    `shift`. For what each p says, see `SubspaceScope`.

    Raises DataError where a set has no states at a site, or too few rows for `k`; UsageError for another position.
    """
    held = dict(controls or {})
    changes = [a, b, *held.values()]
    known = check_names(changes, None if names is None and not held else (*(names or _own_names(a, b)), *held))
    sites = _sites(changes, check_position(position), layers)
    draws = Draws.of((a.n_pairs, b.n_pairs), n_null, seed)
    readings = {}
    for site in sites:
        states = read_states(changes, site, known, scaled=scaled)
        readings[site] = _read(states, dict(zip(held, states[2:], strict=True)), k, draws)
    return SubspaceOverlap(
        names=(known[0], known[1]),
        controls=tuple(held),
        position=position,
        scaled=scaled,
        n_rows=(a.n_pairs, b.n_pairs),
        overall=mean_scope(list(readings.values())),
        sites={site: mean_scope([reading]) for site, reading in readings.items()},
        tests=BlockTests.of({site: against(r.overlap.value, r.matching) for site, r in readings.items()}),
    )


def _own_names(a: Comparison, b: Comparison) -> tuple[str, str]:
    return a.left.provenance.data, b.left.provenance.data


def _sites(changes: Sequence[Comparison], position: str, layers: Sequence[int] | None) -> list[str]:
    """The sites of the first set at this position, in order of layers."""
    found = sorted(s for s in map(parse_site, changes[0].left.states) if s.position == position)
    chosen = [s for s in found if layers is None or s.layer in layers]
    missing = sorted(set(layers or ()) - {s.layer for s in found})
    if missing or not chosen:
        held = ", ".join(changes[0].left.states) or "none"
        where = f" of layer {missing[0]}" if missing else ""
        raise DataError(
            f"{changes[0].left.provenance.data}: there are no states{where} at the position {position!r}. Read them "
            f"there. Sites in this table: {held}."
        )
    return [s.name for s in chosen]


def _read(states: list[States], controls: Mapping[str, States], given: int | None, draws: Draws) -> SiteReading:
    a, b = states[:2]
    for s in states:
        check_k(given, s)
    counts = [given or count_components(centred(s.change), seed=draws.seed).k for s in (a, b)]
    k = counts[0], counts[1]
    halves = split_clusters((a, b), draws.seed)
    pairs = {(x, y): (states[x], states[y], k[x]) for x in (0, 1) for y in (0, 1)}
    spaces = [leading(centred(s.change), n) for s, n in zip((a, b), k, strict=True)]
    return SiteReading(
        k=k,
        overlap=overlap(a, b, k),
        angles=principal_angles(*spaces),
        matching=matching_null(a, b, k, draws),
        random=random_null(a.tuned.shape[1], k, draws),
        chance=states_null(a, b, k, draws),
        mean_cosine=mean_cosine(a, b),
        transfer={at: transfer(fit, read, n, halves) for at, (fit, read, n) in pairs.items()},
        contrasts={name: contrast(a, b, c, k, draws) for name, c in controls.items()},
    )
