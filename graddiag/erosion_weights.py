"""What did fine-tuning do to the weights of a run's models? Measured from their files, kept in the run's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from graddiag.erosion_setting import model_lines
from graddiag.errors import DataError, UsageError
from graddiag.files import disk_named
from graddiag.model_set import ModelSet
from graddiag.progress import Progress
from graddiag.weight_changes import compare_weights
from graddiag.weight_file import WEIGHTS_FILE, KeptWeights, read_weights, save_weights
from graddiag.weight_reading import Entry
from graddiag.weight_sources import missing, weight_sources


@dataclass(frozen=True)
class Gradient:
    """A mean safety gradient by block, and the digest of the rows that it is of."""

    rows: str
    blocks: Mapping[str, Entry]


def weights_kept(
    models: ModelSet,
    folder: Path,
    digests: Mapping[str, str],
    *,
    safety: Gradient | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> str | None:
    """Compares the weights of the models and saves what comes out in the folder; None, or why it could not be done.

    `digests` are those of the loaded models, by role: what was saved of the same models, and with the same `safety`
    gradient, is not measured again. One tensor of each is in memory at a time, and no second model is loaded to have
    its weights.
    """
    file, wanted, rows = folder / WEIGHTS_FILE, model_lines(digests), safety.rows if safety else ""
    if not overwrite and _is_of(file, wanted, rows):
        return None
    try:
        sources = weight_sources(models)
        progress = Progress(
            "weights", sum(math.prod(e.shape) for e in sources["aligned"].values()), quiet, "parameters"
        )
        aligned = {name: _counted(entry, progress) for name, entry in sources["aligned"].items()}
        gradient = safety.blocks if safety else None
        changes = compare_weights(sources["tuned"], aligned, base=sources.get("base"), safety=gradient)
    except (DataError, UsageError) as error:
        return f"The weights were not compared. {error}"
    progress.finish()
    with disk_named(folder):
        save_weights(file, KeptWeights(changes, wanted, _notes(models, sources), rows))
    return None


def _is_of(file: Path, models: tuple[str, ...], safety: str) -> bool:
    try:
        kept = read_weights(file)
        return (kept.models, kept.safety) == (models, safety)
    except DataError:
        return False


def _notes(models: ModelSet, sources: Mapping[str, Mapping[str, Entry]]) -> tuple[str, ...]:
    found = {role: missing(one.base, sources[role]) for role, one in models.models.items()}
    return tuple(
        f"Weights of the {role} model: {len(names)} parameters besides the matrices of its layers are in its files "
        f"under other names, or not as plain numbers, and were not compared; the first is {names[0]!r}."
        for role, names in found.items()
        if names
    )


def _counted(entry: Entry, progress: Progress) -> Entry:
    def read() -> Tensor:
        progress.advance(math.prod(entry.shape))
        return entry.read()

    return replace(entry, read=read)
