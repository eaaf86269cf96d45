"""Do intervals of what a removal changes hold the change that is to be expected? They take the fitted space as given.

usage: python experiments/removal_coverage.py [--samples N]

A pair of small models with a planted shift (planted_shift.py), two of them: one with little noise in the tuned weights
besides, so that the space of the shift is well known, and one with five times as much. Samples are drawn from a pool of
rows of each kind; in each, the space that the shifts of `left` and `right` share is fitted on one half of the rows,
removed, and read on the other half, both ways, as `graddiag erosion --intervene` does it. What is to be expected is the
mean over the samples. Writes figures/removal_coverage.json. Processor time: about 15 minutes on one thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from planted_shift import LAYER, planted, rows

from graddiag.analyzers import SharedSpace, shared_space
from graddiag.comparison import Comparison
from graddiag.data import read_set
from graddiag.encoding import EncodedSet, encode
from graddiag.files import strict, write_json
from graddiag.intervention import Intervention, read_intervened
from graddiag.reading import Reader, read_rows, reader
from graddiag.signals import Signals
from graddiag.statistics import Estimate, difference_of_means, mean_difference

OUT = Path("figures/removal_coverage.json")
POOL = 1500  # rows of each kind: samples of 48 hardly overlap
POSITION = "first:10"
SITE = f"{LAYER}/{POSITION}"
KINDS = {"left": (11, True), "right": (12, True), "harmful": (13, True), "benign": (14, False)}  # seed, marked
READ = ("harmful", "benign")


@dataclass(frozen=True)
class Design:
    """Noise of the tuned weights, in their standard deviations; components that are removed; rows of a set."""

    noise: float
    k: int
    n: int


DESIGNS = (Design(0.02, 1, 12), Design(0.02, 1, 24), Design(0.02, 1, 48), Design(0.02, 3, 24), Design(0.1, 1, 24))


@dataclass(frozen=True)
class Pool:
    """All rows of a pair of models: their shifts, and the losses that the tuned model has without a removal."""

    losses: Reader
    rows: Mapping[str, EncodedSet]
    shifts: Mapping[str, tuple[Signals, Signals]]
    before: Mapping[str, np.ndarray]

    def without(self, name: str, at: np.ndarray, change: Intervention) -> np.ndarray:
        """What the removal does to the log-probability of these rows, nats/token."""
        one = replace(self.rows[name], rows=tuple(self.rows[name].rows[i] for i in at))
        return np.asarray(self.before[name][at] - read_intervened(self.losses, one, change).loss)


def pool(noise: float) -> Pool:
    """The rows of every kind under both models, read once."""
    (aligned, tokenizer), (tuned, _) = planted(noise=noise)
    encoded = {
        kind: encode(read_set(rows(kind, POOL, seed, marked=marked), name=kind), tokenizer, max_length=1024)
        for kind, (seed, marked) in KINDS.items()
    }
    states = [reader(m, tokenizer, layers=[LAYER], positions=[POSITION]) for m in (tuned, aligned)]
    shifts = {
        kind: (read_rows(states[0], encoded[kind]), read_rows(states[1], encoded[kind])) for kind in ("left", "right")
    }
    losses = reader(tuned, tokenizer, positions=[])
    return Pool(losses, encoded, shifts, {kind: read_rows(losses, encoded[kind]).loss for kind in READ})


def fitted(of: Pool, picked: Mapping[str, np.ndarray], half: slice, k: int) -> SharedSpace:
    """What `left` and `right` share in these rows."""
    left, right = (Comparison(*(t.take(list(picked[s][half])) for t in of.shifts[s])) for s in ("left", "right"))
    return shared_space(left, right, SITE, k=k)


def sample(of: Pool, design: Design, rng: np.random.Generator) -> tuple[dict[str, Estimate], float]:
    """One experiment: the change of harmful and of benign answers, and their difference, with intervals; and the mean
    overlap of `left` and `right` in the halves."""
    picked = {kind: rng.permutation(POOL)[: design.n] for kind in KINDS}
    halves = slice(0, design.n // 2), slice(design.n // 2, design.n)
    found, overlaps = {kind: np.zeros(design.n) for kind in READ}, []
    for fit, rest in (halves, halves[::-1]):
        space = fitted(of, picked, fit, design.k)
        overlaps.append(space.overlap)
        change = Intervention(remove={LAYER: space.directions.T})
        for kind in READ:
            found[kind][rest] = of.without(kind, picked[kind][rest], change)
    each = np.arange(design.n)
    estimates = {kind: mean_difference(found[kind], each) for kind in READ}
    estimates["difference"] = difference_of_means(found["harmful"], each, found["benign"], each)
    return estimates, float(np.mean(overlaps))


def coverage(of: Pool, design: Design, samples: int) -> dict[str, object]:
    """How often each interval holds the mean over samples."""
    rng = np.random.default_rng(5)
    both = [sample(of, design, rng) for _ in range(samples)]
    drawn = [estimates for estimates, _ in both]
    out: dict[str, object] = {**asdict(design), "samples": samples, "overlap": float(np.mean([x for _, x in both]))}
    for name in drawn[0]:
        expected = float(np.mean([d[name].value for d in drawn]))
        held = np.mean([d[name].low <= expected <= d[name].high for d in drawn])
        out[name] = {
            "expected": expected, "sd": float(np.std([d[name].value for d in drawn])), "covered": float(held),
            "half_width": float(np.mean([(d[name].high - d[name].low) / 2 for d in drawn])),
        }  # fmt: skip
    return out


def main() -> None:
    """Every design, a line each; then the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    pools = {noise: pool(noise) for noise in dict.fromkeys(d.noise for d in DESIGNS)}
    found = []
    for design in DESIGNS:
        found.append(coverage(pools[design.noise], design, given.samples))
        print(design, {k: v["covered"] for k, v in found[-1].items() if isinstance(v, dict)}, flush=True)
    versions = {p: importlib.metadata.version(p) for p in ("graddiag", "torch", "numpy")}
    command = "python experiments/removal_coverage.py"
    write_json(OUT, strict({"command": command, "nominal": 0.95, "designs": found, "versions": versions}))


if __name__ == "__main__":
    main()
