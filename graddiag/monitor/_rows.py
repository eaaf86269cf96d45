"""The projected gradients of a step's examples, kept as signals like any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from graddiag.blocks import Selected
from graddiag.errors import UsageError
from graddiag.extractor import Extractor
from graddiag.gradients import Gradients
from graddiag.monitor._capture import Pass
from graddiag.monitor._inputs import IGNORED
from graddiag.projection import Projector
from graddiag.signals import Provenance, Signals, Space, digest_of
from graddiag.store import save_signals

PROJECTIONS = ("exact", "logra", "sjlt", "dense")  # lowrank needs a reference, and keeps directions of one model state


@dataclass(frozen=True, eq=False)
class Keeper:
    """Where rows are kept, and the extractor whose rows they could be."""

    folder: Path
    like: Extractor

    def save(self, step: int, rows: ProjectedRows, passes: Sequence[Pass], seen: str) -> None:
        """Writes the rows of one step to a folder of their own; `seen` tells this state of the weights from others."""
        space, provenance = self.like.space, self.like.provenance(f"step {step}")
        weights = provenance.weights
        of_step = digest_of([weights, str(step), seen]) if step else weights
        provenance = replace(provenance, weights=of_step)
        tables = [rows.table(p, step, space, provenance) for p in passes if p.inputs.segments]
        if tables:
            save_signals(self.folder / f"step-{step:08d}", Signals.concat(tables), overwrite=True)


@dataclass(eq=False)
class ProjectedRows:
    """Of each pass and block: rows [n, k] and squared norms [n], not scaled yet."""

    projector: Projector
    rows: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    norm2: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def add(self, one: Pass, b: Selected, gradients: Gradients, norm2: Tensor) -> None:
        """Keeps the rows of one block of one pass."""
        self.rows[one.number, b.block.name] = self.projector.rows(b.block, gradients)
        self.norm2[one.number, b.block.name] = norm2

    def table(self, one: Pass, step: int, space: Space, provenance: Provenance) -> Signals:
        """The examples of one pass, of each one's own mean loss; a block that took no part has rows of 0."""
        assert one.weights is not None
        inputs, factors, n = one.inputs, one.weights.factors(), len(one.inputs.segments)
        norms, gradients = {}, {}
        for block in space.blocks:
            key = one.number, block.name
            norms[block.name], gradients[block.name] = np.zeros(n), np.zeros((n, self.projector.size(block)))
            if key in self.rows:
                norms[block.name] = np.sqrt(np.maximum(_numpy(self.norm2[key]), 0)) * np.abs(factors)
                gradients[block.name] = _numpy(self.rows[key]) * factors[:, None]
        losses = one.weights.losses()
        targets = [inputs.targets[s.at] for s in inputs.segments]
        return Signals(
            space=space,
            provenance=provenance,
            ids=tuple(f"{step}-{one.number}-{k}" for k in range(n)),
            clusters=tuple(f"{step}-{one.number}-{k}" for k in range(n)),
            digests=inputs.ids,
            loss=losses,
            token_loss=one.weights.of_tokens(),
            target_ids=tuple(t[t != IGNORED].astype(np.int32) for t in targets),
            n_tokens=inputs.counts,
            length=np.array([np.count_nonzero(inputs.used[s.at]) for s in inputs.segments], dtype=np.int64),
            n_cut=np.zeros(n, dtype=np.int64),
            finite=np.isfinite(losses) & np.all([np.isfinite(v) for v in norms.values()], axis=0),
            norms=norms,
            gradients={b: g.astype(np.float32) if space.dtype != "float64" else g for b, g in gradients.items()},
        )


def check_kept(projection: str | None, folder: Path | str | None) -> None:
    """Raises UsageError where rows are wanted and there is no place for them, or no such projection."""
    if projection is None:
        return
    if projection not in PROJECTIONS:
        raise UsageError(f"projection={projection!r}: rows of a training run are kept as {', '.join(PROJECTIONS)}.")
    if folder is None:
        raise UsageError(f"projection={projection!r} keeps rows on disk: say where with folder=...")


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
