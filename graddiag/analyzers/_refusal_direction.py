"""Does the model still tell harmful prompts from harmless ones along the same direction?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graddiag.analyzers._behaviour import check_same_models
from graddiag.analyzers._held_out import sums_of
from graddiag.analyzers._state_rows import difference, layers_at
from graddiag.analyzers._two_samples import products_apart
from graddiag.comparison import Comparison
from graddiag.errors import DataError
from graddiag.statistics import COSINE, ROUNDING, Estimate, contrast_of_two, jackknife_of_two, optional


@dataclass(frozen=True)
class LayerRefusal:
    """The refusal direction r of one layer, mean state of harmful prompts minus that of harmless ones (Arditi et al.
    2024, arXiv 2406.11717), under two models.

    `cosine` is that of the two models' r: 1 where both tell the prompts apart along one direction. `drift` is
    `<r_tuned - r_aligned, r_aligned> / ||r_aligned||^2`: 0 where the prompts are as far apart along the aligned model's
    r as they were, -1 where they are no longer, positive towards a wider gap. It is the difference of `harmful` and
    `harmless`, how far each set's mean moved along r, in lengths of r. `random_sd` is the standard deviation of a
    cosine with r of a direction drawn evenly from all: a root of one over the number of dimensions.

    All are of expected directions: products within a sample are of rows in different clusters only, so that the noise
    that a row has under both models is in none of them. NaN, not measurable, unless the interval of
    `||r_aligned||^2` is above zero; the cosine also where `||r_tuned||^2` is not.
    """

    layer: int
    cosine: Estimate
    drift: Estimate
    harmful: Estimate
    harmless: Estimate
    random_sd: float


@dataclass(frozen=True)
class RefusalDirection:
    """The refusal direction by layer under the tuned and the aligned model.

    Harmful and harmless prompts are taken as independent samples; intervals are over the clusters of both, pointwise.
    """

    tuned_name: str
    aligned_name: str
    harmful_name: str
    harmless_name: str
    position: str
    n_harmful: int
    n_harmless: int
    layers: tuple[LayerRefusal, ...]

    def summary(self) -> dict[str, int | float | None]:
        """The flat keys of this result; None where undefined."""
        stem = "direction/refusal"
        out: dict[str, int | float | None] = {
            f"{stem}/harmful/n": self.n_harmful,
            f"{stem}/harmless/n": self.n_harmless,
        }
        for at in self.layers:
            out |= at.cosine.keys(f"{stem}/cosine/{at.layer}", p=False)
            out |= {f"{stem}/cosine/{at.layer}/random_sd": optional(at.random_sd)}
            for name in ("drift", "harmful", "harmless"):
                out |= getattr(at, name).keys(f"{stem}/{name}/{at.layer}")
        return out

    def kinds(self) -> dict[str, str]:
        """What each key was computed from."""
        return dict.fromkeys(self.summary(), "states")


def refusal_direction(harmful: Comparison, harmless: Comparison, *, position: str = "last_prompt") -> RefusalDirection:
    """The refusal direction at every layer whose states at `position` all tables have; the left tables are the tuned
    model's, the right ones the aligned model's.

    Raises UsageError for an unknown position, and DataError where the comparisons are not of the same two models, or a
    table has no states there, or those of other layers, or no row was read under both models.
    """
    check_same_models(harmful, harmless)
    layers = layers_at(position, harmful, harmless)
    for c in (harmful, harmless):
        if not c.n_pairs:
            raise DataError(
                f"No row of {c.left.provenance.data} was read under both models: rows are paired by id. Read the same "
                "rows under each."
            )
    return RefusalDirection(
        tuned_name=harmful.left.provenance.model,
        aligned_name=harmful.right.provenance.model,
        harmful_name=harmful.left.provenance.data,
        harmless_name=harmless.left.provenance.data,
        position=position,
        n_harmful=harmful.n_pairs,
        n_harmless=harmless.n_pairs,
        layers=tuple(_layer(k, harmful, harmless, site) for k, site in layers.items()),
    )


def _layer(layer: int, harmful: Comparison, harmless: Comparison, site: str) -> LayerRefusal:
    samples = [_Sample.of(c, site) for c in (harmful, harmless)]
    found = _products(*samples)
    random_sd = 1 / math.sqrt(samples[0].aligned.shape[1])
    first, second = slice(1, len(samples[0].counts) + 1), slice(len(samples[0].counts) + 1, None)
    square = np.where(found.square > found.least, found.square, np.nan)
    if not jackknife_of_two(float(square[0]), square[first], square[second]).low > 0:  # also where it is undefined
        none = Estimate(math.nan)
        return LayerRefusal(layer, none, none, none, none, random_sd)
    drift = found.harmful - found.harmless
    tuned = found.square + 2 * drift + found.moved
    tuned = np.where(tuned > found.least, tuned, np.nan)
    cosine = (square + drift) / np.sqrt(square * tuned)
    moved = [x / square for x in (drift, found.harmful, found.harmless)]
    estimates = [contrast_of_two(float(x[0]), x[first], x[second]) for x in moved]
    return LayerRefusal(
        layer=layer,
        cosine=jackknife_of_two(float(cosine[0]), cosine[first], cosine[second], bounds=COSINE),
        drift=estimates[0],
        harmful=estimates[1],
        harmless=estimates[2],
        random_sd=random_sd,
    )


@dataclass(frozen=True)
class _Sample:
    """Cluster sums of one set's states under the aligned model, and of what tuning adds; the rows of each cluster."""

    aligned: Float[np.ndarray, "c d"]
    shift: Float[np.ndarray, "c d"]
    counts: Int[np.ndarray, " c"]

    @staticmethod
    def of(comparison: Comparison, site: str) -> _Sample:
        aligned = comparison.right.states[site][comparison.right_index].astype(np.float64)
        return _Sample(
            aligned=sums_of(aligned, comparison.clusters),
            shift=sums_of(difference(comparison, site), comparison.clusters),
            counts=np.bincount(comparison.clusters),
        )


