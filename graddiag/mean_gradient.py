"""The mean gradient of a set, exact and in the parameters' own shape: summed batch by batch, then multiplied with
rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from graddiag.adam import OptimizerState
from graddiag.blocks import Selected
from graddiag.errors import DataError
from graddiag.files import check_sums, disk_named, write_atomically, write_json
from graddiag.signals import AdamStep, Reference, Signals


@dataclass
class MeanGradient:
    """The running sum of per-example gradients per block, float32 or better, and how many rows are in each sum."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def total(self, b: Selected) -> Float[Tensor, "*shape"]:
        """The sum of one block, on the block's own device."""
        name, weight = b.block.name, b.parameter
        if name not in self.totals:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            self.totals[name] = torch.zeros(b.block.shape, dtype=wide, device=weight.device)
            self.counts[name] = 0
        elif self.totals[name].device != weight.device:
            self.totals[name] = self.totals[name].to(weight.device)
        return self.totals[name]

    def known(self, signals: Signals) -> KnownMean:
        """The mean itself, described as that of the finite rows of `signals`. Raises DataError where there is none."""
        empty = [b for b in signals.blocks if not self.counts.get(b)]
        if empty:
            name = signals.provenance.data
            raise DataError(
                f"{name}: no row has a finite gradient in {empty[0]!r}, so there is no mean gradient to compare with."
            )
        means = {b: self.totals[b] / self.counts[b] for b in signals.blocks}
        norms = {b: float(torch.linalg.vector_norm(m.double())) for b, m in means.items()}
        n = int(signals.finite.sum())
        return KnownMean(Reference(signals.provenance.data, signals.rows, signals.provenance.weights, n, norms), means)


@dataclass(frozen=True)
class KnownMean:
    """A mean gradient that rows are multiplied with: its description, the mean per block, and what else is wanted.

    With `token_scores`, products are told apart by position too; with an `optimizer`, the steps that rows would make
    are multiplied with the mean too, and `adam` describes them.
    """

    reference: Reference
    means: Mapping[str, Float[Tensor, "*_"]]
    token_scores: bool = False
    optimizer: OptimizerState | None = None
    adam: AdamStep | None = None

    def wanting(self, *, token_scores: bool, optimizer: OptimizerState | None) -> KnownMean:
        """The same mean, with what else is wanted."""
        adam = optimizer.toward(self.means) if optimizer else None
        return KnownMean(self.reference, self.means, token_scores, optimizer, adam)


def save_mean(folder: Path, name: str, mean: MeanGradient, shards: int) -> None:
    """Writes the sum over the first `shards` shards of a set, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{shards:05d}.safetensors"
    counts = {"counts": json.dumps(mean.counts)}
    tensors = {k: v.contiguous() for k, v in mean.totals.items()}
    with disk_named(folder):
        digest = write_atomically(target, lambda p: save_file(tensors, p, metadata=counts))
        write_json(target.with_suffix(".json"), {"sha256": {target.name: digest}})


def forget_means(folder: Path, name: str, *, but: int | None = None) -> None:
    """Removes the saved sums of a set, except the one over `but` shards."""
    for old in folder.glob(f"{name}-?????.safetensors"):
        if but is None or old.name != f"{name}-{but:05d}.safetensors":
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)


def load_mean(folder: Path, name: str, shards: int) -> MeanGradient | None:
    """The saved sum over exactly the first `shards` shards of a set, or None where there is none."""
    path = folder / f"{name}-{shards:05d}.safetensors"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return None
    check_sums(path.with_suffix(".json"))
    with safe_open(path, framework="pt") as f:
        counts = json.loads(f.metadata()["counts"])
        return MeanGradient({k: f.get_tensor(k) for k in f.keys()}, counts)  # noqa: SIM118 - not a dict
