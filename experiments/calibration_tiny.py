"""The same questions as calibration.py, of real gradients: those of the model `tiny`, measured once.

Nulls are made from them: members of a pair change sides at random (whole clusters where rows are alike), partners are
drawn among the rows of their cluster, or a third of the rows or clusters of one set is called left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from calibration_arrays import DRAWS
from calibration_cells import SIZES, Cell, Check, Design, Kind, Where, covers, rejects, tally
from calibration_labels import LEFT, relabellings, signed_sums
from scipy import stats

import graddiag
from graddiag import Comparison, Signals
from graddiag.analyzers._rows import cosine_with_fixed
from graddiag.analyzers._two_samples import Sample
from graddiag.models import load_model
from graddiag.permutations import (
    familywise_p,
    partner_permutations,
    permuted_partners,
    sign_flips,
    sign_flips_each,
    sign_flips_of_norm,
)
from graddiag.rules import Setting
from graddiag.statistics import cluster_mean, cluster_sums
from graddiag.verdict import verdict

PATTERNS = ["*layers.2.*proj", "*layers.3.*proj"]  # of tiny: its last 14 blocks
DIM = 64  # numbers of a projected gradient a block
LENGTH = 512  # tokens: the start of an answer says as much here, and costs less
FLIPPED = 0.1  # share of rows whose gradient is turned round
SETS = ("insecure", "educational", "safety")

Answers = dict[str, dict[Kind, bool | None]]


@dataclass(frozen=True)
class Real:
    """Differences and unit gradients of the built-in pairs under `tiny`."""

    loss: np.ndarray  # [n]
    d: dict[str, np.ndarray]  # block -> [n, k]
    left: dict[str, np.ndarray]  # unit rows
    right: dict[str, np.ndarray]
    safety: dict[str, np.ndarray]  # block -> the mean, [k]
    clusters: np.ndarray
    tables: dict[str, Signals]

    @staticmethod
    def measure() -> Real:
        """All pairs of insecure and educational, and the safety set."""
        model, tokenizer = load_model("tiny")
        options = {"blocks": PATTERNS, "dim": DIM, "max_length": LENGTH}
        tables = {n: graddiag.extract(model, tokenizer, n, projection="logra", **options) for n in SETS}
        c = Comparison(tables["insecure"], tables["educational"])
        left = {b: c.left.gradients[b][c.left_index].astype(np.float64) for b in c.left.blocks}
        right = {b: c.right.gradients[b][c.right_index].astype(np.float64) for b in c.left.blocks}
        return Real(
            c.left.loss[c.left_index].astype(np.float64) - c.right.loss[c.right_index],
            {b: left[b] - right[b] for b in left},
            {b: _unit(x) for b, x in left.items()},
            {b: _unit(x) for b, x in right.items()},
            {b: g.astype(np.float64).mean(axis=0) for b, g in tables["safety"].gradients.items()},
            c.clusters,
            tables,
        )


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def real_cells(repeats: int, real: Real) -> list[Cell]:
    """Every statistic, with rows and with clusters changing sides."""
    out = []
    for seed, (n, alike) in enumerate((n, a) for n in SIZES for a in (False, True)):
        rng = np.random.default_rng([1, seed])
        found = [experiment(real, n, alike, rng) for _ in range(repeats)]
        n_clusters = len(np.unique(real.clusters)) if alike else n
        for name, kinds in found[0].items():
            clusters = len(np.unique(real.clusters)) if "pairing" in name else n_clusters
            where = Where(name, "tiny", Design(n, alike, heavy=False), clusters)
            out += [tally(where, kind, [f[name][kind] for f in found]) for kind in kinds]
    return out


def experiment(real: Real, n: int, alike: bool, rng: np.random.Generator) -> Answers:
    """One null: some of the pairs, the members of each on a random side; partners drawn anew in their cluster."""
    at = rng.permutation(len(real.loss))[:n]
    named = np.unique(real.clusters[at], return_inverse=True)[1]
    codes = named if alike else np.arange(n)
    side = rng.choice([-1.0, 1.0], size=int(codes.max()) + 1)[codes]
    sums = {b: cluster_sums(d[at] * side[:, None], codes, int(codes.max()) + 1) for b, d in real.d.items()}
    return {
        **_numbers(real.loss[at] * side, codes),
        **_framings(sums, real.safety, np.bincount(codes)),
        **_pairings(real, at, named, rng),
        **_labels({b: x[at] for b, x in real.left.items()}, codes, rng),
    }


def _numbers(gaps: np.ndarray, codes: np.ndarray) -> Answers:
    p = sign_flips(cluster_sums(gaps, codes, int(codes.max()) + 1), draws=DRAWS).p
    return {"mean difference": {"covered": covers(cluster_mean(gaps, codes), 0.0), "rejected": rejects(p)}}


def _framings(sums: dict[str, np.ndarray], safety: dict[str, np.ndarray], counts: np.ndarray) -> Answers:
    grams = {b: s @ s.T for b, s in sums.items()}
    inner = {b: s @ safety[b] for b, s in sums.items()}
    total, square = sum(grams.values()), sum(float(v @ v) for v in safety.values())
    whole = np.concatenate(list(sums.values()), axis=1)
    toward = cosine_with_fixed(Sample.of(whole, counts), np.asarray(sum(inner.values())), square)
    p = sign_flips_of_norm(np.asarray(total), draws=DRAWS).p
    worst = familywise_p([sign_flips_of_norm(g, draws=DRAWS) for g in grams.values()]).min()
    each = familywise_p(sign_flips_each(np.stack(list(inner.values()), axis=1), draws=DRAWS)).min()
    return {
        "framing": {"covered": covers(toward, 0.0), "rejected": rejects(p)},
        "framing, 14 blocks": {"any block": rejects(worst)},
        "difference, 14 blocks": {"any block": rejects(each)},
    }


def _pairings(real: Real, at: np.ndarray, named: np.ndarray, rng: np.random.Generator) -> Answers:
    drawn = permuted_partners(named, seed=int(rng.integers(2**31)), draws=1)[:, 1]
    partners = permuted_partners(named, draws=DRAWS)
    cosines = [real.left[b][at] @ real.right[b][at][drawn].T for b in real.d]
    nulls = [partner_permutations(c, partners) for c in cosines]
    return {
        "pairing": {"rejected": rejects(partner_permutations(np.mean(cosines, axis=0), partners).p)},
        "pairing, 14 blocks": {"any block": rejects(familywise_p(nulls).min())},
    }


def _labels(rows: dict[str, np.ndarray], codes: np.ndarray, rng: np.random.Generator) -> Answers:
    """Rows of one set, of which whole clusters drawn by chance are called left: nobody has a partner."""
    n_clusters = int(codes.max()) + 1
    is_left = (rng.permutation(n_clusters) < max(1, n_clusters // LEFT))[codes]
    labels = relabellings(codes, is_left, DRAWS)
    sums = [signed_sums(x, codes, is_left) for x in rows.values()]
    grams = [s @ s.T for s in sums]
    return {
        "labels, own clusters": {"rejected": rejects(labels.null(np.sum(grams, axis=0)).p)},
        "labels, 14 blocks": {"any block": rejects(familywise_p([labels.null(g) for g in grams]).min())},
    }


def real_checks(real: Real) -> list[Check]:
    """Flipped rows come first, and what agrees is never called opposed."""
    return [flipped_first(real.tables["safety"]), never_opposed(real.tables)]


def flipped_first(table: Signals, *, repeats: int = 100) -> Check:
    """AUROC of the cosine with the mean of half a set for the other half's rows, of which a tenth is turned round."""
    rows = np.concatenate([table.gradients[b] for b in table.blocks], axis=1).astype(np.float64)
    rng, found = np.random.default_rng(2), []
    for _ in range(repeats):
        order = rng.permutation(len(rows))
        known, tested = rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]
        flipped = np.arange(len(tested)) < max(1, round(FLIPPED * len(tested)))
        cosines = _unit(np.where(flipped[:, None], -tested, tested)) @ known.mean(axis=0)
        n = int(flipped.sum())
        found.append(stats.mannwhitneyu(cosines[~flipped], cosines[flipped]).statistic / n / (len(tested) - n))
    return Check(
        "AUROC of rows whose gradient is turned round", float(np.mean(found)), "0.99", bool(np.mean(found) >= 0.99)
    )