@dataclass(frozen=True)
class _Products:
    """With r of the aligned model: its square, what each set's shift goes along it, and the square of what r moves by.

    Each with all clusters, then without each of the harmful ones, then without each of the harmless ones. A square up
    to `least` is rounding.
    """

    square: Float[np.ndarray, " e"]
    harmful: Float[np.ndarray, " e"]
    harmless: Float[np.ndarray, " e"]
    moved: Float[np.ndarray, " e"]
    least: float


def _products(a: _Sample, b: _Sample) -> _Products:
    first, second = np.zeros(len(a.counts)), np.zeros(len(b.counts))

    def apart(x: Float[np.ndarray, "c d"], y: Float[np.ndarray, "c d"]) -> Float[np.ndarray, " e"]:
        found = products_apart(x @ y.T, a.counts)
        return np.concatenate([found, second + found[0]])

    def apart_harmless(x: Float[np.ndarray, "k d"], y: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " e"]:
        found = products_apart(x @ y.T, b.counts)
        return np.concatenate([found[:1], first + found[0], found[1:]])

    def between(x: Float[np.ndarray, "c d"], y: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " e"]:
        return _of_means(x @ y.T, a.counts, b.counts)

    return _Products(
        square=apart(a.aligned, a.aligned) + apart_harmless(b.aligned, b.aligned) - 2 * between(a.aligned, b.aligned),
        harmful=apart(a.shift, a.aligned) - between(a.shift, b.aligned),
        harmless=between(a.aligned, b.shift) - apart_harmless(b.shift, b.aligned),
        moved=apart(a.shift, a.shift) + apart_harmless(b.shift, b.shift) - 2 * between(a.shift, b.shift),
        least=ROUNDING * sum(float((s.aligned**2).sum() / (s.counts**2).sum()) for s in (a, b)),
    )


def _of_means(
    products: Float[np.ndarray, "c k"], first: Int[np.ndarray, " c"], second: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " e"]:
    """Product of the means of two samples from those of their cluster sums: with all clusters, then without each of the
    first sample's, then without each of the second's."""
    total, n, m = products.sum(), first.sum(), second.sum()
    sums = np.concatenate([[total], total - products.sum(axis=1), total - products.sum(axis=0)])
    counts = np.concatenate([[n * m], (n - first) * m, n * (m - second)]).astype(np.float64)
    out = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out
