"""Experiments whose truth is known, drawn as arrays, and how often each claim of graddiag is made in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from calibration_cells import (
    CLUSTER,
    ERRORS,
    ICC,
    SIZES,
    Cell,
    Check,
    Design,
    Kind,
    Where,
    covers,
    rejects,
    tally,
)
from calibration_labels import many_labels, own_clusters, shared_clusters
from scipy import optimize, stats

from graddiag.analyzers._row_sums import Groups, RowSums
from graddiag.analyzers._rows import Rows, corrected_cosines, cosine_with_fixed
from graddiag.analyzers._safety_direction import split_half
from graddiag.analyzers._two_samples import Sample, TwoSamples
from graddiag.permutations import (
    familywise_p,
    partner_permutations,
    partner_permutations_each,
    permuted_partners,
    sign_flips,
    sign_flips_each,
    sign_flips_of_norm,
)
from graddiag.statistics import COSINE, cluster_mean, cluster_sums, jackknife

DIM = 20  # numbers of a drawn gradient
BLOCK_DIM = 3  # numbers of a drawn gradient in each of many blocks
PLANTED = 0.5  # cosine of the means that is put in
DRAWS = 999  # permutations: (1 + 49) / 1000 is exactly 5 %

Experiment = Callable[[np.random.Generator], dict[Kind, bool | None]]  # None: not measurable, nothing is claimed


def mean_of_differences(design: Design, size: int) -> Experiment:
    """The loss gap, the difference in alignment: a mean of differences over pairs."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        values = design.draw(rng)
        p = sign_flips(cluster_sums(values, clusters, int(clusters[-1]) + 1), draws=DRAWS).p
        return {"covered": covers(cluster_mean(values, clusters), 0.0), "rejected": rejects(p)}

    return once


def framing(design: Design, size: int) -> Experiment:
    """The mean framing gradient, and its cosine with a direction with which it has nothing to do."""
    clusters = design.clusters(size)
    safety = np.random.default_rng(0).normal(size=DIM)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.draw(rng, DIM), clusters, int(clusters[-1]) + 1)
        toward = cosine_with_fixed(Sample.of(sums, np.bincount(clusters)), sums @ safety, float(safety @ safety))
        return {"rejected": rejects(sign_flips_of_norm(sums @ sums.T, draws=DRAWS).p), "covered": covers(toward, 0.0)}

    return once


