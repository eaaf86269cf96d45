"""Which directions does the mean gradient of some reference rows span? Measured once, exactly, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from graddiag.data import ExampleSet, Source, read_set
from graddiag.encoding import Encoded, batches
from graddiag.errors import DataError, UsageError
from graddiag.extractor import Extractor
from graddiag.files import check_sums, disk_named, write_atomically, write_json
from graddiag.mean_gradient import MeanGradient
from graddiag.projection import Bases, make_projector, probe_digest, sides_basis
from graddiag.signals import digest_of

# Of the safety set (else the left one), where nobody names a reference. It only says where to look, so it need not be a
# good estimate, and every row of it costs a backward pass before the run begins.
REFERENCE_ROWS = 16
MEANS = "means"  # the folder of a run that the file is in
FILE = "bases.safetensors"

Given = Source | Bases | None


def first_kind(projection: str, dim: int, seed: int, reference: Given) -> str:
    """The projection with which an extractor can be made at once: of `lowrank` whose bases are still to be measured,
    `logra`, whose rows are as long and cost as much.

    Raises UsageError for a reference that nothing needs, and a `dim` that `lowrank` does not take.
    """
    if projection != "lowrank":
        if reference is not None:
            raise UsageError(f"A reference is for the projection 'lowrank', and this one is {projection!r}.")
        return projection
    make_projector(projection, dim, seed, bases=Bases({}))
    return projection if isinstance(reference, Bases) else "logra"


def read_reference(reference: Given, *, limit: int | None = None) -> ExampleSet | Bases | None:
    """The bases themselves where a run's folder (or bases) was given, else the examples of a set."""
    if reference is None or isinstance(reference, Bases):
        return reference
    if isinstance(reference, (str, Path)):
        for folder in (Path(reference), Path(reference) / MEANS):
            if (folder / FILE).is_file():
                return _load(folder)[0]
    return read_set(reference, name="reference" if not isinstance(reference, (str, Path)) else None, limit=limit)


def measured_bases(pilot: Extractor, rows: Sequence[Encoded], *, batch_tokens: int) -> Bases:
    """The bases of the rows' mean gradient, for rows of the pilot's `dim` and `seed`.

    Raises DataError where no row has a finite gradient in some block.
    """
    mean = MeanGradient()
    for batch in reversed(batches(rows, batch_tokens=batch_tokens)):  # too long a row fails at once
        pilot.measure([rows[i] for i in batch], mean=mean)
    empty = [b.block.name for b in pilot.blocks if not mean.counts.get(b.block.name)]
    if empty:
        raise DataError(
            f"None of the {len(rows)} reference rows has a finite gradient in {empty[0]!r}, so they show no directions "
            "there. Try --dtype float32, or another reference."
        )
    dim, seed = pilot.projector.dim, pilot.projector.seed
    # The sum has the singular directions of the mean; each is let go as soon as it was used.
    return Bases({b.block.name: sides_basis(mean.totals.pop(b.block.name), b.block, dim, seed) for b in pilot.blocks})


def on_bases(pilot: Extractor, bases: Bases) -> Extractor:
    """An extractor like the pilot, in the space of these bases."""
    dim, seed = pilot.projector.dim, pilot.projector.seed
    projector = make_projector("lowrank", dim, seed, blocks=[b.block for b in pilot.blocks], bases=bases)
    space = replace(pilot.space, projection=projector.kind, probe=probe_digest(projector))
    return Extractor(pilot.model, pilot.blocks, projector, space, pilot.provenance(""))


def kept_bases(
    folder: Path, pilot: Extractor, rows: Sequence[Encoded], *, batch_tokens: int, overwrite: bool = False
) -> Bases:
    """The bases in a folder, bit for bit; measured and saved there where there are none.

    Raises DataError where the file is broken, or holds those of other rows, another model or other settings and
    `overwrite` is not given.
    """
    wanted = digest_of([repr(pilot.space), pilot.provenance("").weights, *(r.digest for r in rows)])
    if (folder / FILE).with_suffix(".json").is_file():
        bases, found = _load(folder)
        if found == wanted:
            return bases
        if not overwrite:
            raise DataError(
                f"{folder / FILE} holds the bases of other reference rows, another model or other settings. Choose "
                "another --out, or give --overwrite to replace them."
            )
    bases = measured_bases(pilot, rows, batch_tokens=batch_tokens)
    _save(folder, bases, wanted)
    return bases


def _save(folder: Path, bases: Bases, made_of: str) -> None:
    arrays = {f"{k}/{b}": np.ascontiguousarray(side) for b, sides in bases.of.items() for k, side in enumerate(sides)}
    path = folder / FILE
    with disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        digest = write_atomically(path, lambda p: save_file(arrays, p, metadata={"made_of": made_of}))
        write_json(path.with_suffix(".json"), {"sha256": {path.name: digest}})


def _load(folder: Path) -> tuple[Bases, str]:
    path = folder / FILE
    check_sums(path.with_suffix(".json"))
    with safe_open(path, framework="np") as f:
        names = [k.removeprefix("0/") for k in f.keys() if k.startswith("0/")]  # noqa: SIM118 - not a dict
        sides = {b: (f.get_tensor(f"0/{b}"), f.get_tensor(f"1/{b}")) for b in names}
        return Bases(sides), f.metadata()["made_of"]