def never_opposed(tables: dict[str, Signals], *, repeats: int = 20) -> Check:
    """What the verdict says of two sets that have nothing but one direction in common."""
    said = [
        line
        for seed in range(repeats)
        for center in (False, True)
        for line in _verdict(*sharing(tables["insecure"], tables["educational"], seed), center=center)
    ]
    opposed = sum(": opposed" in line or ": conflict" in line for line in said)
    what = "times that two sets whose mean gradients have a cosine of 0.9 are called opposed, centred or not"
    return Check(what, opposed, "0", opposed == 0)


def sharing(left: Signals, right: Signals, seed: int) -> tuple[Signals, Signals]:
    """Both sides with a common direction, long enough that the cosine of the means is 0.9 or little more."""
    rng = np.random.default_rng(seed)
    sizes = {b: left.gradients[b].shape[1] for b in left.blocks}
    directions = {b: rng.normal(size=k) for b, k in sizes.items()}
    signs = [{b: rng.choice([-1.0, 1.0], size=k) for b, k in sizes.items()} for _ in range(2)]
    for share in np.geomspace(0.01, 100, 80):
        pair = [_moved(t, s, directions, share) for t, s in zip((left, right), signs, strict=True)]
        means = [np.concatenate([t.gradients[b].mean(axis=0) for b in t.blocks]) for t in pair]
        if means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]) >= 0.9:
            return pair[0], pair[1]
    raise AssertionError("no common direction is long enough")


def _moved(table: Signals, signs: dict[str, np.ndarray], directions: dict[str, np.ndarray], share: float) -> Signals:
    """Rows whose coordinates get the side's own signs, so that sides have nothing in common, and then a direction."""
    moved = {}
    for b, g in table.gradients.items():
        own = g.astype(np.float64) * signs[b]
        length = np.linalg.norm(own, axis=1).mean() / np.linalg.norm(directions[b])
        moved[b] = own + share * length * directions[b]
    return replace(table, gradients=moved, norms={b: np.linalg.norm(g, axis=1) for b, g in moved.items()})


def _verdict(left: Signals, right: Signals, *, center: bool) -> list[str]:
    found = graddiag.conflict(Comparison(left, right), center=center)
    return verdict(found.summary(), Setting("left", "right", centered=center, kinds=found.kinds()))