def pairing(design: Design, size: int) -> Experiment:
    """Paired cosines of partners that are no more alike than other rows of their cluster."""
    partners = permuted_partners(design.clusters(size), draws=DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        return {"rejected": rejects(partner_permutations(_cosines(design, rng), partners).p)}

    return once


def _cosines(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Of left with right rows, which share what their cluster has in common."""
    both = design.draw(rng, 2 * DIM)
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (both[:, :DIM], both[:, DIM:]))
    return np.asarray(left @ right.T)


def cosine_of_means(design: Design, size: int) -> Experiment:
    """The cosine of two mean gradients, corrected for noise; partners are alike."""
    codes = design.clusters(size)
    at = np.arange(design.n)
    rows = Rows(design.n, design.n, at, at, codes, codes, int(codes[-1]) + 1)
    means = np.zeros((2, DIM))
    means[:, 0], means[1, :2] = 1.0, (PLANTED, math.sqrt(1 - PLANTED**2))

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        noise = design.draw(rng, 3, DIM) * SPREAD
        both = np.concatenate([means[k] + (noise[:, k] + noise[:, 2]) / math.sqrt(2) for k in (0, 1)])
        found = corrected_cosines(RowSums.of_rows(both, rows.groups), rows)
        return {"covered": covers(jackknife(float(found[0]), found[1:], bounds=COSINE), PLANTED)}

    return once


def framing_with_safety(cosine: float) -> Callable[[Design, int], Experiment]:
    """The cosine of the mean framing gradient with that of safety, corrected for noise, of as many safety rows."""
    means = np.zeros((2, DIM))
    means[0, 0], means[1, :2] = 1.0, (cosine, math.sqrt(1 - cosine**2))

    def make(design: Design, size: int) -> Experiment:
        clusters = design.clusters(size)
        counts = np.bincount(clusters)

        def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
            d, safety = (cluster_sums(m + SPREAD * design.draw(rng, DIM), clusters, len(counts)) for m in means)
            return {"covered": covers(TwoSamples.of(d, safety, counts, counts).cosine(), cosine)}

        return once

    return make


def safety_split_half(design: Design, size: int) -> Experiment:
    """How well the direction of a mean gradient of length 1 is known, with noise of variance 1 in each number."""
    groups = Groups.of_one(design.clusters(size))
    shared = ICC / (design.n // CLUSTER) if design.alike else 0.0
    noise = DIM * (shared + (1 - ICC if design.alike else 1.0) / design.n)
    mean = np.eye(DIM)[0]

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        rows = mean + design.draw(rng, DIM)
        return {"covered": covers(split_half(RowSums.of_rows(rows, groups), groups), 1 / (1 + noise))}

    return once


SPREAD = 0.4  # of a row's noise in each number, beside a mean gradient of length 1: its length is 1.8


def many_numbers(design: Design, size: int) -> Experiment:
    """The difference in alignment in many blocks."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.in_blocks(rng, 1)[:, :, 0], clusters, int(clusters[-1]) + 1)
        return {"any block": rejects(familywise_p(sign_flips_each(sums, draws=FEW_DRAWS)).min())}

    return once


def many_framings(design: Design, size: int) -> Experiment:
    """The mean framing gradient in many blocks."""
    clusters = design.clusters(size)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        sums = cluster_sums(design.in_blocks(rng, BLOCK_DIM), clusters, int(clusters[-1]) + 1)
        return {"any block": rejects(familywise_p(sign_flips_each(sums, draws=FEW_DRAWS)).min())}

    return once


def many_pairings(design: Design, size: int) -> Experiment:
    """Paired cosines in many blocks."""
    partners = permuted_partners(design.clusters(size), draws=FEW_DRAWS)

    def once(rng: np.random.Generator) -> dict[Kind, bool | None]:
        left, right = (design.in_blocks(rng, BLOCK_DIM) for _ in range(2))
        left, right = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (left, right))
        cosines = left.transpose(1, 0, 2) @ right.transpose(1, 2, 0)
        return {"any block": rejects(familywise_p(partner_permutations_each(cosines, partners)).min())}

    return once


FEW_DRAWS = (
    99  # permutations in many blocks: (1 + 4) / 100 is exactly 5 %, and a test is as valid with few as with many
)

# Partners can only be permuted inside clusters of several rows: those there are, also where rows are not alike.
STATISTICS: dict[str, tuple[Callable[[Design, int], Experiment], bool]] = {
    "mean difference": (mean_of_differences, False),
    "framing": (framing, False),
    "pairing": (pairing, True),
    "labels, own clusters": (own_clusters, False),
    "labels, shared clusters": (shared_clusters, True),
    "cosine of means": (cosine_of_means, False),
    "framing and safety, cosine 0": (framing_with_safety(0.0), False),
    "framing and safety, cosine 0.5": (framing_with_safety(PLANTED), False),
    "safety split half": (safety_split_half, False),
    "difference, 100 blocks": (many_numbers, False),
    "framing, 100 blocks": (many_framings, False),
    "pairing, 100 blocks": (many_pairings, True),
    "labels, 100 blocks": (many_labels, False),
}


def designs() -> Iterator[Design]:
    """All of them."""
    for n in SIZES:
        for alike in (False, True):
            for heavy in (False, True):
                yield Design(n, alike, heavy)


def cells(statistic: str, design: Design, repeats: int, seed: int) -> list[Cell]:
    """One cell for each claim that a statistic makes."""
    make, needs_clusters = STATISTICS[statistic]
    size = CLUSTER if design.alike or needs_clusters else 1
    once, rng = make(design, size), np.random.default_rng(seed)
    found = [once(rng) for _ in range(repeats)]
    where = Where(statistic, "drawn", design, design.n // size)
    return [tally(where, kind, [f[kind] for f in found]) for kind in found[0]]


def planted_shift(repeats: int, *, n: int = 40, seed: int = 0) -> Check:
    """How often a shift is found at which Student's t test has a power of 80 %: sign flips may lose 2 % of that."""
    freedom, at = n - 1, float(stats.t.ppf(0.975, n - 1))
    shift = float(optimize.brentq(lambda d: stats.nct.sf(at, freedom, d * math.sqrt(n)) - 0.8, 0.1, 2.0))
    rng = np.random.default_rng(seed)
    found = float(np.mean([sign_flips(rng.normal(shift, 1, size=n), draws=DRAWS).p <= 0.05 for _ in range(repeats)]))
    least = 0.8 - 0.02 - ERRORS * math.sqrt(0.16 / repeats)
    return Check(f"a shift of {shift:.3f} standard deviations is found in {n} pairs", found, "0.8", found >= least)
